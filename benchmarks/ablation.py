"""What the window and the parts of the reward are worth: the paper's ablation (Figures 4 and 9) in small.

    python benchmarks/ablation.py --dry-run     # the commands
    python benchmarks/ablation.py --write       # run them, then write docs/results/ablation.md, .json and .png

SFT on the shipped conversations comes first. From its policy Hydra sweeps train on the embedded doc_edit with
`sampler.window` 0, 1, 2 and 3 under the whole reward, and with the extrinsic part alone (the text) and the intrinsic
part alone (interactivity, tokens) at window 1, from three seeds. One evaluation then plays the same test goals with all
policies, under the same user randomness, and scores them by the whole reward, whatever they were trained on. Every
context has eight candidates, whatever the window (`sampler.equal_turns=false`), and every setting draws its contexts
from the same goals at the same turns.

The claim to test: w >= 1 beats w = 0. The same call goes on where it was stopped. Fields of the experiment follow as in
train.py, and hold for every command: `trainer.max_steps=2 task.num_test=4`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.steps import (
    ROOT,
    Step,
    StepFailed,
    account,
    in_words,
    listing,
    machine,
    output_folder,
    publish,
    run_steps,
    step_seconds,
    wall_seconds,
)
from benchmarks.table import check_overrides, merged, parser
from collab.randomness import RngKey
from collab.reports.merge import read_results
from collab.reports.results import BOOTSTRAP_SAMPLES, validate_results
from collab.reports.tables import Row, estimate_cell, markdown
from collab.util.errors import BadInput
from collab.util.files import write_json

TEXT = ("bleu", "coverage", "copied", "repetition", "unsupported")  # what is measured of the text
# A draft counts wherever it stands, so that a window of 0 has a text to score.
DRAFTS = tuple(f"task.metrics.{name}.options.finished_only=false" for name in TEXT)
SEEDS = (1, 2, 3)
WINDOWS = (0, 1, 2, 3)
ONE_WINDOW = 1  # that of the runs with a part of the reward
EXTRINSIC = ("task.metrics.token_penalty.weight=0", "task.metrics.interactivity.weight=0")
INTRINSIC = tuple(f"task.metrics.{name}.weight=0" for name in TEXT)
BASELINE = "window 0"
SETTINGS = (*(f"window {window}" for window in WINDOWS), "extrinsic", "intrinsic")
COLUMNS = {
    "coverage": "coverage",
    "interactivity": "interactivity",
    "assistant_tokens": "assistant tokens",
    "reward": "R*",
}
Values = dict[str, dict[str, np.ndarray]]  # setting -> metric -> [seeds, goals]


# --- the commands ----------------------------------------------------------------------------------------------------


def steps(folder: Path, overrides: Sequence[str] = ()) -> list[Step]:
    """All commands: sweeps over windows or over seeds, then the evaluation.

    Args:
        folder: Of all steps, as the commands have it.
        overrides: Of the user; they hold for every command, but for what ties the steps together.
    """
    common = ("callbacks=quiet", "logger.wandb=disabled", "evaluation.num_conversations=1")
    # train.py plays test goals itself; here that is left to the one evaluation.
    once = (*common, "task.num_test=1")
    training = ("train.py", "-m", "experiment=doc_edit", *DRAFTS, *once, "sampler.equal_turns=false")
    sft = folder / "sft"
    start = f"model.path={sft / 'policy'}"

    def sweep(name: str, key: str, values: tuple[int, ...], *tied: str) -> Step:
        folders = (f"hydra.sweep.dir={folder / name}", f"hydra.sweep.subdir=${{{key}}}")
        return Step(name, merged((*training, *overrides, *tied, start, *folders)), ("sft",), sweep=(key, values))

    first = ("train.py", "experiment=doc_edit_sft", *once, *overrides, "seed=1", f"output_dir={sft}")
    found = [sweep(f"windows-seed{seed}", "sampler.window", WINDOWS, f"seed={seed}") for seed in SEEDS]
    for name, weights in (("extrinsic", EXTRINSIC), ("intrinsic", INTRINSIC)):
        found.append(sweep(name, "seed", SEEDS, f"sampler.window={ONE_WINDOW}", *weights))
    trained = (f"{row(name, seed)}:{policy(folder, name, seed)}" for name in SETTINGS for seed in SEEDS)
    rows = ",".join(("base", f"sft:{sft / 'policy'}", *trained))
    evaluation = ("evaluate.py", "experiment=doc_edit", *common, *overrides)
    tied = ("seed=1", f"policies=[{rows}]", f"output_dir={folder / 'evaluation'}")
    needs = tuple(step.name for step in found)
    return [Step("sft", merged(first)), *found, Step("evaluation", merged((*evaluation, *tied)), needs)]


def row(setting: str, seed: int) -> str:
    """The name of a policy in the evaluation."""
    return f"{setting.replace(' ', '')}-seed{seed}"


def policy(folder: Path, setting: str, seed: int) -> Path:
    """Where its run leaves it."""
    name, _, window = setting.partition(" ")
    run = folder / f"windows-seed{seed}" / window if window else folder / name / str(seed)
    return run / "policy"


# --- what came out ---------------------------------------------------------------------------------------------------


def read_values(transcripts: Path) -> Values:
    """Values by seed and goal of each setting, and of what all start from, which has one row for all seeds.

    A goal's conversations are averaged; a missing score is nan.

    Args:
        transcripts: `transcripts.jsonl` of the evaluation.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for line in transcripts.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        values = {**record["parts"], "reward": record["reward"], "assistant_tokens": sum(record["reply_tokens"])}
        one = found.setdefault((record["policy"], record["goal"]), {})
        for metric in COLUMNS:
            one.setdefault(metric, []).append(np.nan if values.get(metric) is None else values[metric])
    goals = sorted({goal for _, goal in found})
    runs = {
        "base": ["base"],
        "sft": ["sft"],
        **{setting: [row(setting, seed) for seed in SEEDS] for setting in SETTINGS},
    }
    return {
        setting: {
            metric: np.array([[np.mean(found[name, goal][metric]) for goal in goals] for name in names])
            for metric in COLUMNS
        }
        for setting, names in runs.items()
    }


