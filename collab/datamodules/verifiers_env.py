"""Goals of task=verifiers: the rows of an environment of the package verifiers.

`collab.rewards.verifiers_env` plays the environment; `user=verifiers` speaks for it, and its rubric is the reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collab.conversation import Goal
from collab.datamodules.goals import SPLITS, TaskGoals
from collab.rewards.verifiers_env import ENTRY, load, text_of
from collab.util.errors import BadInput

_OF_TEN = {"test": (0,), "val": (5,), "train": (1, 2, 3, 4, 6, 7, 8, 9)}  # rows of ten, where there is one dataset
_OF_TWO = {"test": (0,), "val": (1,)}  # rows of two of an evaluation dataset


class VerifiersGoals(TaskGoals):
    """A goal for each row of an environment's datasets.

    If the environment has an evaluation dataset, its rows are the test and validation goals in turn. Otherwise of ten
    rows in a row the first is for the test, the sixth for validation and the others for training. A row that asks for
    the same as one of a held-out split is left out.

    The goal's prompt is the row's prompt, its reference the answer if that is a text. The metadata keep the whole row
    for the rubric.

    Args:
        env: Name of the environment, as `verifiers.load_environment` takes it.
        args: Arguments of its `load_environment`.

    Raises:
        BadInput: `env` is not given, or as `collab.rewards.verifiers_env.load`.
    """

    def __init__(self, env: str = "", args: Mapping[str, Any] | None = None) -> None:
        if not env:
            raise BadInput(
                "task.options.env is not set: task=verifiers needs the name of an environment, as "
                "verifiers.load_environment takes it. Set it to an installed module that has load_environment."
            )
        self.env, self.args = env, dict(args or {})
        self.rollouts = load(self.env, self.args)

    def shipped(self, split: str) -> list[Goal]:
        env = self.rollouts.env
        try:
            held_out, training = env.build_eval_dataset(), env.build_dataset()
        except Exception as error:  # whatever the environment's code raises
            raise BadInput(f"task.options.env={self.env}: its dataset cannot be built: {error}. Mend it.") from error
        found = {name: self._goals(name, training, held_out) for name in SPLITS}
        known: set[tuple[str, str]] = set()
        for name in reversed(SPLITS):  # test, val, train
            found[name] = [goal for goal in found[name] if (goal.prompt, goal.reference) not in known]
            known |= {(goal.prompt, goal.reference) for goal in found[name]}
        if not found[split]:
            rows = sum(len(rows) for rows in (training, held_out) if rows is not None)
            raise BadInput(
                f"task.options.env={self.env} has {rows} rows, and none is left for the {split} split. Give it "
                "arguments that make more (task.options.args)."
            )
        return found[split]

    def _goals(self, split: str, training: Any, held_out: Any) -> list[Goal]:
        if training is None or held_out is None:
            rows, places = held_out if training is None else training, _OF_TEN[split]
            return [self._goal("row", row) for place, row in enumerate(rows) if place % 10 in places]
        if split == "train":
            return [self._goal("train", row) for row in training]
        return [self._goal("eval", row) for place, row in enumerate(held_out) if place % 2 in _OF_TWO[split]]

    def _goal(self, dataset: str, row: Mapping[str, Any]) -> Goal:
        from verifiers.utils.message_utils import get_messages

        answer = row.get("answer")
        return Goal(
            id=f"{dataset}-{row['example_id']}",
            prompt=text_of(get_messages(row["prompt"]), skip=("system",)),
            reference=answer if isinstance(answer, str) else "",
            metadata={ENTRY: {"env": self.env, "args": self.args, "row": dict(row)}},
        )
