"""What a study shows: means with bootstrap intervals, differences between arms, and mixed-effects models.

The unit is the participant, who has one arm. A mean and its interval come from `collab.reports.results`, which
resamples participants. Participants of two arms are not paired, so a difference resamples each arm by itself.

A participant gives several ratings during the conversation, which are alike. So their model has a random intercept for
each participant; the model of what a participant gives once, at the end, has one for each document type. Both compare
with the first arm of the study file (treatment coding), and are fitted by REML.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collab.reports.results import BOOTSTRAP_SAMPLES, summarise
from collab.study.store import FINAL, Record
from collab.study.study_file import StudyConfig

SCALES = ("document", "interaction")  # of final ratings
_METRICS = {
    "rating_document": "document (1 to 10)",
    "rating_interaction": "interaction (1 to 10)",
    "rating_turns": "interaction during the conversation (1 to 10)",
    "minutes": "minutes",
    "turns": "turns",
}
# Okabe and Ito's palette, which differs for any colour vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def measures(record: Record) -> dict[str, float]:
    """Of one participant who has finished: metric -> value, without those that are missing."""
    found = {f"rating_{scale}": record.ratings.get((FINAL, scale)) for scale in SCALES}
    during = [value for (turn, _), value in record.ratings.items() if turn != FINAL]
    values: dict[str, float | None] = dict(found)
    values["rating_turns"] = sum(during) / len(during) if during else None
    if record.submitted_at is not None and record.started_at is not None:
        values["minutes"] = (record.submitted_at - record.started_at) / 60
    values["turns"] = record.answered
    return {name: float(value) for name, value in values.items() if value is not None}


def summarise_study(records: Sequence[Record], study: StudyConfig) -> dict[str, Any]:
    """The content of `statistics.json`, of the participants who have finished.

    `arms` has mean, ci95 and n of each metric, and how many `joined` and `finished`; `difference` the same of an arm
    minus the first; `models` one entry for each mixed-effects model, with `problem` instead of `effects` where it could
    not be fitted.
    """
    finished = [record for record in records if record.submitted_at is not None]
    values: dict[str, dict[str, dict[str, list[float | None]]]] = {arm: {m: {} for m in _METRICS} for arm in study.arms}
    for record in finished:
        for metric, value in measures(record).items():
            values[record.arm][metric][f"{record.id:09}"] = [value]
    arms = summarise(values, baseline="", seed=study.seed, aggregates={})["policies"]
    counts = {
        arm: {
            "joined": sum(record.arm == arm for record in records),
            "finished": sum(record.arm == arm for record in finished),
        }
        for arm in study.arms
    }
    first, *others = study.arms
    difference = {
        arm: {m: _difference(_flat(values[arm][m]), _flat(values[first][m]), study.seed) for m in _METRICS}
        for arm in others
    }
    rows = [_row(record, metric, value) for record in finished for metric, value in measures(record).items()]
    during = [
        _row(record, "rating_turns", value) | {"turn": turn}
        for record in finished
        for (turn, _), value in record.ratings.items()
        if turn != FINAL
    ]
    models = [_model(during, "rating_turns", "participant", first)]
    for metric in ("rating_document", "rating_interaction", "minutes"):
        models.append(_model([row for row in rows if row["metric"] == metric], metric, "document_type", first))
    return {"baseline": first, "counts": counts, "arms": arms, "difference": difference, "models": models}


def _row(record: Record, metric: str, value: float) -> dict[str, Any]:
    who = {"participant": record.id, "arm": record.arm, "document_type": record.document}
    return {**who, "metric": metric, "value": float(value)}


def _flat(values: dict[str, list[float | None]]) -> list[float]:
    return [value for listed in values.values() for value in listed if value is not None]


def _difference(one: Sequence[float], base: Sequence[float], seed: int) -> dict[str, Any]:
    """Mean of an arm minus that of the first, with a percentile bootstrap interval; n is (of the arm, of the first)."""
    counts = [len(one), len(base)]
    if min(counts) < 2:
        mean = float(np.mean(one) - np.mean(base)) if all(counts) else None
        return {"mean": mean, "ci95": [None, None], "n": counts}
    from scipy.stats import bootstrap

    def statistic(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        gap: np.ndarray = a.mean(axis=axis) - b.mean(axis=axis)
        return gap

    how = {"n_resamples": BOOTSTRAP_SAMPLES, "method": "percentile", "vectorized": True}
    found = bootstrap((one, base), statistic, rng=np.random.default_rng(seed), **how).confidence_interval
    return {
        "mean": float(np.mean(one) - np.mean(base)),
        "ci95": [float(found.low), float(found.high)],
        "n": counts,
    }


def _model(rows: Sequence[dict[str, Any]], outcome: str, groups: str, first: str) -> dict[str, Any]:
    """A linear mixed-effects model of the outcome on the arm, and on the turn where rows have one."""
    with_turn = "turn" in rows[0] if rows else False
    told: dict[str, Any] = {
        "outcome": outcome,
        "formula": f"{outcome} ~ arm{' + turn' if with_turn else ''} + (1 | {groups})",
        "n": len(rows),
        "groups": len({row[groups] for row in rows}),
    }
    if len({row["arm"] for row in rows}) < 2 or first not in {row["arm"] for row in rows}:
        return {**told, "problem": "two arms with values are needed, and the first must be one of them"}
    if told["groups"] < 2 or len({row["value"] for row in rows}) < 2:
        return {**told, "problem": f"two different values, and two of {groups}, are needed"}
    import pandas as pd
    import statsmodels.formula.api as smf

    frame = pd.DataFrame(rows)
    # The name of an arm is not written into the formula, which is a program to patsy.
    levels = [first, *sorted(set(frame["arm"]) - {first})]
    frame["arm"] = pd.Categorical(frame["arm"], levels)
    formula = f"value ~ C(arm){' + turn' if with_turn else ''}"
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        try:
            fit = smf.mixedlm(formula, frame, groups=frame[groups]).fit(reml=True)
        except (np.linalg.LinAlgError, ValueError) as error:
            return {**told, "problem": str(error) or type(error).__name__}
    intervals = fit.conf_int()
    effects = {}
    for term, estimate in fit.fe_params.items():
        low, high = intervals.loc[term]
        figures = {"estimate": estimate, "ci95": [low, high], "p": fit.pvalues[term]}
        name = term.removeprefix("C(arm)[T.").removesuffix("]")
        effects[name] = {key: _finite(value) for key, value in figures.items()}
    notes = sorted({str(warning.message).splitlines()[0] for warning in noticed})
    variances = {"group_variance": _finite(fit.cov_re.iloc[0, 0]), "residual_variance": _finite(fit.scale)}
    return {**told, "effects": effects, **variances, "converged": bool(fit.converged), "notes": notes}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return float(value) if math.isfinite(value) else None


def table(statistics: dict[str, Any]) -> str:
    """`statistics.md`: means, differences to the first arm and the models' estimates."""
    lines = ["| arm | joined | finished | " + " | ".join(_METRICS.values()) + " |", "|---" * (3 + len(_METRICS)) + "|"]
    for arm, metrics in statistics["arms"].items():
        counts = statistics["counts"][arm]
        cells = (_estimate(metrics[metric]) for metric in _METRICS)
        lines.append(f"| {arm} | {counts['joined']} | {counts['finished']} | {' | '.join(cells)} |")
    lines += ["", f"Differences to {statistics['baseline']}, each arm resampled by itself:", ""]
    lines += ["| arm | " + " | ".join(_METRICS.values()) + " |", "|---" * (1 + len(_METRICS)) + "|"]
    for arm, metrics in statistics["difference"].items():
        lines.append(f"| {arm} | {' | '.join(_estimate(metrics[metric]) for metric in _METRICS)} |")
    lines += ["", "Mixed-effects models (REML):", "", "| model | n | groups | term | estimate | p |", "|---" * 6 + "|"]
    for model in statistics["models"]:
        start = f"| `{model['formula'].replace('|', chr(92) + '|')}` | {model['n']} | {model['groups']} "
        for term, effect in model.get("effects", {}).items():
            p = "" if effect["p"] is None else f"{effect['p']:.3f}"
            lines.append(f"{start}| {term} | {_estimate({'mean': effect['estimate'], **effect})} | {p} |")
        if "problem" in model:
            lines.append(f"{start}| not fitted: {model['problem']} | | |")
        if notes := model.get("notes"):
            lines.append(f"{start}| note: {' '.join(notes)} | | |")
    return "\n".join(lines) + "\n"


