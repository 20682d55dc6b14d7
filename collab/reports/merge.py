"""Several seeds in one table: `collab merge seed1/results.json seed2/results.json [--output merged.json]`.

For each policy and metric: the mean over seeds, the smallest and largest seed, and each seed's own value with its own
95 % interval. An interval belongs to one seed: it says how far that run's mean would move on other goals, the trained
weights as they are. min..max says how far it moved when everything was run again with another seed. No pooled interval
is given: every seed plays the same goals, so the runs are not independent samples of goals, and few seeds say little
about the spread of seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from collab.reports.results import SOURCE, baseline_of, validate_results
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

_OWN = ("seed", "output_dir")  # config fields in which runs to be merged are meant to differ


def read_results(path: Path) -> dict[str, Any]:
    """One valid results.json.

    Raises:
        BadInput: Names the file and what is wrong: not there, not JSON, or the first place that is not as it should be.
    """
    try:
        obj = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}). Give results.json files that exist.") from error
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}). Give a file that train.py or evaluate.py wrote.") from error
    try:
        validate_results(obj)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    return obj


def merge(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge valid results.

    Args:
        runs: Label of a run, e.g. "seed 1" -> its results.

    Returns:
        `{"baseline", "policies": {name: {metric: {"mean", "min", "max", "runs": {label: estimate}}}}, "difference":
        the same, "runs": {label: {"config", "seconds"}}}`. A policy or metric that only some runs have lists those; an
        estimate is the `{"mean", "ci95", "n"}` of that run; `interactivity_source` joins by commas what runs say.

    Raises:
        BadInput: Runs compare with different baselines.
    """
    baselines = {label: base for label, results in runs.items() if (base := baseline_of(results)) is not None}
    if len(set(baselines.values())) > 1:
        told = ", ".join(f"{label} with {base}" for label, base in baselines.items())
        raise BadInput(f"runs compare with different baselines ({told}): merge only runs with the same one.")
    return {
        "baseline": next(iter(baselines.values()), None),
        "policies": _merge_part({label: results["policies"] for label, results in runs.items()}),
        "difference": _merge_part({label: results.get("difference", {}) for label, results in runs.items()}),
        "runs": {label: {part: results[part] for part in ("config", "seconds")} for label, results in runs.items()},
    }


def _merge_part(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}  # policy -> metric -> run -> what it has there
    for label, policies in parts.items():
        for policy, metrics in policies.items():
            for metric, entry in metrics.items():
                found.setdefault(policy, {}).setdefault(metric, {})[label] = entry
    return {
        policy: {
            metric: ", ".join(dict.fromkeys(entries.values())) if metric == SOURCE else _over_runs(entries)
            for metric, entries in metrics.items()
        }
        for policy, metrics in found.items()
    }


def _over_runs(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    means = [entry["mean"] for entry in entries.values() if entry["mean"] is not None]
    return {
        "mean": sum(means) / len(means) if means else None,
        "min": min(means, default=None),
        "max": max(means, default=None),
        "runs": dict(entries),
    }


def _rows(runs: Mapping[str, Mapping[str, Any]], merged: Mapping[str, Any]) -> list[Row]:
    """Per policy and per difference: the mean with its range over runs, then each run by itself."""
    num_goals = max(num_goals_of(results["policies"], results.get("difference", {})) for results in runs.values())
    columns = columns_of(merged["policies"])
    rows = []
    for part, signed in (("policies", False), ("difference", True)):
        for policy, metrics in merged[part].items():
            summary = tuple(_range_cell(metrics.get(metric), metric, signed) for metric in columns)
            rows.append(Row(f"{policy} − {merged['baseline']}" if signed else policy, summary))
            own_metrics = {label: results.get(part, {}).get(policy) for label, results in runs.items()}
            present = {label: own for label, own in own_metrics.items() if own is not None}
            for label, own in present.items():
                cells = tuple(estimate_cell(own.get(metric), metric, num_goals, signed=signed) for metric in columns)
                rows.append(Row(f"· {label}", cells, section_ends=label == [*present][-1]))
    return rows


def _range_cell(entry: Mapping[str, Any] | None, metric: str, signed: bool) -> tuple[str, str]:
    if entry is None or entry["mean"] is None:
        return MISSING, ""
    low, high = number(entry["min"], metric), number(entry["max"], metric)
    return number(entry["mean"], metric, signed=signed), f"({low}..{high})"


def _label(path: Path, results: Mapping[str, Any], seeds: Sequence[Any]) -> str:
    """The name of a run: `seed 1` where it alone has that seed, else with the file's name."""
    seed = results["config"].get("seed")
    if seed is None:
        return str(path)
    return f"seed {seed}" if seeds.count(seed) == 1 else f"seed {seed} ({path})"


def _warnings(runs: Mapping[str, Mapping[str, Any]], merged: Mapping[str, Any]) -> list[str]:
    found = []
    (first, reference), *others = runs.items()
    for label, results in others:
        fields = [key for key, *_ in differences(reference["config"], results["config"], _OWN.__contains__)]
        if fields:
            found.append(f"{label} differs from {first} not only by its seed: {', '.join(fields)}.")
    for policy, metrics in merged["policies"].items():
        if ", " in metrics.get(SOURCE, ""):
            found.append(f"interactivity of {policy} is of several kinds ({metrics[SOURCE]}): do not compare its runs.")
    if len({results["config"].get("seed") for results in runs.values()}) < len(runs):
        found.append("some runs share a seed: min..max is then not the spread over seeds.")
    return found


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
    for warning in _warnings(runs, merged):
        print(f"warning: {warning}", file=sys.stderr)
    header, rows = header_of(merged["policies"]), _rows(runs, merged)
    caption = "mean over runs (smallest..largest); below it each run: mean over goals and its 95 % bootstrap interval"
    if arguments.markdown:
        print(markdown(header, rows, caption), end="")
    else:
        Console().print(rich_table(header, rows, caption))
    return 0


def _read_all(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    if len({path.resolve() for path in paths}) < len(paths):
        raise BadInput("a file is given twice: give each run once, it would count double.")
    read = [read_results(path) for path in paths]
    seeds = [results["config"].get("seed") for results in read]
    return {_label(path, results, seeds): results for path, results in zip(paths, read, strict=True)}


def _write(output: Path, merged: Mapping[str, Any], inputs: Sequence[Path]) -> None:
    if output.resolve() in {path.resolve() for path in inputs}:
        raise BadInput(f"--output {output} is one of the files to be merged: name another file.")
    try:
        write_json(output, merged)
    except OSError as error:
        raise BadInput(f"--output {output}: cannot be written ({error.strerror}). Name a file that can.") from error
