"""A model that can speak learns to collaborate on doc_edit: SFT, GRPO from three seeds, base and trained on test goals.

    python benchmarks/showcase.py qwen25_coder_05b --dry-run     # the commands; a preset of conf/model, or a model.path
    python benchmarks/showcase.py qwen25_coder_05b --write       # run them, then write the pages (`FILES`)

GRPO starts from the SFT policy with each seed. One evaluation then plays the same test goals with base, proactive base
and the trained policies, under the same user randomness. The same call goes on where it was stopped. Fields of the
experiment follow as in train.py, and hold for every command: `trainer.max_steps=2 task.num_test=4`. What has to be said
of a step, such as how it was cut, is written into `notes` of its config.yaml, and is printed on the page.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

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
    publish,
    run_steps,
    step_seconds,
)
from benchmarks.table import check_overrides, merged, parser
from collab.reports.merge import read_results
from collab.reports.results import summarise
from collab.reports.tables import Row, estimate_cell, markdown, num_goals_of
from collab.util.errors import BadInput
from collab.util.files import write_json

POLICIES = ("base", "proactive", "trained")
COLUMNS = {
    "reward": "R*",
    "coverage": "coverage",
    "bleu": "BLEU",
    "official_bleu": "official BLEU",
    "interactivity": "interactivity",
    "pertinent": "pertinent",
    "distinct_questions": "distinct questions",
    "copied": "copied",
    "repetition": "repetition",
    "unsupported": "unsupported",
    "assistant_tokens": "tokens",
}
SHOWN = 3  # conversations on the page
WHOLE = 10  # conversations of each trained policy on the page of conversations
FILES = ("showcase.md", "showcase.json", "showcase.png", "conversations.md")
# What a model that can speak needs other than SmolLM2-135M. Chosen on validation goals (docs/recipe-log.md).
SETTING = ("sampler.temperature=0.5",)
SFT_STEPS = 302  # one pass
GRPO = ("trainer.max_steps=12", "algorithm.target_kl=0.005")  # more than SmolLM2-135M bears
TEST = ("sampler.temperature=0.25", "evaluation.num_conversations=2")  # cooler: fewer words that make no sense


# --- the commands ----------------------------------------------------------------------------------------------------


def steps(
    folder: Path, model: str, seeds: Sequence[int], overrides: Sequence[str] = (), sft_steps: int = SFT_STEPS
) -> list[Step]:
    """All commands, each after those that it needs.

    Args:
        folder: Of all steps, as the commands have it.
        model: A preset of conf/model, or a `model.path`.
        seeds: Of GRPO; the first is that of SFT and of the evaluation.
        overrides: Of the user; they hold for every command, but for what ties the steps together.
        sft_steps: Steps of SFT.
    """
    named = f"model={model}" if model in presets() else f"model.path={model}"
    shared = (named, *SETTING, "callbacks=quiet", "logger.wandb=disabled")
    training = (*shared, "evaluation.num_conversations=1", "task.num_test=1")  # the evaluation plays the test goals

    def step(name: str, command: Sequence[str], *tied: str, needs: tuple[str, ...] = ()) -> Step:
        return Step(name, merged((*command, *overrides, *tied, f"output_dir={folder / name}")), needs)

    grpo = [f"grpo-{seed}" for seed in seeds]
    rows = ",".join(("base", "proactive", "sft:" + policy(folder, "sft"), *(f"{n}:{policy(folder, n)}" for n in grpo)))
    return [
        step(
            "sft",
            ("train.py", "experiment=doc_edit_sft", *training, f"trainer.max_steps={sft_steps}", f"seed={seeds[0]}"),
        ),
        *(
            step(
                name,
                ("train.py", "experiment=doc_edit", *training, *GRPO, f"seed={seed}"),
                f"model.path={policy(folder, 'sft')}",
                needs=("sft",),
            )
            for name, seed in zip(grpo, seeds, strict=True)
        ),
        step(
            "evaluation",
            ("evaluate.py", "experiment=doc_edit", *shared, *TEST, f"seed={seeds[0]}"),
            f"policies=[{rows}]",
            needs=("sft", *grpo),
        ),
    ]


def presets() -> list[str]:
    """Those of conf/model."""
    return sorted(file.stem for file in (ROOT / "conf" / "model").glob("*.yaml"))


def check_name(model: str) -> None:
    """Refuse a name that cannot be a model; whether the hub has it is seen by the first command.

    Raises:
        BadInput: It is no preset, no path on this machine, and not of the form OWNER/NAME.
    """
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model)
    if model not in presets() and not (ROOT / model).exists() and not on_hub:
        close = get_close_matches(model, presets(), n=1)
        raise BadInput(
            f"{model}: there is no such preset and no such folder, and a hub id is OWNER/NAME."
            f"{f' Did you mean {close[0]}?' if close else ''} Presets: {', '.join(presets())}."
        )


def policy(folder: Path, step: str) -> str:
    return str(folder / step / "policy")


# --- what came out ---------------------------------------------------------------------------------------------------


def estimates(results: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Seed -> policy -> metric -> {"mean", "ci95", "n"}. Base and proactive base are the same with each seed."""
    rows = results["policies"]
    return {
        str(seed): {"base": rows["base"], "proactive": rows["proactive"], "trained": rows[f"grpo-{seed}"]}
        for seed in seeds
    }


