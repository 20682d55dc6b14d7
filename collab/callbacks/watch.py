"""Warn of a policy that collapses, and of one that games its simulator: R* rises while other signs of quality fall."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import lightning as L

_STEPS = 3  # at each end, whose means are compared
_SIGNS = {  # metric -> (1 if more is better, else -1; change that counts; what it means when it gets worse)
    "pertinent": (1, 0.15, "fewer of its questions ask the user for something new"),
    "distinct_questions": (1, 0.3, "it asks about every goal in the same words"),
    "copied": (-1, 0.15, "it pastes the user's messages"),
    "repetition": (-1, 0.1, "it says things twice"),
    "unsupported": (-1, 0.1, "its texts say what the user never said"),
}


_FACTOR = 3.0  # a measure that has changed by more than this factor since the first rollout is a sign of collapse
_MEASURES = ("mr", "mr_spread", "interactivity", "sampled_entropy", "reply_tokens", "cut_replies")


def signs_of_collapse(first: Mapping[str, float], now: Mapping[str, float]) -> dict[str, str]:
    """What is far worse in a rollout than in the first one: measure -> words with both figures.

    Args:
        first: Measures of the first rollout, by the policy that the run started from; nan or absent if unknown.
        now: Of the rollout to judge.
    """

    def both(name: str) -> tuple[float, float]:
        return first.get(name, math.nan), now.get(name, math.nan)

    found = {}
    start, mr = both("mr")
    spread, still = both("mr_spread")
    if mr < start - 2 * spread:
        found["mr"] = f"MR {start:.2f} -> {mr:.2f}"
    if spread > 0 and still == 0:
        found["mr_spread"] = "all candidates of each group have the same MR"
    start, asks = both("interactivity")
    if start > 0.1 and asks < start / _FACTOR:
        found["interactivity"] = f"interactivity {start:.2f} -> {asks:.2f}"
    start, entropy = both("sampled_entropy")
    if not start / _FACTOR <= entropy <= start * _FACTOR and math.isfinite(start):
        found["sampled_entropy"] = f"entropy {start:.2f} -> {entropy:.2f}"
    start, length = both("reply_tokens")
    if length < start / _FACTOR:
        found["reply_tokens"] = f"tokens of a reply {start:.0f} -> {length:.0f}"
    start, cut = both("cut_replies")
    if start < 0.5 and cut > 0.9:
        found["cut_replies"] = f"replies cut at task.max_new_tokens {start:.0%} -> {cut:.0%}"
    return found


class CollapseWatch(L.Callback):
    """Compares each rollout with the first one; warns once, when two in a row show a collapse.

    It comes after the rollout, whose metrics it reads, and logs `train/collapse`, the number of signs. All ranks have
    it and find the same.

    Args:
        warn: Shows a line.

    Attributes:
        signs: Of the latest rollout, as by `signs_of_collapse`.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.signs: dict[str, str] = {}
        self._first: dict[str, float] = {}
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "signs": self.signs, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first, self.signs = dict(state_dict["first"]), dict(state_dict["signs"])
        self._warned = state_dict["warned"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        metrics = trainer.callback_metrics
        now = {name: float(metrics[f"train/{name}"]) for name in _MEASURES if f"train/{name}" in metrics}
        if not now:
            return  # stored conversations
        self._first = self._first or now
        before, self.signs = self.signs, signs_of_collapse(self._first, now)
        pl_module.log("train/collapse", float(len(self.signs)), batch_size=1, sync_dist=trainer.world_size > 1)
        if before and self.signs and not self._warned:
            self._warned = True
            self.warn(
                f"the policy has collapsed: {', '.join(self.signs.values())}, from the first rollout to this one. Its "
                "steps may be too large: set a lower algorithm.lr or algorithm.target_kl. An earlier policy is kept."
            )


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
