"""Comparing mathematical answers, in a process that a costly answer may not hold up."""

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from collab.conversation import Conversation, Goal, Reply
from collab.parsing.answers import CHECKER, AnswerChecker, boxed
from collab.rewards.metrics import Accuracy


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("84", "So 7 * 12 = 84 rolls.", True),
        ("84", "7 * 12 is 84. That leaves 80.", False),  # the last number counts
        ("84", r"That is \boxed{84}, of 90.", True),  # unless there is a box
        ("84", r"\boxed{85}, not 84", False),
        ("84", "The answer is 84 rolls for 3 people", True),
        ("84", "no number", False),
        ("3/4", "0.75", True),
        ("3/4", r"\boxed{\frac{3}{4}}", True),
        (r"2\sqrt{3}", r"$\boxed{\sqrt{12}}$", True),
        ("x^2+1", r"\boxed{1 + x^2}", True),
        (r"10\%", "10%", True),
        ("12 euros", "It costs 12.", True),
        ("1200", "1,200", True),
        (r"\text{east}", r"\boxed{\text{East}}", True),
        ("(1, 2)", r"\boxed{(2, 1)}", False),
        ("CAB", r"\boxed{CAB}", True),  # in this order
        ("CAB", r"\boxed{BCA}", False),
        ("even", r"\boxed{\text{even}}", True),
        ("3xyz", r"\boxed{3zyx}", True),
        ("abc + x", r"\boxed{abc + x}", True),
        ("6 men", "6 of them", True),
    ],
)
def test_answers_are_compared_by_their_value(reference, answer, same):
    assert CHECKER.same(reference, answer) is same


@pytest.mark.parametrize(
    ("reference", "readable"),
    [
        ("84", True),
        (r"\frac{1}{2}", True),
        (r"0.\overline{7}", True),
        ("[1, 2)", True),
        (r"\text{Monday}", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
        ("$12.50 each", True),
        ("", False),
        ("two pi", False),
        (r"\sqrt{2} cubits", False),
        ("one half", False),  # letters side by side would be a product
        (r"\frac{1}{", False),
        ("((", False),
    ],
)
def test_a_reference_has_to_be_readable(reference, readable):
    assert CHECKER.readable(reference) is readable


def test_a_reference_is_read_whole():
    assert boxed("3, 4") == r"\boxed{3, 4}"
    assert boxed("12 euros") == r"\boxed{12}"
    assert boxed(r"\frac{1}{2} \text{ metres}") == r"\boxed{\frac{1}{2} \text{ metres}}"
    assert boxed("about seven") == r"\boxed{}"


def test_an_answer_that_is_too_costly_is_wrong_and_holds_nobody_up():
    checker = AnswerChecker(cpu_seconds=1)
    ticks = []

    async def both() -> bool:
        asked = asyncio.ensure_future(asyncio.to_thread(checker.same, "7", r"\boxed{9^{9^{9^{9}}}}"))
        while not asked.done():
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)
        return await asked

    assert asyncio.run(both()) is False
    assert len(ticks) > 10  # the event loop went round all the while
    assert checker.same("7", "7") is True  # by a new process


def children() -> set[int]:
    """Processes that this one has started."""
    return {
        int(place.parent.name)
        for place in Path("/proc").glob("[0-9]*/stat")
        if place.read_text().rpartition(")")[2].split()[1] == str(os.getpid())
    }


def test_a_checker_serves_threads_and_survives_its_process():
    before, checker = children(), AnswerChecker()
    found = [None] * 8
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, checker.same(str(i), f"It is {i % 4}.")))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4 + [False] * 4
    (pid,) = children() - before
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert checker.same("7", "7") is True


def test_accuracy_is_of_the_last_answer_that_was_stated():
    goal = Goal("rolls", "How many rolls?", "84")

    def value(*replies: str) -> float | None:
        conversation = Conversation(goal)
        for reply in replies:
            conversation = conversation.with_user("(whatever)").with_reply(Reply(reply))
        return asyncio.run(Accuracy()(conversation.with_end("max_turns")))

    assert value("It is 84.") == 1.0
    assert value("It is 84.", "Sorry, it is 85.") == 0.0
    assert value("It is 84.", "You are welcome.") == 1.0
    assert value("How many trays are there, 84?") == 0.0
    assert value() == 0.0
