"""Comparing mathematical answers, in a process that a costly answer may not hold up."""

import asyncio
import os
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.conversation import Conversation, Goal, Reply
from collab.parsing.answers import CHECKER, AnswerChecker, boxed
from collab.parsing.extraction import last_answer
from collab.parsing.plain_values import stated_value, value_of
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
        (r"5\cdot 10-3-2", True),  # the dashes of a formula are no date's
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


@pytest.mark.parametrize(
    ("reference", "answer", "decided"),
    [
        ("20", "The answer is 20.", True),
        ("20", "The answer is 21.", False),
        ("20", "I do not know.", None),
        ("5", r"\boxed{2 + 3}", True),
        ("1,000", r"\boxed{500 + 500}", True),  # one number, and not two
        ("25%", r"\boxed{20 + 5}", True),
        ("x^2", r"\boxed{x \cdot x}", True),
        ("x^2", r"\boxed{y}", False),
        ("6:30", "It is 5", None),
        ("Monday", r"The answer is $\text{Monday}$ of course.", True),
        ("Monday", "The answer is Tuesday.", None),  # it may be another word for the same
        ("Monday", r"\boxed{\text{Tuesday}}", False),
        ("towards the north-east", "The answer is: it moves to the north-east", None),
        ("x + 7", r"\boxed{9^{9^{9^{9}}}}", None),  # too costly
    ],
)
def test_what_can_be_decided(reference, answer, decided):
    checker = AnswerChecker(cpu_seconds=1) if "9^" in answer else CHECKER
    assert checker.decide(reference, answer) is decided
    assert checker.same(reference, answer) is bool(decided)


THOUSAND = [
    "1,000",
    "1 000",
    "1\u2009000",
    "1\u202f000",
    "1'000",
    "1’000",
    r"1{,}000",
    r"1\,000",
    "1_000",
    "1000.00",
    "1e3",
]


@pytest.mark.parametrize(
    "shown", [*THOUSAND, r"\$1,000", "$1,000", "1,000 $", "US$1,000", "€1.000,00", "1,000 dollars"]
)
@pytest.mark.parametrize("sentence", ["It costs {} in total.", "The answer is {}.", "**{}**", "({})", r"\boxed{{{}}}"])
def test_a_thousand_is_a_thousand_however_it_is_written(shown, sentence):
    assert CHECKER.same("1 000", sentence.format(shown)) is True
    assert CHECKER.same("1 001", sentence.format(shown)) is False


# (reference, answer, whether they are the same): all of them plain
PLAIN = [
    ("36", r"The answer is \$36.", True),
    ("36", "The answer is $36, which is more than $30.", True),
    ("36", r"The answer is $\$36$.", True),
    ("-36", "That is -$36.", True),
    ("36", "It is 36 EUR.", True),
    ("36", "It is Rs. 36/month.", True),
    ("-3", "The answer is \u22123.", True),
    ("-3", "The answer is \u20133.", True),
    ("-3", "The answer is \u20143.", True),
    ("-3", "It is minus 3.", True),
    ("-3", "The answer is 3.", False),
    ("5", "It is +5.", True),
    ("-1/2", r"**-\frac{1}{2}**", True),
    ("-0.5", "It is -½.", True),
    ("2", "That is 5 - 3 = 2.", True),
    ("-3", "It is 5 - 3", False),
    ("2 3/4", "The answer is 2 3/4.", True),
    ("2 3/4", r"\boxed{2\frac34}", True),
    ("2 3/4", r"It is $2\tfrac{3}{4}$.", True),
    ("2 3/4", "It is 2¾ cups.", True),
    ("2 3/4", "2.75", True),
    ("2 3/4", r"\boxed{\frac{11}{4}}", True),
    ("2 3/4", "It is 3/4.", False),
    ("2 3/4", "It is 2.", False),
    ("-2 1/2", "It is -2.5.", True),
    ("3/4", "It is ¾.", True),
    ("1/3", "It is 0.333333.", True),
    ("1/3", "It is 0.33.", False),
    (r"0.\overline{3}", r"\boxed{\frac13}", True),
    ("25%", "25 percent", True),
    ("25%", "It is 0.25.", True),
    ("0.25", r"\boxed{25\%}", True),
    ("25%", "It is 26%.", False),
    ("300000", "3 × 10^5", True),
    ("300000", "3 × 10⁵", True),
    ("3e5", r"\boxed{3 \times 10^{5}}", True),
    ("0.00003", r"It is $3\cdot 10^{-5}$.", True),
    ("1e-3", "0.001", True),
    ("1000000", "It is 1 million.", True),
    ("12 m^2", "12 m²", True),
    ("12", "The area is 12 m^2.", True),
    ("12 km/h", "12 km/h", True),
    ("12 cm", r"\boxed{12\text{ cm}}", True),
    ("45°", r"It is $45^\circ$.", True),
    ("84", "The answer is: `84`", True),
    ("84", "The answer is ８４.", True),  # wide digits
    ("84", "It is ≈84", True),
    ("0.1234567", "0.1234568", False),
    ("12345678901234567890", "It is 12345678901234567891.", False),
    ("1", "It is the 1st.", True),
    ("36", "It is 36 (thirty-six).", True),
    ("1.5e-4", "It is 1.5 x 10^(-4).", True),
    ("7", "The answer is not 6 but 7.", True),
    ("6:30", "The answer is 6:30.", True),
    ("6:30", "It starts at 6:30 pm.", True),
    ("6:30", "It is 0.2", False),
    ("6:30", "It is 6:31", False),
    ("6:30", "It is 18:30", False),
    ("6:30 pm", "It is 18:30.", True),
    ("6:30 p.m.", r"\boxed{6:30\text{ PM}}", True),
    ("6:30 pm", "It is 6:30 am.", False),
    ("6 pm", "It begins at 6:00 p.m.", True),
    ("3:2", "The ratio is 6:4.", True),
    ("B", "The answer is B.", True),
    ("B", "The answer is (B).", True),
    ("B", "The answer is **B**.", True),
    ("B", "Option B", True),
    ("B", "(B)", True),
    ("B", "B) 36 rolls", True),
    ("B", r"The answer is $\textbf{(B)}$.", True),
    ("B", r"\boxed{\text{B}}", True),
    (r"\text{(B)}", "It must be option (B).", True),
    ("B", "I would go with B.", True),
    ("B", "B is the correct choice.", True),
    ("B", "The answer is C.", False),
    ("B", "A is wrong. The correct choice is: C", False),
    ("A", "The answer is a bit more than 3.", False),
    ("84", "I get an answer by taking all the trays of the bakery, every one of them, and then 7 * 12 = 84.", True),
    ("no", "The answer is no.", True),
    ("no", "The answer is not known.", False),  # another word that begins like it
    ("north", "The answer is north.", True),
    ("300", "It is 3 * 10**2.", True),
    ("0.03", "It is 3 * 10**-2.", True),
    ("1/3", r"It is $\frac{100}{3}\%$.", True),
    ("Monday", "The answer is Monday.", True),
    ("Monday", "The answer is Tuesday.", False),
]


