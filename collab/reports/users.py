"""How human a user is: from the measures of conversations to a table with intervals, differences and a distance.

The unit is the goal, as in `collab.reports.results`: the conversations about one goal are averaged first, and intervals
are 95 % percentile bootstrap intervals over goals.

A user is compared with the conversations of people if there are any, else with all other users together. The
difference of a measure is the user's mean minus that of the reference; goals are resampled on both sides, since people
and users need not have the same goals. The distance says how far a user is from the reference over all measures:

    distance = mean over measures of min(|mean_user - mean_reference| / sd, 3),
    sd = sqrt((variance_user + variance_reference) / 2)

with the variances over goals: the mean absolute effect size (Cohen's d), in which no measure counts more than 3. A
measure that one side lacks is left out. The distance of people from themselves is that of two random halves of their
conversations, averaged over `_HALVES` draws. It is what chance gives with half the number of conversations.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from collab.randomness import RngKey
from collab.reports.results import BOOTSTRAP_SAMPLES, PERCENTILES, summarise
from collab.reports.tables import MISSING, Row, estimate_cell

Values = Mapping[str, float | None]  # measure -> value, of one conversation

_MOST = 3.0  # that one measure counts in the distance
_HALVES = 20
_NOT_COMPARED = ("invalid",)  # a failure of the simulation, which people have none of


def summarise_users(
    rows: Mapping[str, Sequence[tuple[str, Values]]], reference: str | None, seed: int
) -> dict[str, Any]:
    """The figures of all users.

    Args:
        rows: Name of a user -> (goal, measures) of each conversation. All have the same measures.
        reference: The row of real people; None compares each user with all others together.
        seed: Of the bootstrap.

    Returns:
        `users`: name -> measure -> `{mean, ci95, n}`; `difference`: the same, of the users that are compared;
        `distance`: name -> `{mean, ci95, n}`, n the number of measures; `reference`.

    Raises:
        BadInput: A value is not finite.
    """
    scores: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for name, conversations in rows.items():
        for goal, values in conversations:
            for measure, value in values.items():
                scores.setdefault(name, {}).setdefault(measure, {}).setdefault(goal, []).append(value)
    users = summarise(scores, baseline="", seed=seed, aggregates={})["policies"]
    tables = {name: _by_goal(conversations) for name, conversations in rows.items()}
    difference, distance = {}, {}
    for name, table in tables.items():
        if name == reference:
            distance[name] = _split_half(table, seed)
            continue
        others = [tables[reference]] if reference else [other for key, other in tables.items() if key != name]
        if not others:
            continue
        difference[name], distance[name] = _compared(table, np.concatenate(others), [*users[name]], seed)
    return {"users": users, "difference": difference, "distance": distance, "reference": reference}


def _by_goal(conversations: Sequence[tuple[str, Values]]) -> np.ndarray:
    """Means over the conversations of each goal, [goals, measures]; nan where there is no value."""
    goals: dict[str, list[list[float]]] = {}
    for goal, values in conversations:
        row = [np.nan if value is None else value for value in values.values()]
        goals.setdefault(goal, []).append(row)
    with _quietly():
        return np.array([np.nanmean(rows, axis=0) for rows in goals.values()])


def _compared(
    user: np.ndarray, reference: np.ndarray, names: Sequence[str], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Difference of each measure, and the distance; `user` and `reference` are [goals, measures]."""
    draws = RngKey(seed, role="bootstrap").stream()
    ours, theirs = (
        one[draws.integers(len(one), size=(BOOTSTRAP_SAMPLES, len(one)))] for one in (user, reference)
    )  # [samples, goals, measures]
    with _quietly():
        point = np.nanmean(user, axis=0) - np.nanmean(reference, axis=0)
        sampled = np.nanmean(ours, axis=1) - np.nanmean(theirs, axis=1)
    n = [min(int((~np.isnan(one[:, i])).sum()) for one in (user, reference)) for i in range(len(names))]
    difference = {name: _entry(point[i], sampled[:, i], n[i]) for i, name in enumerate(names)}
    compared = [i for i, name in enumerate(names) if name not in _NOT_COMPARED and n[i]]
    effects = _effects(user[:, compared], reference[:, compared])
    sampled = _effects(ours[..., compared], theirs[..., compared])
    with _quietly():
        return difference, _entry(np.nanmean(effects), np.nanmean(sampled, axis=-1), len(compared))


