"""How human a user is: from the measures of conversations to a table with intervals, differences and a distance.

The unit is the goal, as in `collab.reports.results`: the conversations about one goal are averaged first, and intervals
are 95 % percentile bootstrap intervals over goals.

A user is compared with the conversations of people if there are any, else with all other users together. The
difference of a measure is the user's mean minus that of the reference. Its interval is from draws of goals, the same
for both sides: users mostly play the same goals, and a goal that is hard for one is hard for the others. The distance
says how far a user is from the reference over all measures:

    distance = mean over measures of min(|mean_user - mean_reference| / sd, 3),
    sd = sqrt((variance_user + variance_reference) / 2)

with the variances over goals (n - 1): the mean absolute effect size (Cohen's d), in which no measure counts more than
3. A measure that one side lacks is left out. Chance alone makes it greater than 0, so it has no interval. What chance
gives stands beside it: the mean and the 95th percentile of the distance over `_PERMUTED` permutations of who is the
user and who the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from collab.randomness import RngKey
from collab.reports.results import BOOTSTRAP_SAMPLES, PERCENTILES, summarise
from collab.reports.tables import MISSING, Row, estimate_cell, number

Values = Mapping[str, float | None]  # measure -> value, of one conversation

_MOST = 3.0  # that one measure counts in the distance
_PERMUTED = 200
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
        `distance`: name -> `{mean, chance, chance_95th, n}`, n the number of measures; `reference`.

    Raises:
        BadInput: A value is not finite.
    """
    scores: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for name, conversations in rows.items():
        for goal, values in conversations:
            for measure, value in values.items():
                scores.setdefault(name, {}).setdefault(measure, {}).setdefault(goal, []).append(value)
    users = summarise(scores, baseline="", seed=seed, aggregates={})["policies"]
    goals = list(dict.fromkeys(goal for conversations in rows.values() for goal, _ in conversations))
    tables = {name: _by_goal(conversations, goals) for name, conversations in rows.items()}
    difference, distance = {}, {}
    for name, table in tables.items():
        others = [reference] if reference else [key for key in tables if key != name]
        if name == reference or not others:
            continue
        sides = table[None], np.array([tables[other] for other in others])
        difference[name] = _difference(*sides, [*users[name]], seed)
        distance[name] = _distance(*sides, [*users[name]], seed)
    return {"users": users, "difference": difference, "distance": distance, "reference": reference}


def _by_goal(conversations: Sequence[tuple[str, Values]], goals: Sequence[str]) -> np.ndarray:
    """Means over the conversations of each goal, [goals, measures]; nan where there is no value."""
    rows: dict[str, list[list[float]]] = {}
    for goal, values in conversations:
        rows.setdefault(goal, []).append([np.nan if value is None else value for value in values.values()])
    nothing = [[np.nan] * len(conversations[0][1])]
    with _quietly():
        return np.array([np.nanmean(rows.get(goal, nothing), axis=0) for goal in goals])


def _difference(user: np.ndarray, reference: np.ndarray, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Of each measure; `user` and `reference` are [users, goals, measures], with the same goals."""
    sides = _shared(user, reference)
    goals = sides[0].shape[1]
    draws = RngKey(seed, role="bootstrap").stream()
    times = draws.multinomial(goals, np.full(goals, 1 / goals), size=BOOTSTRAP_SAMPLES)  # that each goal is drawn
    means, sampled = [], []
    for side in sides:
        sums, counts = np.nansum(side, axis=0), (~np.isnan(side)).sum(axis=0)
        with _quietly():
            means.append(sums.sum(axis=0) / counts.sum(axis=0))
            sampled.append((times @ sums) / (times @ counts))
    n = _goals_of(user, reference)
    return {
        name: _entry(means[0][i] - means[1][i], sampled[0][:, i] - sampled[1][:, i], n[i])
        for i, name in enumerate(names)
    }


def _distance(user: np.ndarray, reference: np.ndarray, names: Sequence[str], seed: int) -> dict[str, Any]:
    """The distance, and what chance gives; `user` and `reference` are [users, goals, measures]."""
    n = _goals_of(user, reference)
    compared = [i for i, name in enumerate(names) if name not in _NOT_COMPARED and n[i]]
    ours, theirs = (side.reshape(-1, side.shape[-1])[:, compared] for side in (user, reference))
    ours, theirs = (side[~np.isnan(side).all(axis=1)] for side in (ours, theirs))
    pooled, draws = np.concatenate([ours, theirs]), RngKey(seed, role="permutation").stream()
    with _quietly():
        distance, permuted = np.nanmean(_effects(ours, theirs)), []
        for _ in range(_PERMUTED):
            order = draws.permutation(len(pooled))
            permuted.append(np.nanmean(_effects(pooled[order[: len(ours)]], pooled[order[len(ours) :]])))
        chance, most = np.nanmean(permuted), np.nanpercentile(permuted, 95)
    if np.isnan(distance) or np.isnan(chance):
        return {"mean": None, "chance": None, "chance_95th": None, "n": 0}
    return {"mean": float(distance), "chance": float(chance), "chance_95th": float(most), "n": len(compared)}


def _shared(user: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides without the goals that neither has."""
    known = ~(np.isnan(user).all(axis=(0, 2)) & np.isnan(reference).all(axis=(0, 2)))
    return user[:, known], reference[:, known]


def _goals_of(user: np.ndarray, reference: np.ndarray) -> list[int]:
    """For each measure, on how many goals it is known on the side that has fewer of them."""
    ours, theirs = ((~np.isnan(side)).any(axis=0).sum(axis=0) for side in (user, reference))
    return [int(count) for count in np.minimum(ours, theirs)]


def _effects(user: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The effect size of each measure, cut at `_MOST`: [goals, measures] -> [measures]."""
    with _quietly():
        gap = np.abs(np.nanmean(user, axis=0) - np.nanmean(reference, axis=0))
        spread = np.sqrt((np.nanvar(user, axis=0, ddof=1) + np.nanvar(reference, axis=0, ddof=1)) / 2)
        return np.where(gap < 1e-12, 0.0, np.minimum(gap / spread, _MOST)) + 0 * gap  # nan stays nan


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
    cells = [_distance_cell(report["distance"][name]) if part else ("", "") for name, part in columns]
    rows.append(Row("distance", tuple(cells)))
    totals = report["totals"]
    for total in dict.fromkeys(key for entry in totals.values() for key in entry):
        cells = [("", "") if part else (_total(totals[name][total]), "") for name, part in columns]
        rows.append(Row(total.replace("_", " "), tuple(cells)))
    titles = [f"{name} {part}".strip() for name, part in columns]
    counts = ", ".join(f"{name} {count}" for name, count in goals.items())
    caption = (
        f"means over goals ({counts}; fewer where n is given) with their 95 % bootstrap intervals; the distance is a "
        "mean of effect sizes, 0 is alike, with its mean and its 95th percentile by chance"
    )
    return ["measure", *titles], rows, caption


def _distance_cell(entry: Mapping[str, Any]) -> tuple[str, str]:
    if entry["mean"] is None:
        return MISSING, ""
    chance, most = (number(entry[name], "distance") for name in ("chance", "chance_95th"))
    return number(entry["mean"], "distance"), f"chance {chance}, {most}"


def _total(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
