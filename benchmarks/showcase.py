"""A model that can speak learns to collaborate on doc_edit: two stages, three seeds, base and trained on test goals.

    python benchmarks/showcase.py qwen25_coder_05b --dry-run     # the commands; a preset of conf/model, or a model.path
    python benchmarks/showcase.py qwen25_coder_05b --write       # run them, then write docs/results/showcase.*

Each seed has an SFT stage, a GRPO stage that starts from its policy, and an evaluation of base, proactive base and the
trained policy on the same test goals, under the same user randomness. The same call goes on where it was stopped.
Fields of the experiment follow as in train.py, and hold for every command: `trainer.max_steps=2 task.num_test=4`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.steps import (
    ROOT,
    Step,
    StepFailed,
    account,
    in_words,
    listing,
    machine,
    output_folder,
    run_steps,
    step_seconds,
)
from benchmarks.table import check_overrides, merged, parser
from collab.reports.merge import read_results
from collab.reports.tables import Row, estimate_cell, markdown, num_goals_of
from collab.util.errors import BadInput
from collab.util.files import write_json

POLICIES = ("base", "proactive", "trained")
COLUMNS = {
    "reward": "R*",
    "coverage": "coverage",
    "bleu": "BLEU",
    "interactivity": "interactivity",
    "pertinent": "pertinent",
    "distinct_questions": "distinct questions",
    "copied": "copied",
    "repetition": "repetition",
    "assistant_tokens": "tokens",
}
SHOWN = 3  # conversations on the page
FILES = ("showcase.md", "showcase.json", "showcase.png")
# What a model that can speak needs other than SmolLM2-135M. Chosen on validation goals (docs/recipe-log.md).
SETTING = ("sampler.temperature=0.5",)
SFT = ("algorithm.lr=4e-4",)
GRPO = ("algorithm.lr=3e-4", "trainer.max_steps=4")


# --- the commands ----------------------------------------------------------------------------------------------------


def steps(folder: Path, model: str, seeds: Sequence[int], overrides: Sequence[str] = ()) -> list[Step]:
    """All commands, seed by seed.

    Args:
        folder: Of all steps, as the commands have it.
        model: A preset of conf/model, or a `model.path`.
        seeds: Of training and evaluation.
        overrides: Of the user; they hold for every command, but for what ties the steps together.
    """
    preset = (ROOT / "conf" / "model" / f"{model}.yaml").is_file()
    base = f"model={model}" if preset else f"model.path={model}"
    short = ("task.num_test=1", "evaluation.num_conversations=1")  # the evaluation plays the test goals
    found = []
    for seed in seeds:
        shared = (base, *SETTING, f"seed={seed}", "callbacks=quiet", "logger.wandb=disabled")

        def step(name: str, command: Sequence[str], *tied: str, needs: tuple[str, ...] = (), seed: int = seed) -> Step:
            output = f"output_dir={folder / name}-{seed}"
            needed = tuple(f"{each}-{seed}" for each in needs)
            return Step(f"{name}-{seed}", merged((*command, *overrides, *tied, output)), needed)

        sft, trained = (f"{folder / name}-{seed}/policy" for name in ("sft", "grpo"))
        rows = ",".join(("base", "proactive", f"trained:{trained}"))
        grpo = ("train.py", "experiment=doc_edit", *shared, *GRPO, *short)
        evaluation = ("evaluate.py", "experiment=doc_edit", *shared, "evaluation.num_conversations=1")
        found += [
            step("sft", ("train.py", "experiment=doc_edit_sft", *shared, *SFT, *short)),
            step("grpo", grpo, f"model.path={sft}", needs=("sft",)),
            step("evaluation", evaluation, f"policies=[{rows}]", needs=("grpo",)),
        ]
    return found


# --- what came out ---------------------------------------------------------------------------------------------------


def gather(folder: Path, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Seed -> `results.json` of its evaluation."""
    return {str(seed): read_results(ROOT / folder / f"evaluation-{seed}" / "results.json") for seed in seeds}


