"""Notice a policy that games its simulator: R* rises while what it stands for falls."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import lightning as L

_STEPS = 3  # at each end, whose means are compared
_SIGNS = {  # metric -> (direction of what is good, change that counts)
    "pertinent": (1, 0.15),
    "distinct_questions": (1, 0.3),
    "copied": (-1, 0.15),
    "repetition": (-1, 0.1),
}
_MEANING = {
    "pertinent": "fewer of its questions ask the user for something new",
    "distinct_questions": "it asks about every goal in the same words",
    "copied": "it pastes the user's messages",
    "repetition": "it says things twice",
}


class GamingWatch(L.Callback):
    """Compares the last steps with the first, and says so once for each sign that got worse while R* rose.

    Args:
        tell: Shows a line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.history: dict[str, list[float]] = {}
        self.told: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "told": self.told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.told = dict(state_dict["history"]), list(state_dict["told"])

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        for name in ("mr", *_SIGNS):
            value = float(trainer.callback_metrics.get(f"train/{name}", math.nan))
            if math.isfinite(value):
                self.history.setdefault(name, []).append(value)
        if change(self.history.get("mr", [])) <= 0:
            return
        for name, (good, enough) in _SIGNS.items():
            moved = good * change(self.history.get(name, []))
            if moved < -enough and name not in self.told:
                self.told.append(name)
                first, last = ends(self.history[name])
                self.tell(
                    f"R* rises, and {_MEANING[name]} ({name} {first:.2f} -> {last:.2f}): the policy may be gaming the "
                    "simulated user. Read some of its conversations in transcripts.jsonl before you believe the table."
                )


def ends(values: list[float]) -> tuple[float, float]:
    """Means of the first and of the last steps."""
    return fmean(values[:_STEPS]), fmean(values[-_STEPS:])


def change(values: list[float]) -> float:
    """By how much the mean of the last steps is above that of the first; 0 while they overlap."""
    if len(values) < 2 * _STEPS:
        return 0.0
    first, last = ends(values)
    return last - first
