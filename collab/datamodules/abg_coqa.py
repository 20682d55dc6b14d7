"""Goals of Abg-CoQA, zero-shot: does the assistant ask back if a question is ambiguous, and answer if it is not?

Guo et al., "Abg-CoQA: Clarifying Ambiguity in Conversational Question Answering" (AKBC 2021).
"""

from __future__ import annotations

from pathlib import Path

from collab.conversation import Agenda, Goal
from collab.datamodules.goals import DATA, TaskGoals
from collab.datamodules.rows import METADATA, Layout, Row, checked, field_of, kind_of, text_of
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
        field_of(goal.metadata, "ambiguous", f"{where}: {METADATA}", "true or false")
        agenda = (goal.agenda or Agenda("reply", goal.prompt, ())).entry()
        return Goal(goal.id, goal.prompt, goal.reference, {**goal.metadata, "agenda": agenda})


def _from_abg_coqa(row: Row, where: str) -> Goal:
    label = row["ambiguity"]
    if not isinstance(label, str) or label not in _LABELS:
        raise BadInput(f"{where}: ambiguity is {kind_of(label)}; it must be one of {', '.join(_LABELS)}.")

    def text(column: str, name: str) -> str:
        return text_of(field_of(row, column, where, "an object"), name, f"{where}, {column}")

    lines = [f"Story: {text_of(row, 'story', where)}", ""]
    for number, turn in enumerate(checked(row["history_turns"] or [], "a list", f"{where}: field history_turns"), 1):
        place = f"{where}, turn {number} of history_turns"
        checked(turn, "an object", place)
        lines += [f"Earlier question: {text_of(turn, 'question', place)}", f"Answer: {text_of(turn, 'answer', place)}"]
    question = text("target_turn", "question")
    reference = text("clarification_turn", "question") if _LABELS[label] else text("target_turn", "answer")
    agenda = Agenda("reply", "\n".join([*lines, f"Question: {question}"]), ())
    metadata = {"ambiguous": _LABELS[label], "source": str(row.get("source") or ""), "agenda": agenda.entry()}
    return Goal(text_of(row, "id", where), question, reference, metadata)
