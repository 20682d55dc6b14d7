"""From the scores of single conversations to `results.json`: means, 95 % intervals, differences to a baseline.

The goal is the unit of everything here. A goal's value is the mean over its conversations, a policy's mean is the mean
over its goals, and the bootstrap resamples goals: conversations on one goal are alike, and resampling them as if they
were independent would make every interval too narrow.

The intervals are percentile bootstrap intervals (Efron 1979): the 2.5th and 97.5th percentile of the means of
`samples` draws of n goals with replacement. The difference to the baseline is paired: it resamples the per-goal
differences of the goals that both policies have, so how hard a goal is drops out of it.

An aggregate is a figure of all goals at once that is no mean over them, such as a macro F1. Its interval resamples
goals as well, and takes the aggregate of each resample; that of its difference takes both policies' on the same goals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collab.randomness import RngKey
from collab.util.errors import BadInput
from collab.util.files import write_json

# metric -> goal id -> one value per conversation on that goal; None where it could not be had
PolicyScores = dict[str, dict[str, list[float | None]]]
# metric -> values of goals [..., goals], nan where a goal has none; returns a figure for each [...], nan if it has none
Aggregate = Callable[[Mapping[str, np.ndarray]], np.ndarray]

SOURCE = "interactivity_source"  # the one entry of a policy that is a name, not a number
BOOTSTRAP_SAMPLES = 2000  # resamples of goals behind each interval
_PERCENTILES = (2.5, 97.5)


def summarise(
    scores: Mapping[str, PolicyScores],
    *,
    baseline: str = "base",
    seed: int,
    interactivity_source: str,
    aggregates: Mapping[str, Aggregate] | None = None,
    samples: int = BOOTSTRAP_SAMPLES,
) -> dict[str, Any]:
    """The parts "policies" and "difference" of `results.json`.

    A row's numbers depend on its own scores (and the baseline's) and on the seed, never on which other rows there are
    or on the order of goals.

    Args:
        scores: Policy name -> its scores, in the order of the table's rows.
        baseline: The policy that the others are compared with; without it among the rows "difference" is empty.
        seed: The run's seed.
        interactivity_source: What `interactivity` was read off, e.g. "agenda".
        aggregates: Name -> function; the figure stands beside the metrics of each policy.
        samples: Bootstrap resamples behind each interval.

    Raises:
        BadInput: A value is NaN or infinite.
    """
    values = {
        policy: {metric: _goal_means(goals, f"{metric} of {policy}") for metric, goals in metrics.items()}
        for policy, metrics in scores.items()
    }
    policies: dict[str, dict[str, Any]] = {}
    for policy, metrics in values.items():
        policies[policy] = {metric: _estimate(goals, samples, seed) for metric, goals in metrics.items()}
        for name, aggregate in (aggregates or {}).items():
            policies[policy][name] = _aggregate(aggregate, [metrics], samples, seed)
        if "interactivity" in metrics:
            policies[policy][SOURCE] = interactivity_source
    difference: dict[str, dict[str, Any]] = {}
    if baseline in values:
        base = values[baseline]
        for policy, metrics in values.items():
            if policy != baseline:
                difference[policy] = {
                    metric: _estimate(_paired(goals, base[metric]), samples, seed)
                    for metric, goals in metrics.items()
                    if metric in base
                }
                for name, aggregate in (aggregates or {}).items():
                    difference[policy][name] = _aggregate(aggregate, [metrics, base], samples, seed)
    return {"policies": policies, "difference": difference}


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


def _estimate(goals: Mapping[str, float], samples: int, seed: int) -> dict[str, Any]:
    """Mean over goals with its interval. Every call draws the same stream, so no row disturbs another."""
    n = len(goals)
    if n == 0:
        return {"mean": None, "ci95": [None, None], "n": 0}
    values = np.array([goals[goal] for goal in sorted(goals)])
    drawn = RngKey(seed, role="bootstrap").stream().integers(n, size=(samples, n))
    low, high = np.percentile(values[drawn].mean(axis=1), _PERCENTILES)
    return {"mean": float(values.mean()), "ci95": [float(low), float(high)], "n": n}


def _aggregate(
    aggregate: Aggregate, policies: Sequence[Mapping[str, Mapping[str, float]]], samples: int, seed: int
) -> dict[str, Any]:
    """Aggregate of one policy, or the first one's minus the second one's on the goals that both have."""
    goals = sorted(set.intersection(*({goal for one in metrics.values() for goal in one} for metrics in policies)))
    n = len(goals)
    drawn = RngKey(seed, role="bootstrap").stream().integers(n, size=(samples, n)) if n else np.zeros((samples, 0), int)

    def figure(chosen: np.ndarray) -> np.ndarray:
        found = [
            aggregate({m: np.array([one.get(goal, np.nan) for goal in goals])[chosen] for m, one in metrics.items()})
            for metrics in policies
        ]
        return found[0] - found[1] if len(found) > 1 else found[0]

    value = float(figure(np.arange(n)))
    spread = figure(drawn)
    spread = spread[~np.isnan(spread)]  # resamples of which the aggregate has no figure
    if math.isnan(value) or not len(spread):
        return {"mean": None, "ci95": [None, None], "n": 0}
    low, high = np.percentile(spread, _PERCENTILES)
    return {"mean": value, "ci95": [float(low), float(high)], "n": n}


def write_results(
    path: Path, policies_and_difference: Mapping[str, Any], config: dict[str, Any], seconds: dict[str, float]
) -> None:
    """Write `results.json` in one move: a reader finds the old file or the whole new one.

    Args:
        path: The file; its folder is made where it is missing.
        policies_and_difference: What `summarise` returned.
        config: The resolved config, plain types only.
        seconds: Phase -> wall time in seconds.
    """
    write_json(path, {**policies_and_difference, "config": config, "seconds": seconds})


def baseline_of(results: Mapping[str, Any]) -> str | None:
    """The policy that valid results compare with: the one without a difference. None if nothing is compared."""
    difference = results.get("difference")
    return next(policy for policy in results["policies"] if policy not in difference) if difference else None


def validate_results(obj: Any) -> None:
    """Check that `obj` is a whole `results.json`.

    Raises:
        BadInput: Names the first wrong place, what stands there and what should.
    """
    _need(isinstance(obj, dict), "the file", "must hold one object", obj)
    for part in ("policies", "config", "seconds"):
        _need(part in obj, part, "is missing")
        _need(isinstance(obj[part], dict), part, "must be an object", obj[part])
    policies, difference = obj["policies"], obj.get("difference", {})
    _need(bool(policies), "policies", "must have one policy at least", policies)
    for policy, metrics in policies.items():
        place = f"policies.{policy}"
        _need(isinstance(metrics, dict), place, "must be an object of metrics", metrics)
        _need("reward" in metrics, f"{place}.reward", "is missing")
        _need("interactivity" not in metrics or SOURCE in metrics, f"{place}.{SOURCE}", "is missing")
        for metric, entry in metrics.items():
            if metric == SOURCE:
                named = isinstance(entry, str) and entry != ""
                _need(named, f"{place}.{metric}", "must be a name like 'agenda'", entry)
            else:
                _check_estimate(entry, f"{place}.{metric}")
    _need(isinstance(difference, dict), "difference", "must be an object", difference)
    for policy, metrics in difference.items():
        place = f"difference.{policy}"
        _need(policy in policies, place, f"must be one of the policies ({', '.join(policies)})")
        _need(isinstance(metrics, dict), place, "must be an object of metrics", metrics)
        for metric, entry in metrics.items():
            _need(metric in policies[policy], f"{place}.{metric}", "must be a metric of the policy too")
            _check_estimate(entry, f"{place}.{metric}")
    if difference:
        complete = len(difference) == len(policies) - 1
        _need(complete, "difference", "must have every policy but the baseline", list(difference))
    for phase, value in obj["seconds"].items():
        _need(_is_number(value) and value >= 0, f"seconds.{phase}", "must be a number of seconds", value)


def _check_estimate(entry: Any, place: str) -> None:
    _need(isinstance(entry, dict), place, "must be an object with mean, ci95 and n", entry)
    for part in ("mean", "ci95", "n"):
        _need(part in entry, f"{place}.{part}", "is missing")
    mean, interval, n = entry["mean"], entry["ci95"], entry["n"]
    _need(isinstance(n, int) and not isinstance(n, bool) and n >= 0, f"{place}.n", "must be a number of goals", n)
    _need(isinstance(interval, list) and len(interval) == 2, f"{place}.ci95", "must be a list of two", interval)
    if n == 0:
        _need(mean is None, f"{place}.mean", "must be null where n is 0", mean)
        _need(interval == [None, None], f"{place}.ci95", "must be [null, null] where n is 0", interval)
    else:
        _need(_is_number(mean), f"{place}.mean", "must be a finite number", mean)
        _need(all(map(_is_number, interval)), f"{place}.ci95", "must be two finite numbers", interval)
        _need(interval[0] <= interval[1], f"{place}.ci95", "must rise", interval)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _need(holds: bool, place: str, rule: str, *found: Any) -> None:
    """Raise BadInput unless `holds`; `found` is what stands at `place`, if anything."""
    if not holds:
        shown = "".join(f" ({repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + '...'})" for value in found)
        raise BadInput(f"not a results.json: {place}{shown} {rule}. Give a file that train.py or evaluate.py wrote.")
