"""Results as tables for the terminal (rich) and for documents (Markdown).

Both are drawn from the same rows, so that they cannot disagree. Numbers are rounded for reading here only; the files
keep full precision. A score that could not be had is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from collab.reports.results import SOURCE, baseline_of

_LABELS = {"reward": "R*", "bleu": "BLEU", "macro_f1": "macro F1"}  # others go by their own name
# others come after, as they stand in the file
_ORDER = ("reward", "coverage", "bleu", "accuracy", "pass_rate", "interactivity", "assistant_tokens", "turns")
_DECIMALS = {"assistant_tokens": 0, "turns": 2}  # the rest live in about -1..1 and get three
_ABREAST = 5  # metrics beside each other that 80 columns hold
MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One line of a table: a label and, per column, a number and what qualifies it (an interval, a range)."""

    label: str
    cells: tuple[tuple[str, str], ...]
    section_ends: bool = False


def columns_of(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The metrics that any policy has, known ones first."""
    present = dict.fromkeys(metric for metrics in policies.values() for metric in metrics if metric != SOURCE)
    return [metric for metric in _ORDER if metric in present] + [metric for metric in present if metric not in _ORDER]


def number(value: float | None, metric: str, *, signed: bool = False) -> str:
    """`value` rounded as its metric is read; `signed` shows the plus of a difference."""
    return MISSING if value is None else f"{value:{'+' if signed else ''}z.{_DECIMALS.get(metric, 3)}f}"


def estimate_cell(
    entry: Mapping[str, Any] | None, metric: str, num_goals: int, *, signed: bool = False
) -> tuple[str, str]:
    """(mean, interval) of one estimate; its n is added where it falls short of `num_goals`, that of the table."""
    if entry is None:
        return MISSING, ""
    if entry["mean"] is None:
        return MISSING, "n=0"
    low, high = (number(bound, metric) for bound in entry["ci95"])
    short = f" n={entry['n']}" if entry["n"] < num_goals else ""
    return number(entry["mean"], metric, signed=signed), f"[{low}, {high}]{short}"


def num_goals_of(*parts: Mapping[str, Mapping[str, Any]]) -> int:
    """The largest n in parts ("policies", "difference") of results."""
    return max(
        (
            entry["n"]
            for part in parts
            for metrics in part.values()
            for metric, entry in metrics.items()
            if metric != SOURCE
        ),
        default=0,
    )


def results_table(results: Mapping[str, Any]) -> Group:
    """A table of valid results for a terminal of 80 columns or more.

    One row per policy and, below the line, one per difference to the baseline; mean above, 95 % interval below it.
    """
    return rich_table(header_of(results["policies"]), _results_rows(results), _results_caption(results))


def markdown_table(results: Mapping[str, Any]) -> str:
    """The same table in Markdown, `mean [lo, hi]` in each cell."""
    return markdown(header_of(results["policies"]), _results_rows(results), _results_caption(results))


def header_of(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Column titles; that of interactivity says what it was read off."""
    sources = dict.fromkeys(metrics[SOURCE] for metrics in policies.values() if SOURCE in metrics)
    titles = ["policy"]
    for metric in columns_of(policies):
        title = _LABELS.get(metric, metric.replace("_", " "))
        titles.append(f"{title} ({', '.join(sources)})" if metric == "interactivity" and sources else title)
    return titles


def _results_rows(results: Mapping[str, Any]) -> list[Row]:
    policies, difference = results["policies"], results.get("difference", {})
    columns, num_goals = columns_of(policies), num_goals_of(policies, difference)
    last, base = [*policies][-1], baseline_of(results)

    def cells(metrics: Mapping[str, Any], signed: bool) -> tuple[tuple[str, str], ...]:
        return tuple(estimate_cell(metrics.get(metric), metric, num_goals, signed=signed) for metric in columns)

    rows = [Row(policy, cells(metrics, False), section_ends=policy == last) for policy, metrics in policies.items()]
    return rows + [Row(f"{policy} − {base}", cells(metrics, True)) for policy, metrics in difference.items()]


def _results_caption(results: Mapping[str, Any]) -> str:
    difference = results.get("difference", {})
    caption = "mean over {} goals (fewer where n is given) with its 95 % bootstrap interval"
    caption = caption.format(num_goals_of(results["policies"], difference))
    return caption + "; differences are paired by goal" * bool(difference)


def rich_table(header: Sequence[str], rows: Iterable[Row], caption: str) -> Group:
    """Rows with the number above what qualifies it, as tables below each other that have five metrics at most.

    `Text` keeps names and brackets from being read as markup. Brackets are tightened and lines broken here: at 80
    columns rich would break them inside an interval, and crop a sixth one.
    """
    rows, tables = list(rows), []
    for first in range(0, max(1, len(header) - 1), _ABREAST):
        part = slice(first, first + _ABREAST)
        end = caption if part.stop >= len(header) - 1 else ""
        shown = [replace(row, cells=row.cells[part]) for row in rows]
        tables.append(_rich_part([header[0], *header[1:][part]], shown, end))
    return Group(*tables)


def _rich_part(header: Sequence[str], rows: Sequence[Row], caption: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption=Text(caption) if caption else None,
        caption_justify="left",
    )
    table.add_column(Text(header[0]), overflow="fold")
    for title in header[1:]:
        table.add_column(Text(title.replace(" ", "\n"), justify="right"), justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for main, detail in row.cells:
            detail = detail.strip("()").replace(", ", ",").replace(" ", "\n")
            cells.append(Text.assemble(main, (f"\n{detail}" if detail else "", "dim")))
        table.add_row(Text(row.label.replace(" − ", "\n− ")), *cells, end_section=row.section_ends)
    return table


def markdown(header: Sequence[str], rows: Iterable[Row], caption: str) -> str:
    """A GitHub table with the caption as a line below."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [[row.label, *(f"{main} {detail}".strip() for main, detail in row.cells)] for row in rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{body}\n\n{caption[0].upper()}{caption[1:]}.\n"
