"""Metrics one by one: their options, what they hand on, and what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import spoken

from collab.chat.structured import Answer
from collab.config.schema import AgendaUserConfig
from collab.conversation import Conversation, Goal
from collab.rewards.document import repetition
from collab.rewards.metrics import (
    Accuracy,
    AgendaInteractivity,
    AnswersOnUnambiguous,
    AsksOnAmbiguous,
    Bleu,
    Judged,
    PassRate,
    PertinentQuestions,
    TokenPenalty,
)
from collab.util.errors import BadInput

DOUBLE = "def double(a):\n    return 2 * a\n"
PROGRAM = Goal("p", "Write double.", DOUBLE, {"entry_point": "double", "tests": "assert double(2) == 4"})
NOTES = Goal(
    "n", "A note.", "we meet at noon", {"title": "the walk", "preferences": {"tone": "warm", "audience": "hikers"}}
)


def finished(goal: Goal, *replies: str) -> Conversation:
    conversation = Conversation(goal)
    for reply in replies:
        conversation = conversation.with_user("hm").with_reply(spoken(reply))
    return conversation.with_end("max_turns")


def value(metric: Any, conversation: Conversation) -> Any:
    return asyncio.run(metric(conversation))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AgendaInteractivity(items_per_answer=0), r"items_per_answer \(0\) must be a whole number"),
        (lambda: AgendaInteractivity(items_per_answer=True), r"items_per_answer \(True\) must be a whole number"),
        (lambda: PertinentQuestions(items_per_answer=1.5), r"items_per_answer \(1.5\) must be a whole number"),  # type: ignore[arg-type]
        (lambda: AgendaInteractivity(needless_cost=-1), r"needless_cost \(-1\) must be a finite number"),
        (lambda: TokenPenalty(-1), r"coefficient \(-1\) must be a finite number of at least 0"),
        (lambda: Bleu(finished_only="yes"), r"finished_only \('yes'\) must be true or false"),  # type: ignore[arg-type]
        (lambda: Bleu(with_notes=1), r"with_notes \(1\) must be true or false"),  # type: ignore[arg-type]
        (lambda: PassRate("off"), r"sandbox \('off'\) must be auto or strict"),
    ],
)
def test_an_option_that_is_none_is_named_with_its_value(make: Callable[[], object], said: str) -> None:
    with pytest.raises(BadInput, match=f"^{said}"):
        make()


def test_metrics_count_as_many_items_as_the_user_answers() -> None:
    assert AgendaInteractivity().items_per_answer == AgendaUserConfig().items_per_answer
    assert PertinentQuestions().items_per_answer == AgendaUserConfig().items_per_answer
    two = finished(NOTES, "What tone should it have? Who is going to read it?")
    assert value(PertinentQuestions(1), two) == 0.5 and value(PertinentQuestions(2), two) == 1.0


def test_an_answer_is_a_letter_where_the_reference_is_one() -> None:
    assert value(Accuracy(), finished(Goal("c", "Which?", "B"), "(B)")) == 1.0
    assert value(Accuracy(), finished(Goal("c", "Which?", "B"), "Hm.")) == 0.0


@pytest.mark.parametrize("metric", [AsksOnAmbiguous(), AnswersOnUnambiguous()])
def test_nothing_was_asked_or_answered_without_a_turn(metric: Any) -> None:
    assert value(metric, finished(NOTES)) is None


def test_a_sentence_of_one_word_may_come_again() -> None:
    assert repetition("Come now! Come now!") == 0.0
    assert repetition("Come home now! Come home now!") > 0.0


class Extractor:
    def __init__(self, copy: str | None) -> None:
        self.copy, self.asked = copy, []  # type: ignore[var-annotated]

    async def extract(self, conversation: Conversation, artefact: str, *, whole: bool = False) -> Answer[str]:
        assert not whole  # metrics of the official code alone put a result together
        self.asked.append((conversation, artefact))
        return Answer(self.copy, ("a reply",), ())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    async def run_program(program: str, tests: str, **options: object) -> SimpleNamespace:
        found.append(program)
        return SimpleNamespace(passed=True)

    monkeypatch.setattr("collab.rewards.metrics.run_program", run_program)
    return found


@pytest.mark.parametrize(("copy", "expected"), [(DOUBLE, 1.0), ("", 0.0), (None, None)])
def test_an_extracted_program_is_run_and_its_replies_are_kept(copy: str | None, expected: Any, runs: list[str]) -> None:
    metric, talk = PassRate(), finished(PROGRAM, "Here.")
    metric.extractor = extractor = Extractor(copy)
    assert value(metric, talk) == Judged(expected, ("a reply",))
    assert extractor.asked == [(talk, "program")]


@pytest.mark.parametrize(("copy", "expected"), [("we meet at noon", 1.0), ("", 0.0), (None, None)])
def test_an_extracted_text_is_measured_and_its_replies_are_kept(copy: str | None, expected: Any) -> None:
    metric, talk = Bleu(), finished(NOTES, "Here.")
    metric.extractor = extractor = Extractor(copy)
    assert value(metric, talk) == Judged(expected, ("a reply",))
    assert extractor.asked == [(talk, "document")]


def test_the_program_that_is_asked_for_is_run_and_not_its_use(runs: list[str]) -> None:
    reply = f"```python\n{DOUBLE}```\nUse it so:\n```python\nprint(double(2))\nx = 1\n```"
    assert value(PassRate(), finished(PROGRAM, reply)) == 1.0
    assert runs == [DOUBLE]
