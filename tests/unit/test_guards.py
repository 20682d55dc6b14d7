"""The guard against role confusion on labelled messages, and the figures that the docs give of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.guards import DATA, PARTS, figures, judged
from collab.conversation import Agenda, AgendaItem, Goal
from collab.simulation.guards import leaks, longest_run, role_confusion

DOCS = (Path(__file__).parents[2] / "docs" / "users.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", PARTS[:2])
def test_the_docs_give_the_figures_of_the_held_out_parts(part: str) -> None:
    found = figures(part)
    row = (
        f"| {part} | {found.messages} | {found.confused} "
        f"| {found.precision:.3f} ({found.caught} of {found.caught + found.false_alarms}) "
        f"| {found.recall:.3f} ({found.caught} of {found.confused}) |"
    )
    assert row in DOCS, row


def test_the_guard_is_worth_having() -> None:
    found = figures("held-out")
    assert found.precision >= 0.95 and found.recall >= 0.9
    assert figures("model-held-out").precision >= 0.7


def test_the_labelled_set_is_large_enough_and_its_halves_share_nothing() -> None:
    messages = json.loads(DATA.read_text(encoding="utf-8"))["messages"]
    by_hand = {part: [row for row in messages if row["part"] == part] for part in ("tuning", "held-out")}
    assert sum(map(len, by_hand.values())) >= 120 and min(map(len, by_hand.values())) >= 60
    for field in ("goal", "message"):
        tuning, held_out = ({row[field] for row in by_hand[part]} for part in by_hand)
        assert not tuning & held_out
    assert len(judged("held-out")) == len(by_hand["held-out"])


def test_code_of_the_assistant_may_be_quoted_back() -> None:
    agenda = Agenda("program", "I need a function.", ()).entry()
    goal = Goal("p", "Write f.", "def f(x):\n    return x", {"agenda": agenda})
    shown = "Here:\n```python\ndef f(x):\n    return -x\n```"
    quoted = "This gives -1 for f(1):\n```python\ndef f(x):\n    return -x\n```\nI need 1."
    assert not role_confusion(goal, shown, quoted)
    assert role_confusion(goal, "", quoted)


def test_what_the_agenda_opens_with_is_no_secret() -> None:
    opening = "How many litres does the tank hold after an hour of rain in spring?"
    agenda = Agenda(
        "answer", opening, (AgendaItem("rate", "It takes in exactly two litres more every ten minutes now."),)
    )
    goal = Goal("t", f"{opening} It takes in two litres.", "12", {"agenda": agenda.entry()})
    assert not leaks(goal, opening)
    assert leaks(goal, "It takes in exactly two litres more every ten minutes now.")
    assert not leaks(goal, "It gets about two litres more, say every ten minutes.")


def test_longest_run_counts_words_in_a_row() -> None:
    assert longest_run("a b c d", "x b, c D y") == 3 and longest_run("", "a") == 0
