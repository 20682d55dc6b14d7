"""Results as tables for the terminal (rich) and for documents (Markdown).

Both are drawn from the same rows, so they have the same numbers. Numbers are rounded here only; the files keep full
precision. A dash stands for a missing value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from collab.reports.results import baseline_of

# Other metrics have their own name.
_LABELS = {
    **{"reward": "R*", "bleu": "BLEU", "official_bleu": "official BLEU", "macro_f1": "macro F1"},
    **{"ask_f1": "F1 of asking", "act_f1": "F1 of acting"},
}
# The first columns. Other metrics follow in the order of the file.
_ORDER = (
    *("reward", "coverage", "bleu", "accuracy", "pass_rate", "refused", "complied", "over_refusal"),
    *("interactivity", "assistant_tokens", "turns"),
)
_DECIMALS = {"assistant_tokens": 0, "turns": 2}  # others get three
_ABREAST = 5  # metrics that fit beside each other in 80 columns
MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One line of a table: a label, and for each column a number and its interval or range."""

    label: str
    cells: tuple[tuple[str, str], ...]
    section_ends: bool = False


def columns_of(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All metrics of the policies, known ones first."""
    present = dict.fromkeys(metric for metrics in policies.values() for metric in metrics)
    return [metric for metric in _ORDER if metric in present] + [metric for metric in present if metric not in _ORDER]


def number(value: float | None, metric: str, *, signed: bool = False) -> str:
    """`value` rounded for its metric; `signed` shows the plus of a difference."""
    return MISSING if value is None else f"{value:{'+' if signed else ''}z.{_DECIMALS.get(metric, 3)}f}"


def estimate_cell(
    entry: Mapping[str, Any] | None, metric: str, num_goals: int, *, signed: bool = False
) -> tuple[str, str]:
    """(mean, interval) of one estimate, with its n where that is smaller than `num_goals`, the table's."""
    if entry is None:
        return MISSING, ""
    if entry["mean"] is None:
        return MISSING, "n=0"
    low, high = (number(bound, metric) for bound in entry["ci95"])
    short = f" n={entry['n']}" if entry["n"] < num_goals else ""
    return number(entry["mean"], metric, signed=signed), f"[{low}, {high}]{short}"


def num_goals_of(policies: Mapping[str, Mapping[str, Any]]) -> int:
    """The largest n of any metric."""
    return max((entry["n"] for metrics in policies.values() for entry in metrics.values()), default=0)


def results_table(results: Mapping[str, Any]) -> Group:
    """A table of valid results for a terminal of 80 columns or more.

    One row per policy and, below the line, one per difference to the baseline; mean above, 95 % interval below it.
    """
    policies, difference = results["policies"], results.get("difference", {})
    columns, num_goals = columns_of(policies), num_goals_of(policies)

    def cells(metrics: Mapping[str, Any], signed: bool) -> tuple[tuple[str, str], ...]:
        return tuple(estimate_cell(metrics.get(metric), metric, num_goals, signed=signed) for metric in columns)

    rows = [Row(policy, cells(metrics, False), policy == [*policies][-1]) for policy, metrics in policies.items()]
    rows += [
        Row(f"{policy} − {baseline_of(results, policy)}", cells(metrics, True))
        for policy, metrics in difference.items()
    ]
    caption = f"mean over {num_goals} goals (fewer where n is given) with its 95 % bootstrap interval"
    return rich_table(header_of(columns), rows, caption + "; differences are paired by goal" * bool(difference))


def header_of(metrics: Sequence[str]) -> list[str]:
    """Titles of the columns: of the rows' names and of each metric."""
    return ["policy", *map(label_of, metrics)]


def label_of(metric: str) -> str:
    """The name of a metric for readers."""
    return _LABELS.get(metric, metric.replace("_", " "))


def rich_table(header: Sequence[str], rows: Sequence[Row], caption: str) -> Group:
    """A table with each number above its interval. Each five metrics get a table of their own, below the last."""
    tables = []
    for first in range(0, max(1, len(header) - 1), _ABREAST):
        part = slice(first, first + _ABREAST)
        tables.append(_rich_part(header[0], header[1:][part], [(row, row.cells[part]) for row in rows]))
    tables[-1].caption = Text(caption)
    return Group(*tables)


def _rich_part(label: str, titles: Sequence[str], rows: Sequence[tuple[Row, Sequence[tuple[str, str]]]]) -> Table:
    """`Text` keeps rich from reading names and brackets as markup.

    Spaces within intervals are removed and lines are broken here: at 80 columns rich would break lines inside an
    interval, and crop a sixth column.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption_justify="left")
    table.add_column(Text(label), overflow="fold")
    for title in titles:
        table.add_column(Text(title.replace(" ", "\n"), justify="right"), justify="right", no_wrap=True)
    for row, cells in rows:
        texts = []
        for main, detail in cells:
            detail = detail.strip("()").replace(", ", ",").replace(" ", "\n")
            texts.append(Text.assemble(main, (f"\n{detail}" if detail else "", "dim")))
        table.add_row(Text(row.label.replace(" − ", "\n− ")), *texts, end_section=row.section_ends)
    return table


def markdown(header: Sequence[str], rows: Sequence[Row], caption: str) -> str:
    """A GitHub table with the caption as a line below."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [[row.label, *(f"{main} {detail}".strip() for main, detail in row.cells)] for row in rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{body}\n\n{caption[0].upper()}{caption[1:]}.\n"
