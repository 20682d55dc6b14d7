"""Training curves from the CSV that Lightning's CSVLogger writes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

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
    "assistant_tokens": "assistant tokens",
}
# Blue and vermilion of Okabe and Ito's palette, which differ for any colour vision; markers differ in grey prints.
_LINES = {
    "train": {"label": "training", "color": "#0072B2", "marker": "o", "markersize": 3, "linewidth": 1.2},
    "val": {"label": "validation", "color": "#D55E00", "marker": "s", "markersize": 6, "linewidth": 1.8},
}
_MAX_MARKERS = 60  # markers of longer curves would overlap


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
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    handles = {}
    for panel, quantity in zip(panels, shown, strict=False):
        for split, style in _LINES.items():
            if points := curves.get((split, quantity)):
                (handles[split],) = panel.plot(*zip(*sorted(points.items()), strict=True), **style)
                if len(points) > _MAX_MARKERS:
                    handles[split].set_marker("")
        panel.set_title(QUANTITIES[quantity], loc="left", fontsize=10)
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
    figure.legend(handles=lines, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150, facecolor="white", bbox_inches="tight", pad_inches=0.1)
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
