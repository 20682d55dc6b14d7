"""Goals of Abg-CoQA, zero-shot: does the assistant ask back if a question is ambiguous, and answer if it is not?

Guo et al., "Abg-CoQA: Clarifying Ambiguity in Conversational Question Answering" (AKBC 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collab.conversation import Agenda, Goal
from collab.datamodules.goals import DATA, TaskGoals
from collab.datamodules.rows import METADATA, Layout, Row, kind_of, text_of
from collab.util.errors import BadInput

_LABELS = {"ambiguous": True, "non_ambiguous": False}


class AbgCoqaGoals(TaskGoals):
    """Goals of `task=abg_coqa`: a story, the questions about it so far, and a question that may be ambiguous.

    The user says all of it in one message. The reference is the answer or, for an ambiguous question, a clarifying
    question; the metrics read only the metadata's `ambiguous`. The goals that ship are in `data/abg_coqa`; the
    published JSON file is read as `task.test_file`.
    """

    def __init__(self) -> None:
        # https://github.com/MeiqiGuo/AKBC2021-Abg-CoQA: an object with `version` and `data`, a list of rows. They also
        # have source and, if ambiguous, sometimes clarification_turn_2.
        columns = ("id", "story", "target_turn", "history_turns", "ambiguity", "clarification_turn")
        self.layouts = (Layout(columns, _from_abg_coqa),)

    def shipped(self, split: str) -> Path | None:
        return DATA / "abg_coqa" / "test.json" if split == "test" else None

    def completed(self, goal: Goal, where: str) -> Goal:
        ambiguous = goal.metadata.get("ambiguous")
        if not isinstance(ambiguous, bool):
            raise BadInput(f"{where}: {METADATA}: field ambiguous is {kind_of(ambiguous)}; it must be true or false.")
        agenda = (goal.agenda or Agenda("reply", goal.prompt, ())).entry()
        return Goal(goal.id, goal.prompt, goal.reference, {**goal.metadata, "agenda": agenda})


def _from_abg_coqa(row: Row, where: str) -> Goal:
    story, label = text_of(row, "story", where), row["ambiguity"]
    if label not in _LABELS:
        raise BadInput(f"{where}: ambiguity is {kind_of(label)}; it must be one of {', '.join(_LABELS)}.")
    target = _turn(row["target_turn"], "target_turn", where)
    question = text_of(target, "question", f"{where}, target_turn")
    history = row["history_turns"] or []
    if not isinstance(history, list):
        raise BadInput(f"{where}: history_turns is {kind_of(history)}; it must be a list of turns.")
    lines = [f"Story: {story}", ""]
    for number, given in enumerate(history, 1):
        turn, place = _turn(given, f"turn {number} of history_turns", where), f"{where}, turn {number} of history_turns"
        lines += [f"Earlier question: {text_of(turn, 'question', place)}", f"Answer: {text_of(turn, 'answer', place)}"]
    message = "\n".join([*lines, f"Question: {question}"])
    if _LABELS[label]:
        clarification = _turn(row["clarification_turn"], "clarification_turn", where)
        reference = text_of(clarification, "question", f"{where}, clarification_turn")
    else:
        reference = text_of(target, "answer", f"{where}, target_turn")
    agenda = Agenda("reply", message, ())
    metadata = {"ambiguous": _LABELS[label], "source": str(row.get("source") or ""), "agenda": agenda.entry()}
    return Goal(text_of(row, "id", where), question, reference, metadata)


def _turn(given: Any, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise BadInput(f"{where}: {name} is {kind_of(given)}; it must be an object with question and answer.")
    return given
