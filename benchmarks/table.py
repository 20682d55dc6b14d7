"""The paper's Table 1 in small: every algorithm from synthesis to evaluation, on the embedded doc_edit.

    python benchmarks/table.py --dry-run     # the commands
    python benchmarks/table.py --write       # run them, then write docs/results/table.md and docs/results/table.json

SFT learns from the shipped conversations. The other algorithms start from its policy: it makes conversations from
training goals by MR (`collab synthesize`), from which offline DPO learns; PPO and GRPO play their own. GRPO is not in
the paper. Online DPO starts from the offline DPO policy, as in the paper. One evaluation then plays the same test goals
with the base, the proactive base and the five policies, under the same user randomness. The same call goes on where it
was stopped. Fields of the experiment follow as in train.py, and hold for every command:
`trainer.max_steps=2 task.num_test=4`.
"""

from __future__ import annotations

import argparse
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
    cores,
    in_words,
    listing,
    machine,
    output_folder,
    publish,
    run_steps,
    step_seconds,
    wall_seconds,
)
from collab.reports.merge import read_results
from collab.reports.results import validate_results
from collab.reports.tables import Row, estimate_cell, markdown, num_goals_of
from collab.util.errors import BadInput
from collab.util.files import write_json

TRAINED = ("sft", "dpo", "ppo", "online_dpo", "grpo")
BASELINE = "proactive"
COLUMNS = {
    "reward": "R*",
    "coverage": "coverage",
    "bleu": "BLEU",
    "official_bleu": "official BLEU",
    "assistant_tokens": "assistant tokens",
    "interactivity": "interactivity",
}


# --- the commands ----------------------------------------------------------------------------------------------------


def steps(folder: Path, seed: int, overrides: Sequence[str] = ()) -> list[Step]:
    """All commands, each after those that it needs; those that others wait for longest come first.

    Args:
        folder: Of all steps, as the commands have it.
        seed: Of every command.
        overrides: Of the user; they hold for every command, but for what ties the steps together.
    """
    common = (f"seed={seed}", "callbacks=quiet", "logger.wandb=disabled")
    # train.py plays test goals itself; here that is left to the one evaluation.
    once = (*common, "task.num_test=1", "evaluation.num_conversations=1")
    training = ("train.py", "experiment=doc_edit", *once)

    def step(name: str, command: Sequence[str], *tied: str, needs: tuple[str, ...] = (), resumes: bool = False) -> Step:
        return Step(name, merged((*command, *overrides, *tied, f"output_dir={folder / name}")), needs, resumes)

    def policy(name: str) -> str:
        return f"{folder / name / 'policy'}"

    def after(name: str) -> str:
        return f"model.path={policy(name)}"

    rows = ",".join(("base", "proactive", *(f"{name}:{policy(name)}" for name in TRAINED)))
    synthesis = ("-m", "collab", "synthesize", "experiment=doc_edit", *common, "synthesis.num_goals=48")
    offline = ("algorithm=dpo_small", "trainer.max_steps=24", "trainer.goals_per_step=8")  # contexts; about one epoch
    return [
        step("sft", ("train.py", "experiment=doc_edit_sft", *once)),
        step("synthesis", synthesis, after("sft"), needs=("sft",), resumes=True),
        step("grpo", training, after("sft"), needs=("sft",)),
        step("ppo", (*training, "algorithm=ppo_small"), after("sft"), needs=("sft",)),
        step(
            "dpo",
            (*training, *offline),
            after("sft"),
            f"algorithm.data={folder / 'synthesis'}",
            needs=("synthesis",),
        ),
        step("online_dpo", (*training, "algorithm=online_dpo_small"), after("dpo"), needs=("dpo",)),
        step(
            "evaluation",
            ("evaluate.py", "experiment=doc_edit", *common, f"evaluation.baseline={BASELINE}"),
            f"policies=[{rows}]",
            needs=TRAINED,
        ),
    ]


def merged(command: Sequence[str]) -> tuple[str, ...]:
    """Of several overrides of one field the last alone, in the first one's place."""
    found: dict[str, str] = {}
    for word in command:
        key, equals, _ = word.partition("=")
        found[key.lstrip("+~") if equals else word] = word
    return tuple(found.values())


# --- what came out ---------------------------------------------------------------------------------------------------


