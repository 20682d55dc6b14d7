"""Figures of all test goals at once that are not means over goals; `task.aggregates` names them.

Shapes: each array is [..., goals]: a policy's values on goals, nan where a goal has none. The leading axis counts
resamples of the bootstrap. A figure is [...].
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

ASKS, ANSWERS = "asks_on_ambiguous", "answers_on_unambiguous"
ASKS_ON_VAGUE, ACTS_ON_CLEAR = "asks_on_vague", "acts_on_clear"


def macro_accuracy(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean of two shares: asking on ambiguous questions, and answering the others. nan without one of the two."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a mean of nothing
        return (np.nanmean(values[ASKS], axis=-1) + np.nanmean(values[ANSWERS], axis=-1)) / 2


def macro_f1(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean of the F1 of asking and the F1 of answering, F1 = 2 TP / (2 TP + FP + FN); nan without one of the two.

    A goal that was played several times counts as the share of its conversations.
    """
    return np.mean(_f1s(values[ASKS], values[ANSWERS]), axis=0)


def ask_f1(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """F1 of asking, of `task=ask_or_act`: TP asks a vague request back, FP a clear one; nan without one of the two.

    Of as many vague requests as clear ones a policy that always asks has 2/3, and one that never asks 0.
    """
    return _f1s(values[ASKS_ON_VAGUE], values[ACTS_ON_CLEAR])[0]


def act_f1(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """F1 of acting, as `ask_f1`: 2/3 for a policy that never asks, 0 for one that always does."""
    return _f1s(values[ASKS_ON_VAGUE], values[ACTS_ON_CLEAR])[1]


def _f1s(asks: np.ndarray, acts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 of asking and of acting [...], from right decisions to ask and to act [..., goals]; nan without either."""
    asked, not_asked = np.nansum(asks, axis=-1), np.nansum(1 - asks, axis=-1)
    acted, not_acted = np.nansum(acts, axis=-1), np.nansum(1 - acts, axis=-1)
    wrong = not_asked + not_acted  # a FN of one decision is a FP of the other
    both = (asked + not_asked > 0) & (acted + not_acted > 0)
    with np.errstate(invalid="ignore"):
        ask, act = (np.where(both, 2 * right / (2 * right + wrong), np.nan) for right in (asked, acted))
    return ask, act
