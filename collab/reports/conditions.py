"""How a policy does when the same goals are told in different ways (Laban et al., arXiv 2505.06120, section 4).

A condition is a way in which the user tells a goal. Each goal is played several times under each condition. Over these
samples a goal has a mean, a 90th percentile and a 10th percentile (linear between samples, as numpy does). Over goals:

- score: the mean of the means, 0..1;
- aptitude: the mean of the 90th percentiles, A90 in the paper;
- unreliability: the mean of the differences of the 90th and the 10th percentile, U90-10 in the paper;
- of_full: the score as a share of the score under the condition `full`;
- gap: the score under `full` minus the score.

Only goals that have a score under all conditions count. Intervals are as in `results.py`: goals are resampled, and the
differences to the baseline are paired by goal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from rich.console import Group

from collab.reports.results import Aggregate, PolicyScores, aggregate_of, user_of
from collab.reports.tables import Row, estimate_cell, header_of, rich_table

FULL = "full"
_FIGURES = ("score", "aptitude", "unreliability", "of_full", "gap")

Values = Mapping[str, np.ndarray]  # "MEASURE CONDITION" -> values of goals [..., goals]


def summarise_conditions(
    scores: Mapping[str, PolicyScores], told: Mapping[str, str], *, metric: str, baseline: str, seed: int
) -> dict[str, Any]:
    """The figures of each policy under each condition, and their differences to the baseline's.

    Args:
        scores: Row of the table (`POLICY@USER`) -> its scores.
        told: User of the rows, "" for the config's own -> its condition; one of them is `FULL`.
        metric: Whose scores, such as "reward".
        baseline: The policy that the others are compared with.
        seed: The run's seed.

    Returns:
        {"policies": {POLICY: {CONDITION: {FIGURE: estimate}}}, "difference": the same without the baseline}; an
        estimate has mean, ci95 and n as in `results.json`.
    """
    policies = {
        policy: _goal_values({told[user_of(row)]: scores[row].get(metric, {}) for row in scores if _of(row) == policy})
        for policy in dict.fromkeys(map(_of, scores))
    }

    def figures(*values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
        return {
            condition: {
                name: aggregate_of(_figure(name, condition), values, seed)
                for name in _FIGURES
                if condition != FULL or name not in ("of_full", "gap")
            }
            for condition in told.values()
        }

    others = [policy for policy in policies if policy != baseline] if baseline in policies else []
    return {
        "policies": {policy: figures(values) for policy, values in policies.items()},
        "difference": {policy: figures(policies[policy], policies[baseline]) for policy in others},
    }


def _of(row: str) -> str:
    return row.partition("@")[0]


def _goal_values(conditions: Mapping[str, Mapping[str, list[float | None]]]) -> dict[str, dict[str, float]]:
    """ "MEASURE CONDITION" -> goal -> mean or percentile over its samples, for goals that every condition has."""
    known = {
        condition: {goal: [v for v in values if v is not None] for goal, values in goals.items()}
        for condition, goals in conditions.items()
    }
    shared = set.intersection(*({goal for goal, values in goals.items() if values} for goals in known.values()))
    measures: dict[str, Callable[[list[float]], Any]] = {
        "mean": np.mean,
        "p90": partial(np.percentile, q=90),
        "p10": partial(np.percentile, q=10),
    }
    return {
        f"{name} {condition}": {goal: float(measure(goals[goal])) for goal in shared}
        for condition, goals in known.items()
        for name, measure in measures.items()
    }


def _figure(name: str, condition: str) -> Aggregate:
    def mean(values: Values, measure: str, where: str = condition) -> np.ndarray:
        return values[f"{measure} {where}"].mean(axis=-1)

    def share(values: Values) -> np.ndarray:
        full = mean(values, "mean", FULL)
        return np.divide(mean(values, "mean"), full, out=np.full_like(full, np.nan), where=full > 0)

    return {
        "score": lambda values: mean(values, "mean"),
        "aptitude": lambda values: mean(values, "p90"),
        "unreliability": lambda values: mean(values, "p90") - mean(values, "p10"),
        "of_full": share,
        "gap": lambda values: mean(values, "mean", FULL) - mean(values, "mean"),
    }[name]


def conditions_table(found: Mapping[str, Any], baseline: str, samples: int) -> Group:
    """The figures of `summarise_conditions` as a table for the terminal; `samples` is the conversations of a goal."""
    policies, difference = found["policies"], found["difference"]
    estimates = [entry for rows in policies.values() for figures in rows.values() for entry in figures.values()]
    num_goals = max(entry["n"] for entry in estimates)
    rows = [
        Row(
            f"{policy}{f' − {baseline}' if signed else ''} {condition}",
            tuple(estimate_cell(figures.get(name), name, num_goals, signed=signed) for name in _FIGURES),
            section_ends=condition == [*conditions][-1],
        )
        for part, signed in ((policies, False), (difference, True))
        for policy, conditions in part.items()
        for condition, figures in conditions.items()
    ]
    caption = (
        f"{num_goals} goals, {samples} conversations of each a condition; aptitude is the 90th percentile of a "
        "goal's scores, unreliability the 90th minus the 10th, gap the score of full minus this one; 95 % bootstrap "
        "intervals over goals" + "; differences are paired by goal" * bool(difference)
    )
    return rich_table(header_of(_FIGURES), rows, caption)
