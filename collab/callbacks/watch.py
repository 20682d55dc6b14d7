"""Warn of a policy that games its simulator: R* rises while other signs of quality fall."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import lightning as L

_STEPS = 3  # at each end, whose means are compared
_SIGNS = {  # metric -> (1 if more is better, else -1; change that counts; what it means when it gets worse)
    "pertinent": (1, 0.15, "fewer of its questions ask the user for something new"),
    "distinct_questions": (1, 0.3, "it asks about every goal in the same words"),
    "copied": (-1, 0.15, "it pastes the user's messages"),
    "repetition": (-1, 0.1, "it says things twice"),
}


class GamingWatch(L.Callback):
    """Compares the last steps with the first. Warns once about each sign that got worse while R* rose.

    Args:
        warn: Shows a line.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.history: dict[str, list[float]] = {}  # metric -> its value at each step that had one
        self.warned: list[str] = []  # metrics

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.warned = dict(state_dict["history"]), list(state_dict["warned"])

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        for name in ("mr", *_SIGNS):
            value = float(trainer.callback_metrics.get(f"train/{name}", math.nan))
            if math.isfinite(value):
                self.history.setdefault(name, []).append(value)
        first, last = self._ends("mr")
        if last <= first:
            return
        for name, (good, enough, meaning) in _SIGNS.items():
            first, last = self._ends(name)
            if good * (last - first) < -enough and name not in self.warned:
                self.warned.append(name)
                self.warn(
                    f"R* rises, and {meaning} ({name} {first:.2f} -> {last:.2f}): the policy may be gaming the "
                    "simulated user. Read some of its conversations in transcripts.jsonl before you believe the table."
                )

    def _ends(self, name: str) -> tuple[float, float]:
        """Means of the first and of the last steps; zeros while they overlap."""
        values = self.history.get(name, [])
        return (fmean(values[:_STEPS]), fmean(values[-_STEPS:])) if len(values) >= 2 * _STEPS else (0.0, 0.0)