def estimate(values: np.ndarray, samples: int) -> dict[str, Any]:
    """Mean over seeds and goals with its 95 % interval, as `results.json` has it; `n` is the number of both together.

    The bootstrap draws seeds and goals, both with replacement: how far the mean would move had it been other runs,
    played with other goals. Three seeds say little of the first, so intervals are rough.

    Args:
        values: [seeds, goals], or [1, goals] of base and SFT; nan where there is none.
        samples: Resamples.
    """
    n = int(np.isfinite(values).sum())
    if n == 0:
        return {"mean": None, "ci95": [None, None], "n": 0}
    draws, (seeds, goals) = RngKey(1, role="bootstrap").stream(), values.shape
    rows, columns = draws.integers(seeds, size=(samples, seeds)), draws.integers(goals, size=(samples, goals))
    means = np.nanmean(values[rows[:, :, None], columns[:, None, :]], axis=(1, 2))
    low, high = np.nanpercentile(means, (2.5, 97.5))
    return {"mean": float(np.nanmean(values)), "ci95": [float(low), float(high)], "n": n}


def summarise(values: Values, samples: int) -> dict[str, Any]:
    """The parts `policies` and `difference` of `results.json`, by setting, and `claim`.

    Differences are paired: the same seed, the same goal. `claim` is the mean of the windows of 1 and more minus window
    0, by metric.
    """
    base = values[BASELINE]
    policies: dict[str, Any] = {
        setting: {metric: estimate(found, samples) for metric, found in metrics.items()}
        for setting, metrics in values.items()
    }
    difference = {
        setting: {metric: estimate(found - base[metric], samples) for metric, found in metrics.items()}
        for setting, metrics in values.items()
        if setting != BASELINE
    }
    longer = [values[f"window {window}"] for window in WINDOWS if window]
    claim = {
        metric: estimate(np.mean([one[metric] - base[metric] for one in longer], axis=0), samples) for metric in COLUMNS
    }
    return {"policies": policies, "difference": difference, "claim": claim}


def table(results: Mapping[str, Any]) -> str:
    """Settings, then the paired differences to window 0, in Markdown."""
    most = max(found["reward"]["n"] for found in results["policies"].values())

    def cells(metrics: Mapping[str, Any], signed: bool = False) -> tuple[tuple[str, str], ...]:
        return tuple(estimate_cell(metrics[metric], metric, most, signed=signed) for metric in COLUMNS)

    rows = [Row(name, cells(metrics)) for name, metrics in results["policies"].items()]
    rows += [Row(f"{name} − {BASELINE}", cells(metrics, True)) for name, metrics in results["difference"].items()]
    rows.append(Row(f"windows 1 to {WINDOWS[-1]} − {BASELINE}", cells(results["claim"], True)))
    caption = (
        f"mean over {len(SEEDS)} seeds and {most // len(SEEDS)} test goals with its 95 % bootstrap interval over both; "
        "differences are paired by seed and goal"
    )
    return markdown(["setting", *COLUMNS.values()], rows, caption)


