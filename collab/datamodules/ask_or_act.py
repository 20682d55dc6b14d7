"""Requests in two versions, one that says all that is needed and one that does not: does a policy ask, or act?"""

from __future__ import annotations

from pathlib import Path

from collab.conversation import Agenda, Goal
from collab.datamodules.goals import DATA, TaskGoals
from collab.datamodules.rows import METADATA, checked, field_of, text_of
from collab.util.errors import BadInput


class AskOrActGoals(TaskGoals):
    """Goals of `task=ask_or_act`: a request that the user makes in one message.

    The metadata say whether it is `vague`, which the metrics go by, and name its `pair`: the vague and the clear
    version of one request. `lacking` lists texts that the clear version has and the vague one has not. `kind` is for
    the reader. 64 pairs of eight kinds ship (`data/ask_or_act`), the kinds in turn. No metric reads the references.
    """

    def shipped(self, split: str) -> Path | None:
        return DATA / "ask_or_act" / "test.jsonl" if split == "test" else None

    def completed(self, goal: Goal, where: str) -> Goal:
        place = f"{where}: {METADATA}"
        vague = field_of(goal.metadata, "vague", place, "true or false")
        text_of(goal.metadata, "pair", place, "It names the two versions of one request.")
        lacking = field_of(goal.metadata, "lacking", place, "a list", "It lists what only the clear version says.")
        if not lacking:
            raise BadInput(
                f"{place}: lacking is empty: the versions would say the same. List what only the clear says."
            )
        for text in lacking:
            said = checked(text, "text", f"{place}: an entry of lacking").lower() in goal.prompt.lower()
            if said is vague:
                raise BadInput(
                    f"{place}: lacking has {text!r}, which a vague request must not say and a clear one must, and the "
                    f"{'vague' if vague else 'clear'} one is {goal.prompt!r}. Change the request or lacking."
                )
        agenda = (goal.agenda or Agenda("reply", goal.prompt, ())).entry()
        return Goal(goal.id, goal.prompt, goal.reference, {**goal.metadata, "agenda": agenda})
