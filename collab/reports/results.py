"""From the scores of conversations to `results.json`: means, 95 % intervals, differences to a baseline.

The unit is the goal. A goal's value is the mean over its conversations, and a policy's mean is the mean over its goals.
The bootstrap resamples goals: conversations about one goal are alike, and resampling them as if they were independent
would make every interval too narrow.

Intervals are percentile bootstrap intervals (Efron 1979): the 2.5th and the 97.5th percentile over `BOOTSTRAP_SAMPLES`
draws of n goals with replacement. A difference to the baseline is paired: it resamples the per-goal differences of the
goals that both policies have, so it does not depend on how hard the goals are.

An aggregate is a figure of all goals at once that is not a mean over goals, such as a macro F1. It is computed anew for
each resample of goals. The difference of two policies uses the same goals for both.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from collab.randomness import RngKey
from collab.util.errors import BadInput

# metric -> goal id -> one value per conversation about that goal; None is a missing value
PolicyScores = dict[str, dict[str, list[float | None]]]
# metric -> values of goals [..., goals], nan where a goal has none; returns a figure for each [...], nan if undefined
Aggregate = Callable[[Mapping[str, np.ndarray]], np.ndarray]

BOOTSTRAP_SAMPLES = 2000  # resamples of goals behind each interval
PERCENTILES = (2.5, 97.5)


def summarise(
    scores: Mapping[str, PolicyScores], *, baseline: str, seed: int, aggregates: Mapping[str, Aggregate]
) -> dict[str, Any]:
    """The parts "policies" and "difference" of `results.json`.

    The numbers of a row depend on its own scores, those of the baseline, and the seed. They do not depend on the other
    rows or on the order of goals.

    Args:
        scores: Policy name -> its scores, in the order of the table's rows.
        baseline: The policy that the others are compared with. If it is not among the rows, "difference" is empty.
        seed: The run's seed.
        aggregates: Name -> function. Its figure stands beside the metrics of each policy.

    Raises:
        BadInput: A value is NaN or infinite.
    """
    values = {
        policy: {metric: _goal_means(goals, f"{metric} of {policy}") for metric, goals in metrics.items()}
        for policy, metrics in scores.items()
    }
    policies: dict[str, dict[str, Any]] = {}
    difference: dict[str, dict[str, Any]] = {}
    for policy, metrics in values.items():
        policies[policy] = {metric: _mean(goals, seed) for metric, goals in metrics.items()}
        policies[policy] |= {name: aggregate_of(function, [metrics], seed) for name, function in aggregates.items()}
        if baseline in values and policy != baseline:
            base = values[baseline]
            paired = {metric: _paired(goals, base[metric]) for metric, goals in metrics.items() if metric in base}
            difference[policy] = {metric: _mean(goals, seed) for metric, goals in paired.items()}
            for name, function in aggregates.items():
                difference[policy][name] = aggregate_of(function, [metrics, base], seed)
    return {"policies": policies, "difference": difference}


def summarise_rows(
    scores: Mapping[str, PolicyScores], *, baseline: str, seed: int, aggregates: Mapping[str, Aggregate]
) -> dict[str, Any]:
    """As `summarise`, for rows of several users (`POLICY@USER`), each compared with the baseline's row of its user."""
    found: dict[str, Any] = {"policies": {}, "difference": {}}
    for user in dict.fromkeys(map(user_of, scores)):
        rows = {name: values for name, values in scores.items() if user_of(name) == user}
        base = f"{baseline}@{user}" if user else baseline
        part = summarise(rows, baseline=base, seed=seed, aggregates=aggregates)
        found = {name: found[name] | part[name] for name in found}
    return found


def user_of(row: str) -> str:
    """The user of `evaluation.users` that plays in a row of the table; "" for the config's own."""
    return row.partition("@")[2]


def _goal_means(goals: Mapping[str, list[float | None]], where: str) -> dict[str, float]:
    """Goal id -> mean over its conversations that have a value; goals without any are left out."""
    means = {}
    for goal, values in goals.items():
        present = [float(value) for value in values if value is not None]
        if not all(map(math.isfinite, present)):
            raise BadInput(f"{where}, goal {goal!r}, is {present}: scores must be finite; give None for a missing one.")
        if present:
            means[goal] = sum(present) / len(present)
    return means


