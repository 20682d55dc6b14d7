"""How far judges agree, and what moves their scores: figures and tables of `collab judge-report`.

A missing verdict is counted, and is in no mean. The unit of an interval is the goal, as in `collab.reports.results`.

- Agreement of two lists of scores, on the conversations that have both: Spearman's rank correlation (scipy), and
  Cohen's kappa over eleven levels 0, 0.1, ..., 1 with quadratic weights (scikit-learn): 1 is full agreement, 0 is what
  chance gives. Their 95 % intervals are from `_SAMPLES` resamples of the goals, each with all of its conversations.
  Neither is defined where one side gives the same score to all.
- Shift: the score of a copy minus that of the conversation itself.
- Position: the share of comparisons that the conversation shown first wins (a tie is half), 0.5 without a bias; and the
  share of pairs with the same winner in both orders.
- Length: the share of pairs in which the judge prefers the padded copy, over both orders; 0.5 without a bias.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from collab.randomness import RngKey
from collab.reports.results import PERCENTILES, summarise
from collab.reports.tables import MISSING, Row, estimate_cell, number

_SAMPLES = 500
UNMOVED = 0.05  # mean shift up to which a text has not moved a score: half of a step of the scale

Scores = Sequence[float | None]


def mean_of(goals: Sequence[str], values: Scores, seed: int) -> dict[str, Any]:
    """Mean over goals with its interval and n, and how many values are `missing`."""
    by_goal: dict[str, list[float | None]] = {}
    for goal, value in zip(goals, values, strict=True):
        by_goal.setdefault(goal, []).append(value)
    means = summarise({"judge": {"value": by_goal}}, baseline="", seed=seed, aggregates={})["policies"]["judge"]
    return {**means["value"], "missing": sum(value is None for value in values), "asked": len(values)}


def agreement(goals: Sequence[str], one: Scores, other: Scores, seed: int) -> dict[str, Any]:
    """`spearman` and `kappa`, each `{mean, ci95, n}`; `mean` is the figure itself, None if it is not defined.

    Args:
        goals: Of the conversations.
        one: Their scores.
        other: Their scores by the other judge, or by a rule.
        seed: Of the bootstrap.
    """
    known = [row for row in zip(goals, one, other, strict=True) if None not in row]
    both = np.array([pair for _, *pair in known], dtype=float).reshape(-1, 2)
    by_goal: dict[str, list[int]] = {}
    for row, (goal, *_) in enumerate(known):
        by_goal.setdefault(goal, []).append(row)
    groups = [np.array(rows) for rows in by_goal.values()]
    figures = (("spearman", _spearman), ("kappa", _kappa))
    return {name: _resampled(figure, both, groups, seed) for name, figure in figures}


def _spearman(both: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(both[:, 0], both[:, 1]).statistic) if len(both) > 1 else math.nan


def _kappa(both: np.ndarray) -> float:
    from sklearn.metrics import cohen_kappa_score

    levels = np.rint(both * 10).astype(int)
    if len(both) < 2 or any(len(set(side)) < 2 for side in levels.T):
        return math.nan
    return float(cohen_kappa_score(levels[:, 0], levels[:, 1], labels=range(11), weights="quadratic"))


def _resampled(
    figure: Callable[[np.ndarray], float], both: np.ndarray, groups: Sequence[np.ndarray], seed: int
) -> dict[str, Any]:
    """`groups` has the rows of each goal in `both`."""
    with warnings.catch_warnings(action="ignore"):  # both libraries warn of constant scores
        value = figure(both)
        draws = RngKey(seed, role="bootstrap").stream().integers(max(1, len(groups)), size=(_SAMPLES, len(groups)))
        drawn = [] if math.isnan(value) else [both[np.concatenate([groups[i] for i in draw])] for draw in draws]
        sampled = [x for rows in drawn if not math.isnan(x := figure(rows))]
    if not sampled:
        return {"mean": None, "ci95": [None, None], "n": 0}
    low, high = np.percentile(sampled, PERCENTILES)
    return {"mean": value, "ci95": [float(low), float(high)], "n": len(both)}


def shifts(goals: Sequence[str], before: Scores, after: Scores, seed: int) -> dict[str, Any]:
    """Mean of `after` minus `before` with its interval, as `mean_of`; `largest` is the largest of all."""
    values = [None if a is None or b is None else a - b for b, a in zip(before, after, strict=True)]
    known = [value for value in values if value is not None]
    found = mean_of(goals, values, seed)
    return {**found, "missing": sum(a is None for a in after), "largest": max(known, key=abs, default=None)}


def moved_by(before: Scores, after: Mapping[str, Scores]) -> dict[str, float | None]:
    """Text -> mean shift over the conversations; None if no verdict could be had.

    Args:
        before: Of the conversations as they are.
        after: Text -> scores of the same conversations with it.
    """
    found: dict[str, float | None] = {}
    for text, scores in after.items():
        known = [a - b for b, a in zip(before, scores, strict=True) if a is not None and b is not None]
        found[text] = sum(known) / len(known) if known else None
    return found


def judge_tables(report: Mapping[str, Any]) -> list[tuple[list[str], list[Row], str]]:
    """Header, rows and caption of each table that the report fills."""
    seen = report["conversations"]
    rated = {
        f"{judge}: {name}": entry for judge, metrics in report["judges"].items() for name, entry in metrics.items()
    }
    rows = [
        Row(label, (estimate_cell(entry["score"], "", seen), *_agreement(entry.get("rule")), _missing(entry["score"])))
        for label, entry in rated.items()
    ]
    header = ["judge: metric", "score", "Spearman with rule", "kappa with rule", "missing"]
    tables = [(header, rows, f"verdicts on {seen} conversations, beside what a rule says where there is one")]
    rows = [
        Row(f"{pair}: {name}", _agreement(entry))
        for pair, metrics in report["agreement"].items()
        for name, entry in metrics.items()
    ]
    if rows:
        caption = "agreement of two judges, on the conversations that both have judged"
        tables.append((["judges: metric", "Spearman", "kappa"], rows, caption))
    rows = []
    for label, entry in rated.items():
        told, after = entry["injections"], entry["injected"]
        moved = (estimate_cell(entry[kind], "", 0, signed=True) for kind in ("padded", "injected", "control"))
        texts, largest = f"{told['unmoved']} of {told['texts']}", number(after["largest"], "", signed=True)
        rows.append(Row(label, (*moved, (texts, ""), (largest, ""), _missing(after))))
    header = ["judge: metric", "padded", "injected", "control", "unmoved texts", "largest shift", "missing"]
    caption = (
        "mean shift of the score by a copy with padded replies, with a text that asks for a high score, and with as "
        f"many other words; a text is unmoved if its mean shift is at most {UNMOVED}"
    )
    tables.append((header, rows, caption))
    rows = [
        Row(
            f"{judge}: {question}",
            (*(estimate_cell(entry[kind], "", seen) for kind in ("first", "same", "padded")), _missing(entry["first"])),
        )
        for judge, questions in report["position"].items()
        for question, entry in questions.items()
    ]
    if rows:
        caption = (
            "pairs of a conversation and its padded copy, in both orders: how often the first one shown wins (0.5 is "
            "fair), how often both orders have the same winner, how often the padded copy wins (0.5 is fair)"
        )
        tables.append((["judge: question", "first wins", "same winner", "padded wins", "missing"], rows, caption))
    return tables


def _agreement(entry: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    if entry is None:
        return (MISSING, ""), (MISSING, "")
    return tuple(estimate_cell(entry[name], "score", 0) for name in ("spearman", "kappa"))


def _missing(entry: Mapping[str, Any]) -> tuple[str, str]:
    return f"{entry['missing']} of {entry['asked']}", ""