@pytest.mark.parametrize(("reference", "answer", "same"), PLAIN)
def test_plain_answers_are_the_same_in_all_their_forms(reference, answer, same):
    assert last_answer([answer], reference) and CHECKER.same(reference, answer) is same
    assert CHECKER.readable(reference)


@pytest.mark.parametrize(
    "reference", ["2024-01-05", "1/5/2024", "3\u20135", "5 ft 6 in", "3 or 4", "1:2:3", "\u200b", "half past six"]
)
def test_a_reference_that_would_be_misread_is_refused(reference):
    assert CHECKER.readable(reference) is False


def shown_forms(number: Fraction) -> list[str]:
    sign, whole, part = "-" * (number < 0), int(abs(number)), abs(number) % 1
    forms = [
        f"{number.numerator}/{number.denominator}",
        rf"{sign}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}",
    ]
    if whole and part:
        forms += [f"{sign}{whole} {part}", rf"{sign}{whole}\frac{{{part.numerator}}}{{{part.denominator}}}"]
    if not 10**12 % number.denominator:
        decimal = f"{Decimal(abs(number.numerator)) / number.denominator:,f}"
        forms += [
            f"{sign}{decimal}",
            f"{sign}{decimal.replace(',', '')}",
            f"\u2212{decimal}" if sign else f"+{decimal}",
        ]
        forms += [f"{sign}{decimal.replace(',', gap)}" for gap in (" ", "\u2009", "'", r"\,", "{,}")]
        forms += [f"{sign}${decimal}", rf"\${sign}{decimal}", f"{sign}{decimal} €"]
    return forms


NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(Fraction),
    st.builds(Fraction, st.integers(-(10**6), 10**6), st.sampled_from([2, 4, 5, 8, 100, 1000])),
    st.builds(Fraction, st.integers(-999, 999), st.integers(1, 99)),
)
SENTENCES = [
    "The answer is {}.",
    "So it is {}",
    r"\boxed{{{}}}",
    r"It is $\boxed{{{}}}$, of 90.",
    "**{}**",
    "Answer: `{}`",
    "{}",
]


@given(NUMBERS, NUMBERS, st.data())
def test_a_number_equals_itself_in_every_form_and_no_other(number, other, data):
    reference = data.draw(st.sampled_from(shown_forms(number)))
    answer = data.draw(st.sampled_from(SENTENCES)).format(data.draw(st.sampled_from(shown_forms(other))))
    assert CHECKER.decide(reference, answer) is (number == other), (reference, answer)
    own = data.draw(st.sampled_from(SENTENCES)).format(data.draw(st.sampled_from(shown_forms(number))))
    assert CHECKER.decide(reference, own) is True, (reference, own)


@given(st.text(), st.text())
def test_any_text_is_read_without_an_error(reference, answer):
    for text in (reference, answer):
        assert stated_value(text, "number") is None or stated_value(text, "number").kind == "number"
    value = value_of(reference)
    assert value is None or value.equals(value_of(reference))


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
    assert checker.same("x + 7", r"\boxed{7 + x}") is True  # by a new process


def test_a_process_that_is_broken_is_told_and_no_wrong_answer():
    with pytest.raises(RuntimeError, match="math-verify's process ended with status 1"):
        AnswerChecker(cpu_seconds="no number").same("x + 7", r"\boxed{7 + x}")


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
        threading.Thread(target=lambda i=i: found.__setitem__(i, checker.same(f"x + {i}", rf"\boxed{{{i % 4} + x}}")))
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
    assert checker.same("x + 7", r"\boxed{7 + x}") is True


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