def _paired(goals: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    return {goal: value - base[goal] for goal, value in goals.items() if goal in base}


def _mean(goals: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Estimate of the mean over goals."""
    values = np.array([goals[goal] for goal in sorted(goals)])
    return _estimate(lambda chosen: values[chosen].mean(axis=-1), len(values), seed)


def aggregate_of(
    function: Aggregate, policies: Sequence[Mapping[str, Mapping[str, float]]], seed: int
) -> dict[str, Any]:
    """Estimate of the aggregate of one policy, or of the first one's minus the second one's on the goals of both.

    Args:
        function: Gives the figure.
        policies: One or two, each metric -> goal id -> value.
        seed: The run's seed.

    Returns:
        mean, ci95 and n, as in `results.json`.
    """
    goals = sorted(set.intersection(*({goal for one in metrics.values() for goal in one} for metrics in policies)))
    arrays = [{m: np.array([one.get(goal, np.nan) for goal in goals]) for m, one in p.items()} for p in policies]

    def figure(chosen: np.ndarray) -> np.ndarray:
        def missing() -> np.ndarray:  # a metric of a kind of goal of which there is none
            return np.full(chosen.shape, np.nan)

        drawn = (defaultdict(missing, {m: values[chosen] for m, values in metrics.items()}) for metrics in arrays)
        first, *others = map(function, drawn)
        return first - others[0] if others else first

    return _estimate(figure, len(goals), seed)


def _estimate(figure: Callable[[np.ndarray], np.ndarray], n: int, seed: int) -> dict[str, Any]:
    """Mean, interval and n of a figure of n goals.

    Args:
        figure: Indices of goals [..., n] -> a figure for each [...], nan if undefined.
        n: The number of goals.
        seed: The run's seed. Each call draws the same stream, so rows do not influence each other.
    """
    missing = {"mean": None, "ci95": [None, None], "n": 0}
    if n == 0:
        return missing
    value = float(figure(np.arange(n)))
    resampled = figure(RngKey(seed, role="bootstrap").stream().integers(n, size=(BOOTSTRAP_SAMPLES, n)))
    resampled = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(resampled):
        return missing
    low, high = np.percentile(resampled, PERCENTILES)
    return {"mean": value, "ci95": [float(low), float(high)], "n": n}


def baseline_of(results: Mapping[str, Any], row: str = "") -> str | None:
    """The row that valid results compare `row` with: the one of its user without a difference.

    None if nothing is compared.
    """
    difference = results.get("difference") or {}
    rows = (name for name in results["policies"] if name not in difference and user_of(name) == user_of(row))
    return next(rows, None) if difference else None


def validate_results(obj: Any) -> None:
    """Check that `obj` is a whole `results.json`.

    Raises:
        BadInput: Names the first wrong place, its value and the rule.
    """
    _need(isinstance(obj, dict), "the file", "must hold one object", obj)
    for part in ("policies", "config", "seconds"):
        _need(isinstance(obj.get(part), dict), part, "must be an object", obj.get(part))
    policies, difference = obj["policies"], obj.get("difference", {})
    _need(bool(policies), "policies", "must have one policy at least", policies)
    _need(isinstance(difference, dict), "difference", "must be an object", difference)
    for part, rows in (("policies", policies), ("difference", difference)):
        for policy, metrics in rows.items():
            place = f"{part}.{policy}"
            _need(isinstance(metrics, dict), place, "must be an object of metrics", metrics)
            for metric, entry in metrics.items():
                _check_estimate(entry, f"{place}.{metric}")
    for policy, metrics in policies.items():
        _need("reward" in metrics, f"policies.{policy}", "must have a reward", list(metrics))
    for policy, metrics in difference.items():
        place, own = f"difference.{policy}", policies.get(policy, {})
        _need(policy in policies, place, "must be one of the policies", list(policies))
        _need(metrics.keys() <= own.keys(), place, "must have metrics of that policy alone", list(metrics))
    if difference:
        users = [user_of(policy) for policy in policies if policy not in difference]
        complete = sorted(users) == sorted({user_of(policy) for policy in policies})
        _need(complete, "difference", "must have every policy but the baseline", list(difference))
    for phase, value in obj["seconds"].items():
        _need(_is_number(value) and value >= 0, f"seconds.{phase}", "must be a number of seconds", value)


def _check_estimate(entry: Any, place: str) -> None:
    whole = isinstance(entry, dict) and entry.keys() >= {"mean", "ci95", "n"}
    _need(whole, place, "must be an object with mean, ci95 and n", entry)
    mean, interval, n = entry["mean"], entry["ci95"], entry["n"]
    _need(isinstance(n, int) and n >= 0, f"{place}.n", "must be a number of goals", n)
    _need(isinstance(interval, list) and len(interval) == 2, f"{place}.ci95", "must be a list of two", interval)
    if n == 0:
        _need([mean, *interval] == [None] * 3, place, "must have a null mean and ci95 where n is 0", entry)
    else:
        _need(_is_number(mean), f"{place}.mean", "must be a finite number", mean)
        rising = all(map(_is_number, interval)) and interval[0] <= interval[1]
        _need(rising, f"{place}.ci95", "must be two finite numbers that rise", interval)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _need(holds: bool, place: str, rule: str, value: Any) -> None:
    if not holds:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        raise BadInput(f"not a results.json: {place} ({shown}) {rule}. Give a file that train.py or evaluate.py wrote.")
