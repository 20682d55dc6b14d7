"""What `--help` prints: experiments, groups to swap, common fields with defaults and doc lines, examples."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from collab.app.compose import options
from collab.config.docs import field_docs
from collab.config.register import register
from collab.util.paths import config_dir

# The fields that --help lists: of all commands, then of each. The schema has their doc lines.
_COMMON = """
    seed name output_dir precision dry_run cache budget.max_usd budget.max_tokens model.path model.attention
    task.data task.max_turns task.max_new_tokens sampler.temperature trainer.accelerator
"""
_FIELDS = {
    "train": """
        resume model.lora.enabled task.train_file task.val_file task.test_file task.num_test algorithm.data algorithm.lr
        sampler.window sampler.num_samples sampler.group_size sampler.paired trainer.devices trainer.max_steps
        trainer.goals_per_step logger.wandb evaluation.num_conversations export.merge push_to_hub
    """,
    "evaluate": "resume policies task.test_file task.num_test trainer.devices evaluation.num_conversations",
    "synthesize": """
        task.train_file sampler.window sampler.num_samples sampler.group_size sampler.paired
        synthesis.num_goals synthesis.num_conversations synthesis.at_once synthesis.part teacher.base_url teacher.model
        push_to_hub
    """,
    "simulator-report": "report.chats report.stored report.replies report.num_conversations",
    "judge-report": "report.chats report.replies report.num_conversations",
}
_FLAGS = (
    ("-m", "sweep: key=a,b runs one job for each value; a job that fails does not stop the others"),
    ("--cfg job", "print the composed config, all fields; --resolve fills in what refers to others"),
    ("--info defaults", "where each part of the config comes from"),
    ("--hydra-help", "the flags of Hydra"),
)
_PURPOSE = {
    "train": "Train a policy and compare it with its base.",
    "evaluate": "Compare policies on the same goals.",
    "synthesize": "Make conversations to learn from. An interrupted command goes on when it is repeated.",
    "simulator-report": "Say how human simulated users are: against real chats, or against each other.",
    "judge-report": "Say how far judges agree with each other and with rules, and what moves their scores.",
}
EXAMPLES = {
    "train": (
        ("experiment=doc_edit", "the quick start, on a CPU"),
        ("experiment=doc_edit trainer.max_steps=20 sampler.group_size=4", "more steps, fewer candidates"),
        ("experiment=math", "another task"),
        ("experiment=doc_edit model.path=Qwen/Qwen2.5-0.5B-Instruct", "another model, from the hub or a folder"),
        ("experiment=doc_edit resume=true", "go on with the newest run of it that was interrupted"),
        ("experiment=doc_edit -m seed=1,2,3", "a sweep: one job for each value"),
        ("experiment=doc_edit -m sampler.window=1,2 seed=1,2", "a sweep over all pairs"),
        ("experiment=paper/doc_edit -m sweep=slurm seed=1,2,3", "a sweep as jobs of SLURM"),
        ("experiment=paper/doc_edit --cfg job", "print the composed config, run nothing"),
    ),
    "evaluate": (
        ("experiment=doc_edit", "base and proactive base"),
        (
            "experiment=doc_edit 'policies=[base,mine:outputs/doc_edit/RUN/policy]'",
            "a trained policy against its base",
        ),
        ("experiment=doc_edit task.test_file=goals.jsonl seed=7", "on your own goals"),
        ("experiment=abg_coqa", "whether it asks back on ambiguous questions, and on no others"),
        ("experiment=safety", "whether it refuses what would do harm, and nothing else"),
        ("experiment=lost", "whether it gets lost when a goal is told bit by bit"),
        ("experiment=doc_edit -m seed=1,2,3", "a sweep: one job for each value"),
        ("experiment=doc_edit --cfg job", "print the composed config, run nothing"),
    ),
    "synthesize": (
        ("experiment=doc_edit", "from the training goals that ship, on a CPU"),
        ("experiment=doc_edit sampler.window=2 sampler.num_samples=3 output_dir=data/w2", "the paper's MR, elsewhere"),
        ("experiment=doc_edit synthesis.num_conversations=2", "two conversations per goal; those that are there stay"),
        ("experiment=doc_edit task.train_file=goals.jsonl output_dir=data/mine", "from your own goals"),
        ("experiment=math teacher=openai user=openai budget.max_usd=50", "GPT-4o as the assistant, as in the paper"),
        ("experiment=doc_edit synthesis.part=1/2", "the first half; another command plays synthesis.part=2/2"),
        ("experiment=doc_edit --cfg job", "print the composed config, run nothing"),
    ),
    "simulator-report": (
        ("user=agenda report.chats=chats.jsonl", "the rule-based user against chats of people"),
        ("user=agenda users=difficulty", "four rule-based users beside each other"),
        ("user=agenda +user@evaluation.users.llm=openai budget.max_usd=2", "rules and a language model"),
        ("'report.stored=[one:outputs/doc_edit/RUN,two:chats.jsonl]'", "stored conversations; no model is needed"),
    ),
    "judge-report": (
        ("judge=openai", "one judge, against rules"),
        ("judge=openai +judge@report.judges.second=claude", "two judges against each other"),
        ("judge=local report.chats=outputs/doc_edit/RUN", "on the conversations of a run"),
    ),
}


def help_text(entry: str) -> str:
    """What `--help` prints."""
    register()
    folder = config_dir()
    script = program(entry)
    command = f"collab {entry}" if "collab" in script else f"python {' '.join(map(os.path.basename, script))}"
    with hydra.initialize_config_dir(str(folder), job_name=entry, version_base=None):
        config = hydra.compose(entry)
    groups = options([folder])
    experiments = groups.pop("experiment")
    return "\n".join(
        [
            _PURPOSE[entry],
            "",
            f"  {command} [experiment=NAME] [group=option ...] [field=value ...]",
            "",
            "Experiments (experiment=NAME), versioned sets of overrides:",
            *(f"  {name}" for name in experiments),
            "",
            "Groups (group=option), one for each thing to swap:",
            *_table(_with_defaults(groups, folder)),
            "",
            "Common fields (field=value), with their defaults:",
            *_table(_field(config, key) for key in f"{_COMMON} {_FIELDS[entry]}".split()),
            "",
            "Flags:",
            *_table(_FLAGS),
            "",
            "Examples:",
            *_table((f"{command} {rest}", what) for rest, what in EXAMPLES[entry]),
        ]
    )


def _with_defaults(groups: Mapping[str, Sequence[str]], folder: Path) -> Iterator[tuple[str, str]]:
    """Each group with its options and the one that train.yaml, on which evaluate.yaml builds, takes."""
    written: Any = OmegaConf.to_container(OmegaConf.load(folder / "train.yaml"))
    defaults = {group: name for line in written["defaults"] if isinstance(line, dict) for group, name in line.items()}
    for group, names in groups.items():
        default = f"  (default: {defaults[group]})" if group in defaults and len(names) > 1 else ""
        key = "endpoint@user.endpoint" if group == "endpoint" else group  # one of the places that take it
        yield key, " | ".join(names) + default


def _field(config: DictConfig, key: str) -> tuple[str, str]:
    """A field as one would type it, interpolations left as they are, and its doc line."""
    place, _, name = key.rpartition(".")
    parent = OmegaConf.select(config, place) if place else config
    schema: Any = OmegaConf.get_type(parent)
    values: Any = OmegaConf.to_container(parent)
    shown = json.dumps(values[name], separators=(",", ":"), ensure_ascii=False).replace('"', "")
    return f"{key}={shown}", field_docs(schema).get(name, "")


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max(len(left) for left, _ in rows)
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]


def program(entry: str) -> list[str]:
    """How this process was started, after the interpreter: a script, a module, or the console command with `entry`."""
    import __main__

    module = __main__.__spec__.name.removesuffix(".__main__") if __main__.__spec__ else ""
    if module == "collab" or os.path.basename(sys.argv[0]) == "collab":
        return ["-m", "collab", entry]
    return ["-m", module] if module else [os.path.abspath(sys.argv[0])]
