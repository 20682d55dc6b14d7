"""Several seeds in one table: `collab merge seed1/results.json seed2/results.json [--output merged.json]`.

For each policy and metric: the mean over seeds, the smallest and the largest seed, and each seed's own value with its
95 % interval. The interval of a seed shows how much that run's mean depends on the goals, with its trained weights
fixed. The range over seeds shows how much the result changes when everything is run again with another seed. There is
no pooled interval: all seeds play the same goals, so the runs are not independent samples of goals, and a few seeds
tell little about the spread over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from collab.reports.results import baseline_of, validate_results
from collab.reports.tables import (
    MISSING,
    Row,
    columns_of,
    estimate_cell,
    header_of,
    markdown,
    num_goals_of,
    number,
    rich_table,
)
from collab.util.diff import differences
from collab.util.errors import BadInput
from collab.util.files import write_json

_OWN = ("seed", "output_dir")  # config fields that may differ between the runs


def read_results(path: Path) -> dict[str, Any]:
    """One valid results.json.

    Raises:
        BadInput: Names the file and what is wrong: it cannot be read, is not JSON, or its first invalid place.
    """
    try:
        obj = json.loads(path.read_text(encoding="utf-8"))
        validate_results(obj)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}). Give results.json files that exist.") from error
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}). Give a file that train.py or evaluate.py wrote.") from error
    return obj


def merge(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge valid results.

    Args:
        runs: Label of a run, e.g. "seed 1" -> its results.

    Returns:
        `{"baseline", "policies": {name: {metric: {"mean", "min", "max", "runs": {label: estimate}}}}, "difference":
        the same, "runs": {label: {"config", "seconds"}}}`. A policy or metric that only some runs have lists those; an
        estimate is the `{"mean", "ci95", "n"}` of that run.

    Raises:
        BadInput: Runs compare with different baselines.
    """
    baselines = {label: base for label, results in runs.items() if (base := baseline_of(results)) is not None}
    if len(set(baselines.values())) > 1:
        named = ", ".join(f"{label} with {base}" for label, base in baselines.items())
        raise BadInput(f"runs compare with different baselines ({named}): merge only runs with the same one.")
    return {
        "baseline": next(iter(baselines.values()), None),
        "policies": _merge_part({label: results["policies"] for label, results in runs.items()}),
        "difference": _merge_part({label: results.get("difference", {}) for label, results in runs.items()}),
        "runs": {label: {part: results[part] for part in ("config", "seconds")} for label, results in runs.items()},
    }


def _merge_part(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for label, policies in parts.items():
        for policy, metrics in policies.items():
            for metric, estimate in metrics.items():
                entry = merged.setdefault(policy, {}).setdefault(metric, dict.fromkeys(("mean", "min", "max"), None))
                entry.setdefault("runs", {})[label] = estimate
    for metrics in merged.values():
        for entry in metrics.values():
            means = [estimate["mean"] for estimate in entry["runs"].values() if estimate["mean"] is not None]
            entry["mean"] = sum(means) / len(means) if means else None
            entry["min"], entry["max"] = min(means, default=None), max(means, default=None)
    return merged


def _rows(merged: Mapping[str, Any], columns: Sequence[str], num_goals: int) -> list[Row]:
    """For each policy and each difference: the mean with its range over runs, then each run."""
    rows = []
    for part, signed in (("policies", False), ("difference", True)):
        for policy, metrics in merged[part].items():
            cells = tuple(_range_cell(metrics.get(metric), metric, signed) for metric in columns)
            base = baseline_of(merged, policy)
            rows.append(Row(f"{policy} − {base}" if signed else policy, cells))
            labels = [label for label in merged["runs"] if any(label in entry["runs"] for entry in metrics.values())]
            for label in labels:
                own = {metric: entry["runs"].get(label) for metric, entry in metrics.items()}
                cells = tuple(estimate_cell(own.get(metric), metric, num_goals, signed=signed) for metric in columns)
                rows.append(Row(f"· {label}", cells, section_ends=label == labels[-1]))
    return rows


def _range_cell(entry: Mapping[str, Any] | None, metric: str, signed: bool) -> tuple[str, str]:
    if entry is None or entry["mean"] is None:
        return MISSING, ""
    low, high = number(entry["min"], metric), number(entry["max"], metric)
    return number(entry["mean"], metric, signed=signed), f"({low}..{high})"


def _warnings(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    warnings = []
    (first, reference), *others = runs.items()
    for label, results in others:
        fields = [key for key, *_ in differences(reference["config"], results["config"], _OWN.__contains__)]
        if fields:
            warnings.append(f"{label} differs from {first} not only by its seed: {', '.join(fields)}.")
    if len({results["config"].get("seed") for results in runs.values()}) < len(runs):
        warnings.append("some runs share a seed: min..max is then not the spread over seeds.")
    return warnings


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="collab merge",
        description="Put several seeds in one table: per policy and metric the mean and the range over seeds, then "
        "each seed with its own 95 % interval over goals.",
        epilog="example: collab merge outputs/seed1/results.json outputs/seed2/results.json",
    )
    parser.add_argument("results", nargs="+", type=Path, help="results.json of train.py or evaluate.py, one a seed")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the merged numbers there, as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown, for a document")
    arguments = parser.parse_args(argv)
    try:
        runs = _read_all(arguments.results)
        merged = merge(runs)
        if arguments.output is not None:
            _write(arguments.output, merged, arguments.results)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in _warnings(runs):
        print(f"warning: {warning}", file=sys.stderr)
    columns = columns_of(merged["policies"])
    rows = _rows(merged, columns, max(num_goals_of(results["policies"]) for results in runs.values()))
    caption = "mean over runs (smallest..largest); below it each run: mean over goals and its 95 % bootstrap interval"
    if arguments.markdown:
        print(markdown(header_of(columns), rows, caption), end="")
    else:
        Console().print(rich_table(header_of(columns), rows, caption))
    return 0


def _read_all(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Label -> results. A label is the seed, with the path where several runs have that seed."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise BadInput("a file is given twice: give each run once, it would count double.")
    read = {path: read_results(path) for path in paths}
    seeds = [results["config"].get("seed") for results in read.values()]
    labels = [
        f"seed {seed}" if seeds.count(seed) == 1 else f"seed {seed} ({path})"
        for seed, path in zip(seeds, paths, strict=True)
    ]
    return dict(zip(labels, read.values(), strict=True))


def _write(output: Path, merged: Mapping[str, Any], inputs: Sequence[Path]) -> None:
    if output.resolve() in {path.resolve() for path in inputs}:
        raise BadInput(f"--output {output} is one of the files to be merged: name another file.")
    try:
        write_json(output, merged)
    except OSError as error:
        raise BadInput(f"--output {output}: cannot be written ({error.strerror}). Name a file that can.") from error