def _estimate(entry: dict[str, Any]) -> str:
    if entry["mean"] is None:
        return ""
    low, high = entry["ci95"]
    return f"{entry['mean']:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def pictures(records: Sequence[Record], study: StudyConfig, statistics: dict[str, Any], folder: Path) -> list[Path]:
    """`arms.png`, each participant and the mean with its interval; `ratings.png`, the ratings over turns."""
    from matplotlib.figure import Figure  # not pyplot: no global state, and a PNG needs no display

    arms = list(study.arms)
    colors = {arm: _COLORS[place % len(_COLORS)] for place, arm in enumerate(arms)}
    finished = [record for record in records if record.submitted_at is not None]
    rng = np.random.default_rng(study.seed)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for panel, metric in zip(figure.subplots(1, 3), ("rating_document", "rating_interaction", "minutes"), strict=True):
        for place, arm in enumerate(arms):
            values = [measures(r)[metric] for r in finished if r.arm == arm and metric in measures(r)]
            panel.scatter(place + rng.uniform(-0.15, 0.15, len(values)), values, s=14, color=colors[arm], alpha=0.45)
            entry = statistics["arms"][arm][metric]
            if entry["mean"] is not None:
                low, high = entry["ci95"]
                panel.errorbar(
                    [place],
                    [entry["mean"]],
                    [[entry["mean"] - low], [high - entry["mean"]]],
                    fmt="D",
                    color="black",
                    capsize=4,
                    markersize=5,
                )
        panel.set_xticks(range(len(arms)), arms)
        _style(panel, _METRICS[metric])
        panel.set_ylim((0.5, 10.5) if metric.startswith("rating") else (0, None))
    over_turns = Figure(figsize=(5.5, 3.4), layout="constrained")
    panel = over_turns.subplots()
    for place, arm in enumerate(arms):
        points: dict[int, list[int]] = {}
        for record in records:
            for (turn, _), value in record.ratings.items():
                if turn != FINAL and record.arm == arm:
                    points.setdefault(turn, []).append(value)
        turns = sorted(points)
        means = [float(np.mean(points[turn])) for turn in turns]
        panel.plot(turns, means, marker="osD^vPX"[place % 7], color=colors[arm], label=arm)
    panel.set_ylim(0.5, 10.5)
    panel.set_xlabel("turn")
    _style(panel, "mean interaction rating (1 to 10)")
    if arms:
        panel.legend(frameon=False)
    paths = [folder / "arms.png", folder / "ratings.png"]
    for drawn, path in zip((figure, over_turns), paths, strict=True):
        drawn.savefig(path, dpi=130, facecolor="white")
    return paths


def _style(panel: Any, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=10)
    panel.grid(axis="y", color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