def _effects(user: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The effect size of each measure, cut at `_MOST`: [..., goals, measures] -> [..., measures]."""
    with _quietly():
        gap = np.abs(np.nanmean(user, axis=-2) - np.nanmean(reference, axis=-2))
        spread = np.sqrt((np.nanvar(user, axis=-2) + np.nanvar(reference, axis=-2)) / 2)
        return np.where(gap < 1e-12, 0.0, np.minimum(gap / spread, _MOST)) + 0 * gap  # nan stays nan


def _split_half(table: np.ndarray, seed: int) -> dict[str, Any]:
    compared = [i for i in range(table.shape[1]) if not np.isnan(table[:, i]).all()]
    draws, half = RngKey(seed, role="halves").stream(), len(table) // 2
    if not half:
        return _entry(np.nan, np.array([np.nan]), 0)
    values = []
    for _ in range(_HALVES):
        order = draws.permutation(len(table))
        with _quietly():
            values.append(np.nanmean(_effects(table[order[:half]][:, compared], table[order[half:]][:, compared])))
    return _entry(np.mean(values), np.array(values), len(compared))


def _entry(mean: Any, sampled: np.ndarray, n: int) -> dict[str, Any]:
    sampled = sampled[~np.isnan(sampled)]
    if not n or np.isnan(mean) or not len(sampled):
        return {"mean": None, "ci95": [None, None], "n": 0}
    low, high = np.percentile(sampled, PERCENTILES)
    return {"mean": float(mean), "ci95": [float(low), float(high)], "n": n}


@contextmanager
def _quietly() -> Iterator[None]:
    """No warnings of numpy: a mean of nothing is nan, which is what is meant."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning), np.errstate(all="ignore"):
        yield


def user_rows(report: Mapping[str, Any]) -> tuple[list[str], list[Row], str]:
    """Header, rows and caption of the table: a row for each measure, a column for each user."""
    users, difference, reference = report["users"], report["difference"], report["reference"]
    names = [*users]
    against = f"− {reference or 'others'}"
    columns = [(name, part) for name in names for part in ("", against) if not part or name in difference]
    measures = [*next(iter(users.values()))]
    goals = {name: max((entry["n"] for entry in users[name].values()), default=0) for name in names}
    rows = []
    for measure in measures:
        cells = []
        for name, part in columns:
            entry = (difference if part else users)[name].get(measure)
            cells.append(estimate_cell(entry, measure, goals[name] if not part else 0, signed=bool(part)))
        rows.append(Row(measure.replace("_", " "), tuple(cells), section_ends=measure == measures[-1]))
    distances = [report["distance"].get(name) if part or name == reference else None for name, part in columns]
    cells = [estimate_cell(entry, "distance", 0) if entry else (MISSING, "") for entry in distances]
    rows.append(Row("distance", tuple(cells)))
    totals = report["totals"]
    for total in dict.fromkeys(key for entry in totals.values() for key in entry):
        cells = [("", "") if part else (_total(totals[name][total]), "") for name, part in columns]
        rows.append(Row(total.replace("_", " "), tuple(cells)))
    titles = [f"{name} {part}".strip() for name, part in columns]
    counts = ", ".join(f"{name} {count}" for name, count in goals.items())
    caption = (
        f"means over goals ({counts}; fewer where n is given) with their 95 % bootstrap intervals; the distance is a "
        "mean of effect sizes, 0 is alike"
    )
    return ["measure", *titles], rows, caption


def _total(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
