"""Figures of all test goals at once that are not means over goals; `task.aggregates` names them.

Shapes: each array is [..., goals]: a policy's values on goals, nan where a goal has none. The leading axis counts
resamples of the bootstrap. A figure is [...].
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

ASKS, ANSWERS = "asks_on_ambiguous", "answers_on_unambiguous"


def macro_accuracy(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean of two shares: asking on ambiguous questions, and answering the others. nan without one of the two."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a mean of nothing
        return (np.nanmean(values[ASKS], axis=-1) + np.nanmean(values[ANSWERS], axis=-1)) / 2


def macro_f1(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean of the F1 of asking and the F1 of answering, F1 = 2 TP / (2 TP + FP + FN); nan without one of the two.

    A goal that was played several times counts as the share of its conversations.
    """
    asked, not_asked = np.nansum(values[ASKS], axis=-1), np.nansum(1 - values[ASKS], axis=-1)
    answered, not_answered = np.nansum(values[ANSWERS], axis=-1), np.nansum(1 - values[ANSWERS], axis=-1)
    wrong = not_asked + not_answered  # a FN of one decision is a FP of the other
    with np.errstate(invalid="ignore"):
        f1 = (2 * asked / (2 * asked + wrong) + 2 * answered / (2 * answered + wrong)) / 2
    return np.where((asked + not_asked > 0) & (answered + not_answered > 0), f1, np.nan)