def estimates(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Seed -> policy -> metric -> {"mean", "ci95", "n"}."""
    return {seed: {name: found["policies"][name] for name in POLICIES} for seed, found in results.items()}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All seeds in one Markdown table. Base and proactive differ between seeds by their draws alone."""
    goals = max(num_goals_of(found["policies"]) for found in results.values())
    rows = []
    for name in POLICIES:
        for seed, found in results.items():
            metrics = found["policies"][name]
            rows.append(Row(f"{name}, seed {seed}", tuple(estimate_cell(metrics.get(m), m, goals) for m in COLUMNS)))
    for seed, found in results.items():
        gained = found["difference"]["trained"]
        cells = tuple(estimate_cell(gained.get(m), m, goals, signed=True) for m in COLUMNS)
        rows.append(Row(f"trained − base, seed {seed}", cells))
    caption = f"mean over {goals} test goals with its 95 % bootstrap interval; differences are paired by goal"
    return markdown(["policy", *COLUMNS.values()], rows, caption)


def verdicts(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What was wanted and what came, in Markdown; met or missed by the numbers alone, in each seed."""

    def mean(seed: str, name: str, metric: str) -> float:
        found = results[seed]["policies"][name][metric]["mean"]
        return float("nan") if found is None else float(found)

    def gain(seed: str) -> tuple[str, bool]:
        reward = results[seed]["difference"]["trained"]["reward"]
        value, interval = estimate_cell(reward, "reward", 0, signed=True)
        return f"{value} {interval}", reward["mean"] is not None and reward["ci95"][0] > 0

    def asked(seed: str) -> tuple[str, bool]:
        value = mean(seed, "trained", "interactivity") - mean(seed, "base", "interactivity")
        return f"{value:+.2f}", value >= 0.4

    def pertinent(seed: str) -> tuple[str, bool]:
        value = mean(seed, "trained", "pertinent")
        return f"{value:.2f}", value >= 0.8

    def covered(seed: str) -> tuple[str, bool]:
        base, proactive, trained = (mean(seed, name, "coverage") for name in POLICIES)
        return f"{base:.3f}, {proactive:.3f}, {trained:.3f}", trained >= 2 * base and trained >= 1.5 * proactive

    def read(seed: str) -> tuple[str, bool]:
        value = mean(seed, "trained", "assistant_tokens") / mean(seed, "base", "assistant_tokens") - 1
        return f"{value:+.0%}", value <= -0.3

    wanted = {
        "R\\* above the base's, interval above 0": gain,
        "interactivity +0.4 over the base": asked,
        "at least 0.8 of its questions pertinent": pertinent,
        "coverage (base, proactive, trained) twice the base's and 1.5 times the proactive base's": covered,
        "tokens of the user to read 30 % down": read,
    }
    lines = [f"| wanted | {' | '.join(f'seed {seed}' for seed in results)} | |", "|---" * (len(results) + 2) + "|"]
    for what, came in wanted.items():
        found = [came(seed) for seed in results]
        met = sum(good for _, good in found)
        verdict = "met" if met == len(found) else f"**missed** ({met} of {len(found)} seeds)"
        lines.append(f"| {what} | {' | '.join(text for text, _ in found)} | {verdict} |")
    return "\n".join(lines) + "\n"


def conversations(transcripts: Path, count: int = SHOWN) -> str:
    """The first conversations of base and trained side by side, in Markdown."""
    rows = [json.loads(line) for line in transcripts.read_text(encoding="utf-8").splitlines()]
    played = {(row["policy"], row["goal"]): row for row in rows}
    goals = list(dict.fromkeys(row["goal"] for row in rows))[:count]
    parts = []
    for goal in goals:
        cells = []
        for name in ("base", "trained"):
            row = played[name, goal]
            said = [m for m in row["messages"] if m["role"] != "system"]
            told = "<br>".join(f"**{m['role'].title()}:** {_cell(m['content'])}" for m in said)
            cells.append((f"{name}, R\\* {row['reward']:.2f}", told))
        heads, bodies = zip(*cells, strict=True)
        parts.append(f"### {goal}\n\n| {' | '.join(heads)} |\n|---|---|\n| {' | '.join(bodies)} |\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return escaped.replace("\n", "<br>")


def draw(folder: Path, seeds: Sequence[int], output: Path) -> None:
    """MR and its signs over the steps of GRPO, a line for each seed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from collab.reports.plots import read_curves

    panels = {
        "mr": "multiturn-aware reward (MR)",
        "coverage": "coverage of notes",
        "interactivity": "interactivity",
        "pertinent": "pertinent questions",
    }
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    for panel, (metric, title) in zip(figure.subplots(2, 2).flatten(), panels.items(), strict=True):
        for seed, color, marker in zip(seeds, ("#0072B2", "#D55E00", "#009E73"), "os^", strict=False):
            points = read_curves(ROOT / folder / f"grpo-{seed}" / "csv" / "metrics.csv").get(("train", metric), {})
            panel.plot(*zip(*sorted(points.items()), strict=True), color=color, marker=marker, label=f"seed {seed}")
        panel.set_title(title, loc="left", fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(axis="y", color="0.9", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, color="0.5")
    figure.axes[0].legend(frameon=False, fontsize=8)
    for panel in figure.axes[2:]:
        panel.set_xlabel("step of GRPO", fontsize=9)
    figure.savefig(output, dpi=150)


def page(
    model: str, folder: Path, results: Mapping[str, Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]]
) -> str:
    """docs/results/showcase.md."""
    first = next(iter(results))
    minutes = ", ".join(
        in_words(sum(step_seconds(records[f"{stage}-{seed}"]) for stage in ("sft", "grpo"))) for seed in results
    )
    goals = max(num_goals_of(found["policies"]) for found in results.values())
    return "\n".join(
        [
            f"# Showcase: `{model}` on doc_edit",
            "",
            "SFT on the shipped conversations, then GRPO on MR with the rule-based user; base, proactive base and the",
            f"trained policy on {goals} test goals, each played once. `make showcase MODEL={model}` runs it all and",
            f"writes this page and `showcase.json`. Training took {minutes} (one time for each seed).",
            "",
            table(results),
            "## What was wanted",
            "",
            verdicts(results),
            "## Curves",
            "",
            "![MR, coverage, interactivity and pertinent questions over the steps of GRPO](showcase.png)",
            "",
            f"## The first {SHOWN} conversations, base beside trained (seed {first})",
            "",
            conversations(ROOT / folder / f"evaluation-{first}" / "transcripts.jsonl"),
            "## How it was made",
            "",
            account(records, machine()),
        ]
    )


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and, if asked to, write; the exit status."""
    options = parser(__doc__, "outputs/showcase", ", ".join(f"docs/results/{file}" for file in FILES))
    options.add_argument("--seeds", default="1,2,3", help="with commas; 1,2,3 if left out")
    options.set_defaults(jobs=1)
    args = options.parse_intermixed_args(argv)
    try:
        if not args.overrides or "=" in args.overrides[0]:
            raise BadInput("name the model first: a preset of conf/model (qwen25_coder_05b), or a folder or hub id.")
        model, *overrides = args.overrides
        if not all(seed.isdigit() for seed in args.seeds.split(",")):
            raise BadInput(f"--seeds {args.seeds} must be whole numbers with commas between them.")
        seeds = [*dict.fromkeys(int(seed) for seed in args.seeds.split(","))]
        tied = ("experiment", "algorithm", "model", "model.path", "seed", "output_dir", "policies")
        check_overrides(overrides, (*tied, "evaluation.baseline"))
        folder = output_folder(args.output)
        todo = steps(folder, model, seeds, overrides)
        if args.dry_run:
            print(listing(todo, folder))
            return 0
        records = run_steps(todo, folder, args.jobs)
        results = gather(folder, seeds)
    except (BadInput, StepFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(ROOT / folder / "showcase.json", estimates(results))
    draw(folder, seeds, ROOT / folder / "showcase.png")
    (ROOT / folder / "showcase.md").write_text(page(model, folder, results, records), encoding="utf-8")
    print(f"\n{table(results)}\n{verdicts(results)}\n{folder / 'showcase.md'}")
    if args.write:
        for file in FILES:
            shutil.copyfile(ROOT / folder / file, ROOT / "docs" / "results" / file)
            print(f"docs/results/{file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
