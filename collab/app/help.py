"""What `--help` prints, on one screen: experiments, groups to swap, the fields set most often, examples."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from collab.app.compose import options
from collab.config.docs import field_docs
from collab.config.register import register
from collab.util.paths import config_dir

HEIGHT, WIDTH = 40, 100  # of a screen that takes --help of any command

_VALUE = 20  # characters of a default

# The fields that --help lists. The schema has their doc lines.
_TASK = "task.test_file task.num_test evaluation.num_conversations"
_FIELDS = {
    "train": "seed output_dir resume model.path algorithm.lr sampler.window sampler.num_samples sampler.group_size "
    "task.train_file trainer.max_steps trainer.goals_per_step logger.wandb",
    "evaluate": f"seed output_dir resume policies model.path {_TASK} budget.max_usd dry_run",
    "synthesize": "seed output_dir model.path task.train_file sampler.window sampler.num_samples sampler.group_size "
    "synthesis.num_conversations synthesis.part budget.max_usd dry_run",
    "simulator-report": "seed output_dir report.chats report.stored report.replies report.num_conversations "
    "budget.max_usd",
    "judge-report": "seed output_dir report.chats report.replies report.num_conversations budget.max_usd",
}
# The groups of which it lists the options. It only names the others.
_GROUPS = {
    "train": "algorithm model task user",
    "evaluate": "task model user judge",
    "synthesize": "task user teacher",
    "simulator-report": "user users",
    "judge-report": "judge",
}
_FLAGS = (
    ("-m", "sweep: key=a,b runs one job for each value"),
    ("--cfg job", "print the composed config; run nothing"),
    ("--shell-completion", "install=bash|zsh|fish: the Tab key knows groups, options and fields"),
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
        ("experiment=doc_edit", "on a CPU"),
        ("experiment=doc_edit model.path=Qwen/Qwen2.5-0.5B-Instruct", "or a folder"),
        ("experiment=doc_edit resume=true", "go on with the newest interrupted run"),
        ("experiment=doc_edit -m seed=1,2,3", "a sweep: one job for each value"),
        ("experiment=paper/doc_edit -m sweep=slurm seed=1,2,3", "as jobs of SLURM"),
    ),
    "evaluate": (
        ("experiment=doc_edit", "base and proactive base"),
        ("experiment=doc_edit 'policies=[base,mine:outputs/doc_edit/RUN/policy]'", "trained"),
        ("experiment=doc_edit task.test_file=goals.jsonl seed=7", "on your own goals"),
        ("experiment=abg_coqa", "whether it asks back on ambiguous questions alone"),
        ("experiment=safety", "whether it refuses what would do harm, and nothing else"),
        ("experiment=lost", "whether it gets lost when a goal is told bit by bit"),
    ),
    "synthesize": (
        ("experiment=doc_edit", "from the training goals that ship, on a CPU"),
        ("experiment=doc_edit synthesis.num_conversations=2", "for each goal"),
        ("experiment=doc_edit task.train_file=goals.jsonl output_dir=data/mine", "yours"),
        ("experiment=math teacher=openai user=openai budget.max_usd=50", "as the paper"),
        ("experiment=doc_edit synthesis.part=1/2", "beside synthesis.part=2/2"),
    ),
    "simulator-report": (
        ("user=agenda report.chats=chats.jsonl", "against real chats"),
        ("user=agenda users=difficulty", "four rule-based users beside each other"),
        ("user=agenda +user@evaluation.users.llm=openai", "rules and a model"),
        ("'report.stored=[one:outputs/doc_edit/RUN,two:chats.jsonl]'", "no model"),
    ),
    "judge-report": (
        ("judge=openai", "one judge, against rules"),
        ("judge=openai +judge@report.judges.second=claude", "two judges"),
        ("judge=local report.chats=outputs/doc_edit/RUN", "of a run"),
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
    defaults = _defaults(folder)
    shown = _GROUPS[entry].split()
    # one of the places that take an endpoint
    others = [{"endpoint": "endpoint@user.endpoint"}.get(name, name) for name in groups if name not in shown]
    widest = max(map(len, [*shown, "others"]))
    about = {name: ", ".join(f"{one}*" if one == defaults.get(name) else one for one in groups[name]) for name in shown}
    return "\n".join(
        [
            _PURPOSE[entry],
            "",
            f"  {command} [experiment=NAME] [group=option ...] [field=value ...]",
            "",
            *_wrapped("Experiments: ", ", ".join(experiments)),
            "Groups (* default); a wrong option is answered with the right ones:",
            *(line for name in shown for line in _wrapped(f"  {name:<{widest}}  ", about[name])),
            *_wrapped(f"  {'others':<{widest}}  ", ", ".join(others)),
            "Some fields, with their defaults; `--cfg job` has all:",
            *_table(_field(config, key) for key in _FIELDS[entry].split()),
            "Flags:",
            *_table(_FLAGS),
            "Examples:",
            *(f"  {command} {rest}  # {what}" for rest, what in EXAMPLES[entry]),
        ]
    )


def _defaults(folder: Path) -> dict[str, str]:
    """Group -> the option that train.yaml, on which the other commands build, takes."""
    written: Any = OmegaConf.to_container(OmegaConf.load(folder / "train.yaml"))
    return {group: name for line in written["defaults"] if isinstance(line, dict) for group, name in line.items()}


def _field(config: DictConfig, key: str) -> tuple[str, str]:
    """A field as one would type it, interpolations left as they are, and its doc line."""
    place, _, name = key.rpartition(".")
    parent = OmegaConf.select(config, place) if place else config
    schema: Any = OmegaConf.get_type(parent)
    values: Any = OmegaConf.to_container(parent)
    shown = json.dumps(values[name], separators=(",", ":"), ensure_ascii=False).replace('"', "")
    shown = shown if len(shown) <= _VALUE else f"{shown[: _VALUE - 3]}..."
    return f"{key}={shown}", field_docs(schema).get(name, "")


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Two columns; what is too long for a line ends in dots."""
    rows = list(rows)
    width = max(len(left) for left, _ in rows)
    right = WIDTH - width - 4
    return [f"  {left:<{width}}  {textwrap.shorten(text, right, placeholder=' ...')}".rstrip() for left, text in rows]


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * len(head)
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)


def program(entry: str) -> list[str]:
    """How this process was started, after the interpreter: a script, a module, or the console command with `entry`."""
    import __main__

    module = __main__.__spec__.name.removesuffix(".__main__") if __main__.__spec__ else ""
    if module == "collab" or os.path.basename(sys.argv[0]) == "collab":
        return ["-m", "collab", entry]
    return ["-m", module] if module else [os.path.abspath(sys.argv[0])]