def table(results: Mapping[str, Any]) -> str:
    """All rows of the evaluation, then the paired differences, in Markdown."""
    goals = num_goals_of(results["policies"])
    rows = []
    for kind, signed in (("policies", False), ("difference", True)):
        for name, metrics in results[kind].items():
            cells = tuple(estimate_cell(metrics.get(metric), metric, goals, signed=signed) for metric in COLUMNS)
            rows.append(Row(name.replace("-", ", seed ") + " − base" * signed, cells))
    caption = f"mean over {goals} test goals with its 95 % bootstrap interval; differences are paired by goal"
    return markdown(["policy", *COLUMNS.values()], rows, caption)


def verdicts(results: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """What was wanted and what came, in Markdown; met or missed by the numbers alone, with each seed."""
    by_seed = estimates(results, seeds)

    def mean(seed: str, name: str, metric: str) -> float:
        found = by_seed[seed][name][metric]["mean"]
        return float("nan") if found is None else float(found)

    def gain(seed: str) -> tuple[str, bool]:
        reward = results["difference"][f"grpo-{seed}"]["reward"]
        value, interval = estimate_cell(reward, "reward", 0, signed=True)
        return f"{value} {interval}", reward["mean"] is not None and reward["ci95"][0] > 0

    def asked(seed: str) -> tuple[str, bool]:
        value = mean(seed, "trained", "interactivity") - mean(seed, "base", "interactivity")
        return f"{value:+.2f}", value >= 0.4

    def pertinent(seed: str) -> tuple[str, bool]:
        value = mean(seed, "trained", "pertinent")
        return f"{value:.3f}", value >= 0.8

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
    lines = [f"| wanted | {' | '.join(f'seed {seed}' for seed in seeds)} | |", "|---" * (len(seeds) + 2) + "|"]
    for what, came in wanted.items():
        found = [came(seed) for seed in by_seed]
        met = sum(good for _, good in found)
        verdict = "met" if met == len(found) else f"**missed** (met with {met} of {len(found)} seeds)"
        lines.append(f"| {what} | {' | '.join(text for text, _ in found)} | {verdict} |")
    return "\n".join(lines) + "\n"


def over_sft(transcripts: Path, seeds: Sequence[int]) -> str:
    """What GRPO adds to R* of the SFT policy with each seed, paired by goal."""
    scores: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for row in map(json.loads, transcripts.read_text(encoding="utf-8").splitlines()):
        scores.setdefault(row["policy"], {"reward": {}})["reward"].setdefault(row["goal"], []).append(row["reward"])
    gains = summarise(scores, baseline="sft", seed=seeds[0], aggregates={})["difference"]
    cells = (estimate_cell(gains[f"grpo-{seed}"]["reward"], "reward", 0, signed=True) for seed in seeds)
    return "R\\* of GRPO over SFT, paired by goal: " + ", ".join(" ".join(cell) for cell in cells) + ".\n"


def first_played(transcripts: Path) -> dict[str, dict[str, Any]]:
    """Policy -> goal -> the first conversation about it, in the order of the file."""
    played: dict[str, dict[str, Any]] = {}
    for row in map(json.loads, transcripts.read_text(encoding="utf-8").splitlines()):
        played.setdefault(row["policy"], {}).setdefault(row["goal"], row)
    return played


def _told(row: Mapping[str, Any], between: str) -> str:
    said = [m for m in row["messages"] if m["role"] != "system"]
    return between.join(f"**{m['role'].title()}:** {_cell(m['content'])}" for m in said)


def conversations(transcripts: Path, trained: str, count: int = SHOWN) -> str:
    """The first conversations of the base and of the row `trained` side by side, in Markdown."""
    played, parts = first_played(transcripts), []
    for goal, base in list(played["base"].items())[:count]:
        rows = {"base": base, "trained": played[trained][goal]}
        heads = " | ".join(f"{name}, R\\* {row['reward']:.2f}" for name, row in rows.items())
        bodies = " | ".join(_told(row, "<br>") for row in rows.values())
        parts.append(f"### {goal}\n\n| {heads} |\n|---|---|\n| {bodies} |\n")
    return "\n".join(parts)


def all_said(transcripts: Path, seeds: Sequence[int], count: int = WHOLE) -> str:
    """docs/results/conversations.md: the first conversations of each trained policy, nothing left out."""
    played = first_played(transcripts)
    parts = [
        "# The first conversations of each trained policy\n",
        "Those of the [showcase](showcase.md), nothing left out.\n",
    ]
    for name in ("sft", *(f"grpo-{seed}" for seed in seeds)):
        parts.append(f"## {name.replace('-', ', seed ')}\n")
        for goal, row in list(played[name].items())[:count]:
            parts.append(f"### {goal}, R\\* {row['reward']:.2f}\n\n{_told(row, '  ' + chr(10))}\n")
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


def notes(folder: Path, steps: Iterable[str]) -> list[str]:
    """The `notes` in the config.yaml of the steps, as lines of a list in Markdown."""
    by_note: dict[str, list[str]] = {}
    for step in steps:
        for note in OmegaConf.select(OmegaConf.load(ROOT / folder / step / "config.yaml"), "notes") or []:
            by_note.setdefault(str(note), []).append(f"`{step}`")
    return [f"- {', '.join(names)}: {note}" for note, names in by_note.items()]


def page(
    model: str,
    folder: Path,
    seeds: Sequence[int],
    results: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
) -> str:
    """docs/results/showcase.md."""
    goals, each = num_goals_of(results["policies"]), results["config"]["evaluation"]["num_conversations"]
    told = notes(folder, records)
    minutes = ", ".join(in_words(step_seconds(records[f"grpo-{seed}"])) for seed in seeds)
    transcripts = ROOT / folder / "evaluation" / "transcripts.jsonl"
    return "\n".join(
        [
            f"# Showcase: `{model}` on doc_edit",
            "",
            "SFT on the shipped conversations, then GRPO on MR with the rule-based user, from the SFT policy with each",
            f"seed. Each plays {goals} test goals, conversations a goal: {each}. `make showcase MODEL={model}` makes",
            "such a page; the commands of this one are at its end. "
            f"SFT took {in_words(step_seconds(records['sft']))}, GRPO {minutes}.",
            *(["", *told] if told else []),
            "",
            table(results),
            over_sft(transcripts, seeds),
            "## What was wanted",
            "",
            verdicts(results, seeds),
            "## Curves",
            "",
            "![MR, coverage, interactivity and pertinent questions over the steps of GRPO](showcase.png)",
            "",
            f"## The first {SHOWN} conversations, base beside trained (seed {seeds[0]})",
            "",
            conversations(transcripts, f"grpo-{seeds[0]}"),
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
    options.add_argument(
        "--sft-steps", type=int, default=SFT_STEPS, help=f"{SFT_STEPS} if left out, a pass; a larger model needs fewer"
    )
    options.add_argument("--into", default="", help="a folder of docs/results/ for what --write writes there")
    options.set_defaults(jobs=1)
    args = options.parse_intermixed_args(argv)
    try:
        if not args.overrides or "=" in args.overrides[0]:
            raise BadInput("name the model first: a preset of conf/model (qwen25_coder_05b), or a folder or hub id.")
        model, *overrides = args.overrides
        check_name(model)
        if not all(seed.isdigit() for seed in args.seeds.split(",")):
            raise BadInput(f"--seeds {args.seeds} must be whole numbers with commas between them.")
        if not re.fullmatch(r"\w*", args.into):
            raise BadInput(
                f"--into {args.into!r} must be one name of letters, digits and _: a folder of docs/results/."
            )
        if args.sft_steps < 1:
            raise BadInput(f"--sft-steps {args.sft_steps} must be at least 1; {SFT_STEPS} are one pass.")
        seeds = [*dict.fromkeys(int(seed) for seed in args.seeds.split(","))]
        tied = ("experiment", "algorithm", "model", "model.path", "seed", "output_dir", "policies")
        check_overrides(overrides, (*tied, "evaluation.baseline"))
        folder = output_folder(args.output)
        todo = steps(folder, model, seeds, overrides, args.sft_steps)
        if args.dry_run:
            print(listing(todo, folder))
            return 0
        records = run_steps(todo, folder, args.jobs)
        results = read_results(ROOT / folder / "evaluation" / "results.json")
    except (BadInput, StepFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(ROOT / folder / "showcase.json", estimates(results, seeds))
    draw(folder, seeds, ROOT / folder / "showcase.png")
    (ROOT / folder / "showcase.md").write_text(page(model, folder, seeds, results, records), encoding="utf-8")
    (ROOT / folder / "conversations.md").write_text(
        all_said(ROOT / folder / "evaluation" / "transcripts.jsonl", seeds), encoding="utf-8"
    )
    print(f"\n{table(results)}\n{verdicts(results, seeds)}\n{folder / 'showcase.md'}")
    if args.write:
        publish(folder, FILES, args.into)
    return 0


if __name__ == "__main__":
    sys.exit(main())
