"""Pictures: training curves from the CSV that Lightning's CSVLogger writes, and users beside each other."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

QUANTITIES = {  # metric -> title of its panel
    "mr": "multiturn-aware reward (MR)",
    "reward": "reward of whole conversations (R*)",
    "coverage": "coverage of notes",
    "bleu": "BLEU",
    "accuracy": "accuracy",
    "pass_rate": "pass rate",
    "interactivity": "interactivity",
    "pertinent": "pertinent questions",
    "distinct_questions": "distinct questions",
    "copied": "copied from the user",
    "repetition": "repetition",
    "unsupported": "unsupported clauses",
    "assistant_tokens": "assistant tokens",
}
# Blue and vermilion of Okabe and Ito's palette, which differ for any colour vision; markers differ in grey prints.
_LINES = {
    "train": {"label": "training", "color": "#0072B2", "marker": "o", "markersize": 3, "linewidth": 1.2},
    "val": {"label": "validation", "color": "#D55E00", "marker": "s", "markersize": 6, "linewidth": 1.8},
}
_MAX_MARKERS = 60  # markers of longer curves would overlap
# The same palette, without its yellow, for users beside each other.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def training_curves(metrics_csv: Path, output: Path) -> Path | None:
    """Draw training and validation curves over steps, one panel per quantity that was logged.

    Args:
        metrics_csv: CSVLogger's `metrics.csv`: a column `step` and any of `train/mr`, `val/reward`, `train/bleu`, ...
            Training and validation have rows of their own, so most cells are blank.
        output: The PNG to write.

    Returns:
        `output`, or None if there is nothing to draw: no such file, or no number in any of these columns.
    """
    curves = read_curves(metrics_csv)
    shown = [quantity for quantity in QUANTITIES if any((split, quantity) in curves for split in _LINES)]
    if not shown:
        return None

    from matplotlib.figure import Figure  # not pyplot: no global state, and a PNG needs no display
    from matplotlib.ticker import MaxNLocator

    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    width, height = 4.2 * columns, 2.7 * rows + 0.4  # inches
    figure = Figure(figsize=(width, height))
    # Room of fixed inches, and titles at a fixed height: to find out what labels need, matplotlib draws them again.
    room = {"left": 0.7 / width, "right": 1 - 0.15 / width, "bottom": 0.5 / height, "top": 1 - 0.65 / height}
    figure.subplots_adjust(**room, wspace=0.22, hspace=0.28)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    handles = {}
    for panel, quantity in zip(panels, shown, strict=False):
        for split, style in _LINES.items():
            if points := curves.get((split, quantity)):
                (handles[split],) = panel.plot(*zip(*sorted(points.items()), strict=True), **style)
                if len(points) > _MAX_MARKERS:
                    handles[split].set_marker("")
        panel.set_title(QUANTITIES[quantity], loc="left", fontsize=10, y=1.03)
        panel.grid(axis="y", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, color="0.5")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for index in range(max(0, len(shown) - columns), len(shown)):  # the lowest panel of each column
        panels[index].set_xlabel("step", fontsize=9)
        panels[index].tick_params(labelbottom=True)
    lines = [handles[split] for split in _LINES if split in handles]
    figure.legend(handles=lines, loc="upper right", ncols=2, frameon=False, fontsize=9)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150, facecolor="white")
    return output


def read_curves(path: Path) -> dict[tuple[str, str], dict[int, float]]:
    """(split, quantity) -> step -> value."""
    curves: dict[tuple[str, str], dict[int, float]] = {}
    if not path.is_file():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                split, _, quantity = (name or "").partition("/")
                if split in _LINES and row.get("step") and cell and math.isfinite(value := float(cell)):
                    curves.setdefault((split, quantity), {})[int(row["step"])] = value
    return curves


def users_figure(report: Mapping[str, Any], output: Path) -> Path:
    """Draw how users speak: what they have told after each message, then a panel for each measure.

    A panel has the mean of each user with its interval. The interval of real people is a band across the panel.

    Args:
        report: As `collab.reports.users.summarise_users` returns it, with `disclosure_by_turn`: name -> shares.
        output: The PNG to write.

    Returns:
        `output`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    users, people = report["users"], report["reference"]
    styles = {
        name: {"color": _COLORS[i % len(_COLORS)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, name in enumerate(users)
    }
    measures = [m for m in next(iter(users.values())) if any(users[name][m]["n"] for name in users)]
    columns = 4
    rows = math.ceil((len(measures) + 1) / columns)
    width, height = 2.9 * columns, 2.1 * rows + 0.5  # inches; room and titles as in `training_curves`
    figure = Figure(figsize=(width, height))
    room = {"left": 0.5 / width, "right": 1 - 0.1 / width, "bottom": 0.3 / height, "top": 1 - 0.65 / height}
    figure.subplots_adjust(**room, wspace=0.24, hspace=0.36)
    first, *panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for name, shares in report["disclosure_by_turn"].items():
        known = [(turn, share) for turn, share in enumerate(shares, 1) if share is not None]
        first.plot(*zip(*known, strict=True) if known else ([], []), **styles[name], markersize=4, label=name)
    first.set_title("told after each message", loc="left", fontsize=9, y=1.03)
    first.set_ylim(0, 1)
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel, measure in zip(panels, measures, strict=False):
        for place, name in enumerate(users):
            entry = users[name][measure]
            if not entry["n"]:
                continue
            low, high = entry["ci95"]
            if name == people:
                panel.axhspan(low, high, color=styles[name]["color"], alpha=0.15, linewidth=0)
            panel.vlines(place, low, high, color=styles[name]["color"], linewidth=1.5)
            panel.plot([place], [entry["mean"]], **styles[name], markersize=6)
        panel.set_title(measure.replace("_", " "), loc="left", fontsize=9, y=1.03)
        panel.set_xlim(-0.6, len(users) - 0.4)
        panel.set_ylim(bottom=0)
        panel.set_xticks([])
    for panel in (first, *panels):
        panel.grid(axis="y", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, color="0.5")
    for panel in panels[len(measures) :]:
        panel.set_visible(False)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(labels), frameon=False, fontsize=9)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150, facecolor="white")
    return output