def verdict(results: Mapping[str, Any]) -> str:
    """Whether the claim holds, by the numbers alone."""
    found = results["claim"]["reward"]
    if found["mean"] is None:
        return "The claim that w >= 1 beats w = 0 could not be tested: no conversation has a reward."
    low, high = found["ci95"]
    how = "holds" if low > 0 else "is contradicted" if high < 0 else "is not shown"
    value, interval = estimate_cell(found, "reward", found["n"], signed=True)
    each = ", ".join(
        "{}: {} {}".format(name, *estimate_cell(results["difference"][name]["reward"], "reward", 0, signed=True))
        for name in SETTINGS[1 : len(WINDOWS)]
    )
    return (
        f"**The claim that w >= 1 beats w = 0 {how}**: R\\* of whole conversations, mean of windows 1 to {WINDOWS[-1]} "
        f"minus window 0, {value} {interval}. One by one: {each}."
    )


def draw(results: Mapping[str, Any], output: Path) -> None:
    """A panel for each metric: a point with its interval for each setting, a line for the SFT policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.4), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    names = [name for name in results["policies"] if name not in ("base", "sft")]
    for panel, (metric, title) in zip(panels, COLUMNS.items(), strict=True):
        start = results["policies"]["sft"][metric]["mean"]
        if start is not None:
            panel.axhline(start, color="0.5", linewidth=1, linestyle="--")
            panel.annotate("SFT", (len(names) - 0.5, start), color="0.5", fontsize=7, ha="right", va="bottom")
        for place, name in enumerate(names):
            found = results["policies"][name][metric]
            if found["mean"] is None:
                continue
            low, high = found["ci95"]
            window = name.startswith("window")  # blue and vermilion of Okabe and Ito's palette; markers for grey prints
            style = {"color": "#0072B2", "marker": "o"} if window else {"color": "#D55E00", "marker": "s"}
            panel.vlines(place, low, high, color=style["color"], linewidth=1.4)
            panel.plot([place], [found["mean"]], markersize=6, **style)
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xticks(range(len(names)), [name.replace("window ", "w=") for name in names], fontsize=8)
        panel.set_xlim(-0.5, len(names) - 0.5)
        panel.axvline(len(WINDOWS) - 0.5, color="0.8", linewidth=0.8)
        panel.grid(axis="y", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, color="0.5")
    figure.savefig(output, dpi=150)


def page(results: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], place: str) -> str:
    """docs/results/ablation.md."""
    return "\n".join(
        [
            "# What the window and the parts of the reward are worth",
            "",
            "SmolLM2-135M-Instruct on the embedded `doc_edit`. `sft` learns from the shipped conversations. From its",
            "policy `algorithm=grpo_small` trains with forward samples of `sampler.window` further turns under the",
            f"whole reward, and, at window {ONE_WINDOW}, with the extrinsic part alone (the text) or the intrinsic",
            "part alone (interactivity and the price of tokens). `make ablation` runs it all and writes this page,",
            "`ablation.json` and `ablation.png`.",
            "",
            "Every setting has the same seeds, contexts from the same goals at the same turns, and the same number of",
            "candidates and updates; what differs is what a candidate is scored by, and the time that its futures",
            "take. The policy that is measured is the last one. All are scored by the whole reward, on the same test",
            "goals, with the same user randomness.",
            "",
            verdict(results),
            "",
            "![coverage, interactivity, assistant tokens and R* by setting](ablation.png)",
            "",
            table(results),
            "R\\* is that of a whole conversation, with the weights of `conf/task/doc_edit.yaml`.",
            "",
            "## How it was made",
            "",
            account(records, place),
        ]
    )


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and, if asked to, write; the exit status."""
    files = ("ablation.md", "ablation.json", "ablation.png")
    written = ", ".join(f"docs/results/{file}" for file in files)
    args = parser(__doc__, "outputs/ablation", written).parse_intermixed_args(argv)
    try:
        tied = ("experiment", "algorithm.data", "seed", "output_dir", "policies", "sampler.window")
        check_overrides(args.overrides, (*tied, "evaluation.baseline"))
        folder = output_folder(args.output)
        todo = steps(folder, args.overrides)
        if args.dry_run:
            print(listing(todo, folder))
            return 0
        records = run_steps(todo, folder, args.jobs)
        played = read_results(ROOT / folder / "evaluation" / "results.json")
        values = read_values(ROOT / folder / "evaluation" / "transcripts.jsonl")
    except (BadInput, StepFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = {name: step_seconds(record) for name, record in records.items()}
    results = {
        **summarise(values, BOOTSTRAP_SAMPLES),
        "config": {**played["config"], "output_dir": str(folder / "evaluation")},  # as it was typed
        "seconds": {**seconds, "total": wall_seconds(records)},
    }
    validate_results(results)
    write_json(ROOT / folder / "ablation.json", results)
    draw(results, ROOT / folder / "ablation.png")
    (ROOT / folder / "ablation.md").write_text(page(results, records, machine()), encoding="utf-8")
    print(f"\n{table(results)}\n{verdict(results)}\n{in_words(results['seconds']['total'])}, {folder / 'ablation.md'}")
    if args.write:
        publish(folder, files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
