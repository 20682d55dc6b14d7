"""Several tasks in one table: how the same policies do on each, and how they differ from the baseline.

A line is one figure of one task, and the lines of a task stand together. A column is a row of the tasks' own tables;
beside it is the difference to the baseline, paired by goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group

from collab.reports.results import baseline_of
from collab.reports.tables import Row, estimate_cell, label_of, markdown, num_goals_of, rich_table

_WATCHED = "over_asking"  # shown though it has no weight
_CAPTION = "mean over goals with its 95 % bootstrap interval; n is the number of goals; differences are paired by goal"


def shown_metrics(results: Mapping[str, Any]) -> list[str]:
    """The figures of a task in the table: R*, the metrics it is made of, aggregates, over-asking and tokens.

    Args:
        results: A whole `results.json`.
    """
    task = results["config"]["task"]
    weighted = [name for name, metric in task["metrics"].items() if metric["weight"] and name != "token_penalty"]
    present = {metric for metrics in results["policies"].values() for metric in metrics}
    names = ["reward", *weighted, *task["aggregates"], _WATCHED, "assistant_tokens"]
    return [name for name in names if name in present]


def transfer_table(tasks: Mapping[str, Mapping[str, Any]]) -> Group:
    """The table for the terminal; `tasks` has the results of each task, a whole `results.json`."""
    return rich_table(*_parts(tasks), _CAPTION)


def transfer_markdown(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The same table in Markdown."""
    return markdown(*_parts(tasks), _CAPTION)


def _parts(tasks: Mapping[str, Mapping[str, Any]]) -> tuple[Sequence[str], Sequence[Row]]:
    """Titles of the columns, and the lines."""
    columns: dict[str, tuple[str, str]] = {}  # title -> part of the results, row in it
    for results in tasks.values():
        for policy in results["policies"]:
            columns[policy] = ("policies", policy)
            if policy in results.get("difference", {}):
                columns[f"{policy} − {baseline_of(results, policy)}"] = ("difference", policy)
    rows = []
    for task, results in tasks.items():
        num_goals, metrics = num_goals_of(results["policies"]), shown_metrics(results)
        for metric in metrics:
            cells = tuple(
                estimate_cell(results[part].get(row, {}).get(metric), metric, num_goals, signed=part == "difference")
                for part, row in columns.values()
            )
            rows.append(Row(f"{task} ({num_goals}) {label_of(metric)}", cells, section_ends=metric == metrics[-1]))
    return ["task (n), figure", *columns], rows