def gather(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`results.json` of the evaluation, with the seconds of the steps instead of those of its rows."""
    results = read_results(ROOT / folder / "evaluation" / "results.json")
    seconds = {name: step_seconds(record) for name, record in records.items()}
    results["seconds"] = {**seconds, "total": wall_seconds(records)}
    results["config"]["output_dir"] = str(folder / "evaluation")  # as it was typed, on whatever machine
    validate_results(results)
    return results


def table(results: Mapping[str, Any]) -> str:
    """All rows of the evaluation, then the paired differences, in Markdown."""
    goals = num_goals_of(results["policies"])
    rows = []
    for kind, signed in (("policies", False), ("difference", True)):
        for name, metrics in results[kind].items():
            cells = tuple(estimate_cell(metrics.get(metric), metric, goals, signed=signed) for metric in COLUMNS)
            rows.append(Row(name + f" − {BASELINE}" * signed, cells))
    caption = f"mean over {goals} test goals with its 95 % bootstrap interval; differences are paired by goal"
    return markdown(["policy", *COLUMNS.values()], rows, caption)


def verdicts(results: Mapping[str, Any]) -> str:
    """What was wanted and what came, in Markdown; met or missed by the numbers alone."""
    lines = ["| wanted | came | |", "|---|---|---|"]
    for name in TRAINED:
        reward = results["difference"][name]["reward"]
        value, interval = estimate_cell(reward, "reward", reward["n"], signed=True)
        if reward["mean"] is None:
            verdict = "**not measured**"
        elif reward["mean"] <= 0:
            verdict = "**missed**"
        else:
            verdict = "met" if reward["ci95"][0] > 0 else "met, but the interval reaches 0"
        lines.append(f"| {name} above {BASELINE} in R\\* | {value} {interval} | {verdict} |")
    return "\n".join(lines) + "\n"


def page(results: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], place: str) -> str:
    """docs/results/table.md."""
    config = results["config"]
    return "\n".join(
        [
            "# Results",
            "",
            "Every algorithm on the embedded `doc_edit`, with SmolLM2-135M-Instruct. The user is an agenda of rules,",
            "and interactivity is the share of its agenda that questions brought to light. No figure is one of the",
            "paper's Table 1: other texts, another user, a small model. BLEU here is over words; the official BLEU is",
            "over characters, as the paper's is, so the sign of its change may be held beside the paper's, its size",
            "may not. `make table` runs it all and writes this page and `table.json`.",
            "",
            f"One training seed ({config['seed']}), which is also that of the evaluation; each test goal is played",
            f"{config['evaluation']['num_conversations']} times by every row, with the same user randomness. An",
            "interval is over test goals and says nothing of other training seeds.",
            "",
            table(results),
            "R\\* is that of a whole conversation, with the weights of `conf/task/doc_edit.yaml`. `proactive` is the",
            "base under an instruction to ask. `sft` learns from the shipped conversations. `dpo`, `ppo` and `grpo`",
            "start from its policy, `online_dpo` from that of `dpo`.",
            "",
            "## What was wanted",
            "",
            verdicts(results),
            "## How it was made",
            "",
            "Steps that do not wait for each other run beside each other. The settings of SFT and GRPO were chosen on",
            "validation goals, those of the others were not tuned. The rows that `train.py` prints there are of",
            "one test goal and mean nothing.",
            "",
            account(records, place),
        ]
    )


# --- the command line ------------------------------------------------------------------------------------------------


def parser(what: str | None, output: str, docs: str) -> argparse.ArgumentParser:
    """The options that this script and benchmarks/ablation.py share."""
    found = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("overrides", nargs="*", help="fields of experiment=doc_edit, for every command")
    found.add_argument("--output", type=Path, default=Path(output), help=f"folder of all steps; {output} if left out")
    found.add_argument(
        "--jobs",
        type=_count,
        default=min(2, cores()),
        help=f"commands at a time, which share the cores; {min(2, cores())} here if left out",
    )
    found.add_argument("--write", action="store_true", help=f"put what came out into {docs}")
    found.add_argument("--dry-run", action="store_true", help="list the commands and what is finished; run nothing")
    return found


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def check_overrides(overrides: Sequence[str], tied: Sequence[str]) -> None:
    """Refuse fields that are not there, and those that the script itself sets to tie its steps together.

    Raises:
        BadInput: Names them.
    """
    from collab.app.compose import load_config

    for override in overrides:
        if override.lstrip("+~").partition("=")[0] in tied:
            raise BadInput(
                f"{override}: the script sets this itself, so that its commands fit together. Leave it out; its own "
                "options are told by --help."
            )
    load_config("train", ["experiment=doc_edit", *overrides])


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and, if asked to, write; the exit status."""
    options = parser(__doc__, "outputs/table", "docs/results/table.md and docs/results/table.json")
    options.add_argument("--seed", type=int, default=1, help="of every command; 1 if left out")
    args = options.parse_intermixed_args(argv)
    try:
        check_overrides(
            args.overrides,
            ("experiment", "algorithm", "algorithm.data", "seed", "output_dir", "policies", "evaluation.baseline"),
        )
        folder = output_folder(args.output)
        todo = steps(folder, args.seed, args.overrides)
        if args.dry_run:
            print(listing(todo, folder))
            return 0
        records = run_steps(todo, folder, args.jobs)
        results = gather(folder, records)
    except (BadInput, StepFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    written = ROOT / folder / "table.md"
    write_json(ROOT / folder / "table.json", results)
    written.write_text(page(results, records, machine()), encoding="utf-8")
    print(f"\n{table(results)}\n{verdicts(results)}\n{in_words(results['seconds']['total'])}, {folder / 'table.md'}")
    if args.write:
        publish(folder, ("table.md", "table.json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
