"""The command line of `train.py` and `evaluate.py`: Hydra composes, everything is checked, then the run begins.

In this order, the cheapest first, each with one message for the user and no stack trace:

1. the config is composed; Hydra's errors are told in our words, with the closest name and the valid ones;
2. rules across fields (`collab.config.check`);
3. the goals are read and checked;
4. torch is imported: device, precision, processes, metrics, the model's files and tokenizer, the length of the
   references;
5. Hydra makes the run's folder, and `collab.train.train` or `collab.evaluate.evaluate` is called.

`--help` and a misspelt override end before 2, so this file imports neither torch nor anything that does.

A sweep (`-m`) runs each job as a process of its own, with the command that one would type for it alone. So job k is the
same run whether or not others came before it (no seeds, thread counts or open loggers are left over), a job that
crashes or is killed takes nobody with it, and Lightning may start the other ranks of a job by repeating its command.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import CompactHydraException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from collab.config import Config, ModelConfig, check, field_docs, named_policies, register
from collab.errors import BadInput
from collab.paths import config_dir

if TYPE_CHECKING:
    from collab.datamodules.goals import GoalSplits

Run = Callable[[Config], None]

COMMON = (  # what --help lists; the doc lines are those of the schema
    "seed",
    "name",
    "output_dir",
    "precision",
    "policies",
    "model.path",
    "model.attention",
    "model.lora.enabled",
    "task.train_file",
    "task.val_file",
    "task.test_file",
    "task.max_turns",
    "task.max_new_tokens",
    "algorithm.lr",
    "sampler.window",
    "sampler.num_samples",
    "sampler.group_size",
    "sampler.paired",
    "sampler.temperature",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.max_steps",
    "trainer.goals_per_step",
    "logger.wandb",
    "evaluation.num_conversations",
    "export.merge",
)
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # one job after the other, from here
EXAMPLES = {
    "train": (
        ("experiment=doc_edit", "the quick start, on a CPU"),
        ("experiment=doc_edit trainer.max_steps=56 sampler.group_size=4", "more steps, fewer candidates"),
        ("experiment=doc_edit model.path=Qwen/Qwen2.5-0.5B-Instruct", "another model, from the hub or a folder"),
        ("experiment=doc_edit -m seed=1,2,3", "a sweep: one job for each value"),
        ("experiment=doc_edit -m sampler.window=1,2 seed=1,2", "a sweep over all pairs"),
        ("experiment=paper/doc_edit --cfg job", "print the composed config, run nothing"),
    ),
    "evaluate": (
        ("experiment=doc_edit", "base and proactive base"),
        (
            "experiment=doc_edit 'policies=[base,mine:outputs/doc_edit/RUN/policy]'",
            "a trained policy against its base",
        ),
        ("experiment=doc_edit task.test_file=goals.jsonl seed=7", "on your own goals"),
        ("experiment=doc_edit -m seed=1,2,3", "a sweep: one job for each value"),
        ("experiment=doc_edit --cfg job", "print the composed config, run nothing"),
    ),
}


class JobFailed(CompactHydraException):
    """A job of a sweep ended with an error; Hydra prints these without a stack trace."""


@dataclass(frozen=True)
class Job:
    """One finished job of a sweep; `code` is its exit status, negative for the signal that ended it."""

    overrides: list[str]
    folder: Path
    code: int


def main(entry: str, run: Run | None = None) -> None:
    """Run the command line `sys.argv`; leaves the process by SystemExit unless all went well.

    Exit status: 0; 1 for a run that failed or input that was refused; 2 for an unknown flag; 130 when interrupted.

    Args:
        entry: "train" or "evaluate": the primary config in `conf/`, and which rules apply.
        run: What to call with the checked config instead of `collab.train.train` or `collab.evaluate.evaluate`; it is
            taken to need neither model nor device, so step 4 of the module's docstring is left out.
    """
    try:
        failed = _main(entry, run)
    except BadInput as error:
        _refuse(error)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
    if failed:
        sys.exit(1)


def _refuse(error: BadInput) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(1)


def _main(entry: str, run: Run | None) -> bool:
    """Whether a job of a sweep failed; a single run that fails raises."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        try:
            print(help_text(entry), flush=True)
        except BrokenPipeError:  # the reader has seen enough (`| head`); what is left is flushed to nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    args = get_args_parser().parse_intermixed_args()
    # Hydra parses again, and takes no flag between two overrides: flags first.
    sys.argv[1:] = [text for text in sys.argv[1:] if text not in args.overrides] + args.overrides
    register()
    # The start of the run, for the names of folders.
    OmegaConf.register_new_resolver("stamp", stamp, replace=True)
    folder = config_dir()
    # A rerun is composed already; Hydra's own help and completion compose nothing.
    if not (args.hydra_help or args.shell_completion or args.experimental_rerun):
        _check_before_start(entry, args, folder, machine=run is None)
    if rank() > 0:
        sys.argv.append("hydra.output_subdir=null")  # rank 0 writes the config

    jobs: list[Job] = []

    def job(composed: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            jobs.append(_run_in_own_process(args))
            # `jobs` is told at the end, but another launcher runs this elsewhere and has to be told by an exception.
            if jobs[-1].code != 0 and HydraConfig.get().launcher._target_ != BASIC_LAUNCHER:
                raise JobFailed(f"A job of the sweep failed: {' '.join(jobs[-1].overrides)} ({_ending(jobs[-1])})")
            return
        config = typed(composed, output_dir=HydraConfig.get().runtime.output_dir)
        if rank() == 0:
            OmegaConf.save(OmegaConf.structured(config), Path(config.output_dir) / "config.yaml")
            for note in config.notes:
                print(f"note: {note}", flush=True)
        try:
            (run or _entry_point(entry))(config)
        except BadInput as error:  # here, since Hydra would print it with its trace
            _refuse(error)

    start = hydra.main(config_path=str(folder), config_name=entry, version_base=None)(job)
    try:
        start()
    finally:
        if jobs and rank() == 0:
            print(summary(jobs), flush=True)
    return any(done.code != 0 for done in jobs)


def _entry_point(entry: str) -> Run:
    if entry == "train":
        from collab.train import train

        return train
    from collab.evaluate import evaluate

    return evaluate


# --- before the start ------------------------------------------------------------------------------------------------


def _check_before_start(entry: str, args: argparse.Namespace, folder: Path, machine: bool) -> None:
    """Steps 1 to 4 of the module's docstring; of a sweep, and of a config that is only shown, step 1."""
    folders = [folder]
    searched = []
    if args.config_dir:
        folders.insert(0, Path(args.config_dir).absolute())
        searched = [f"hydra.searchpath=[{_quoted(str(folders[0]))}]"]
    sweep = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    given = [text for text in args.overrides if not text.startswith("hydra.mode=")]
    name = args.config_name or entry
    with hydra.initialize_config_dir(str(args.config_path or folder), job_name=entry, version_base=None):
        overrides = _parse(given)
        if sweep and any(override.key_or_group == "hydra/sweeper" for override in overrides):
            return  # only that sweeper knows what the jobs are
        if sweep:
            every = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
        else:
            if several := [_line(override) for override in overrides if override.is_sweep_override()]:
                raise BadInput(
                    f"{' '.join(several)} lists several values, and a single run takes one. "
                    "Add -m to run one job for each, or quote a value with a comma: 'key=\"a,b\"'."
                )
            every = [given]
        configs = [compose(name, [*searched, *job], folders) for job in every]
    if sweep or args.cfg or args.info:
        return
    config = typed(configs[0], output_dir="")  # the folder is named only once everything is right
    check(config, entry)
    from collab.datamodules.goals import load_splits

    splits = load_splits(config.task)
    if machine:
        check_machine(config, splits, entry)


def check_machine(config: Config, goals: GoalSplits, entry: str = "train") -> None:
    """What needs torch and the tokenizer to be known; reads no weights.

    Raises:
        BadInput: Device, precision or attention cannot be had here; the processes cannot share a step's goals evenly;
            a class that `target` names is not there, or a metric does not take its options; `model.path` or one of an
            evaluation's policies is no model, or has too few positions for a conversation; a reference is longer than
            `task.max_new_tokens`.
    """
    from collab.datamodules.goals import check_reference_lengths
    from collab.modules.loading import check_model, load_tokenizer, resolve_attention, resolve_device, resolve_dtype

    device = resolve_device(config.trainer.accelerator)
    _check_devices(config, device.type, entry)
    resolve_attention(config.model.attention, resolve_dtype(config.precision, device), device)
    for key, target in targets(config).items():
        load_target(target, key)
    _check_metrics(config)
    check_model(config.model)
    _check_positions(config, config.model, "model.path")
    if entry == "evaluate":
        for name, path in named_policies(config.policies).items():
            if path is None:
                continue
            model = replace(config.model, path=str(path))
            try:
                check_model(model)
            except BadInput as error:
                raise BadInput(f"policies: {name} cannot be played. {error}") from error
            _check_positions(config, model, "policies")
    tokenizer = load_tokenizer(config.model)
    check_reference_lengths(
        [*goals.train, *goals.val, *goals.test],
        lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        config.task.max_new_tokens,
    )


def _check_devices(config: Config, kind: str, entry: str) -> None:
    import torch

    devices, nodes, goals = config.trainer.devices, config.trainer.num_nodes, config.trainer.goals_per_step
    on_each = devices if isinstance(devices, int) else 1 if devices == "auto" else len(devices)
    if kind == "cuda":
        there = torch.cuda.device_count()
        if devices == "auto":
            on_each = there
        elif devices > there if isinstance(devices, int) else max(devices) >= there:
            raise BadInput(
                f"trainer.devices ({devices}) asks for more than this machine has: {there} CUDA devices. "
                "Set trainer.devices=auto."
            )
    processes = on_each * nodes
    if entry == "train" and goals % processes:
        raise BadInput(
            f"trainer.goals_per_step ({goals}) must be a multiple of the number of processes ({processes}, by "
            f"trainer.devices={devices} and trainer.num_nodes={nodes}): each takes as many goals. "
            f"Set trainer.goals_per_step={(goals // processes + 1) * processes}."
        )


def _check_metrics(config: Config) -> None:
    for name, metric in config.task.metrics.items():
        try:
            load_target(metric.target, f"task.metrics.{name}.target")(**metric.options)
        except (TypeError, BadInput) as error:
            raise BadInput(
                f"task.metrics.{name}.options ({metric.options}) do not fit {metric.target}: {_lines(error)} "
                f"Set task.metrics.{name}.options to what the class takes."
            ) from error


def _check_positions(config: Config, model: ModelConfig, key: str) -> None:
    from collab.modules.loading import num_positions

    task, positions = config.task, num_positions(model)
    if positions is not None and task.max_turns * task.max_new_tokens > positions:
        raise BadInput(
            f"task.max_turns ({task.max_turns}) times task.max_new_tokens ({task.max_new_tokens}) is "
            f"{task.max_turns * task.max_new_tokens} tokens for the assistant alone, and {key} "
            f"({model.path or model.name}) has {positions} positions for the whole conversation. "
            f"Set task.max_new_tokens={positions // (2 * task.max_turns)} or less, or fewer turns."
        )


def targets(config: Config) -> dict[str, str]:
    """Dotted key -> the class that it names, for all parts of a run that are chosen by config."""
    return {
        "task.target": config.task.target,
        "algorithm.target": config.algorithm.target,
        "user.target": config.user.target,
        "engine.target": config.engine.target,
        **{f"task.metrics.{name}.target": metric.target for name, metric in config.task.metrics.items()},
    }


def load_target(target: str, key: str) -> Any:
    """The class that `package.module.Class` names.

    Args:
        target: Its full name.
        key: The config field that holds it, for the message.

    Raises:
        BadInput: There is no such module or class.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(
            f"{key}={target} cannot be imported: {_lines(error)} Write package.module.Class of something installed."
        ) from error


def typed(composed: DictConfig, output_dir: str) -> Config:
    """The dataclasses behind a composed config, interpolations resolved.

    Args:
        composed: What Hydra composed.
        output_dir: Of the run; takes the place of the composed one.

    Raises:
        BadInput: A field has no value, or an interpolation cannot be resolved.
    """
    OmegaConf.update(composed, "output_dir", output_dir)
    try:
        if missing := sorted(OmegaConf.missing_keys(composed)):
            raise BadInput(f"{', '.join(missing)}: no value, and one is needed. Set {missing[0]}=... .")
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise BadInput(f"The config cannot be resolved: {_lines(error)} Check what is written in ${{...}}.") from error
    assert isinstance(config, Config), "the primary config starts from the schema"
    return config


# --- composing, and telling what went wrong --------------------------------------------------------------------------


def compose(name: str, overrides: list[str], folders: Sequence[Path]) -> DictConfig:
    """One job's config; Hydra has to be initialised.

    Raises:
        BadInput: Names each override that does not fit, why, and what would.
    """
    try:
        config = hydra.compose(name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(_explain(error, name, _parse(overrides), options(folders))) from error
    if strangers := _strangers(config):  # Hydra lets + add them even to a schema
        refusal = HydraException(f"There is no field {', '.join(strangers)}.")
        raise BadInput(_explain(refusal, name, _parse(overrides), options(folders)))
    return config


def load_config(entry: str, overrides: Sequence[str] = (), output_dir: str = "") -> Config:
    """The config that the command line `overrides` would give, for tests and notebooks: composed, not yet checked.

    Args:
        entry: "train" or "evaluate".
        overrides: As typed, e.g. `["experiment=doc_edit", "seed=2"]`.
        output_dir: Of the run; no folder is made.

    Raises:
        BadInput: As `compose` and `typed`.
    """
    register()
    folder = config_dir()
    with hydra.initialize_config_dir(str(folder), job_name=entry, version_base=None):
        return typed(compose(entry, list(overrides), [folder]), output_dir)


def _parse(overrides: Sequence[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise BadInput(
            f"{error.override} is not an override. Write key=value without spaces around =, and quotes around a value "
            "that has =, commas or brackets of its own: 'policies=[base,\"mine:runs/lr=1/policy\"]'."
        ) from error


def options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Group -> its options by the names that one types, nested ones in full (`paper/doc_edit`)."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group, *rest = path.relative_to(folder).with_suffix("").parts
            if rest and group != "hydra":
                found.setdefault(group, set()).add("/".join(rest))
    return {group: sorted(names) for group, names in sorted(found.items())}


def _explain(error: Exception, name: str, overrides: Sequence[Override], groups: Mapping[str, Sequence[str]]) -> str:
    """Hydra's errors come in many shapes; what is wrong is found by trying the overrides one by one instead."""
    chosen = [override for override in overrides if override.key_or_group in groups]
    bad = {id(override): text for override in chosen if (text := _option_problem(override, groups))}
    good = [_line(override) for override in chosen if id(override) not in bad]
    ours = [o for o in overrides if o.key_or_group not in groups and not str(o.key_or_group).startswith("hydra")]
    problems = [*bad.values(), *_field_problems(name, good, ours, groups)]
    return "\n".join(problems) or f"The config cannot be composed. {_lines(error)}"


def _option_problem(override: Override, groups: Mapping[str, Sequence[str]]) -> str:
    group: str = override.key_or_group
    value: Any = override.value()
    names = groups[group]
    if value is not None and str(value) not in names:
        close = difflib.get_close_matches(str(value), names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{_line(override)}: there is no such {group}.{hint} {group} is one of: {', '.join(names)}."
    if override.is_add():
        return f"{_line(override)}: {group} is there already. Write {group}={value}, without the +."
    return ""


def _field_problems(
    name: str, chosen: list[str], overrides: Sequence[Override], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    try:
        config = hydra.compose(name, chosen)
    except (HydraException, OmegaConfBaseException):
        return []  # not the command line: a YAML file is wrong
    known = list(_keys(config))
    problems = []
    for override in overrides:
        key = str(override.key_or_group)
        if override.is_delete():
            continue
        try:
            OmegaConf.update(config, key, override.value(), force_add=not override.is_add())
            unknown = bool(_strangers(config)) or (
                key not in known and not (override.is_add() or override.is_force_add())
            )
        except OmegaConfBaseException as error:
            unknown = key not in known
            if not unknown:
                problems.append(f"{_line(override)}: wrong type. {_described(config, key)}{_lines(error)}")
        if unknown:
            problems.append(_unknown(override, name, chosen, known, groups))
            config = hydra.compose(name, chosen)
    return problems


def _described(config: DictConfig, key: str) -> str:
    """Type and doc line of a field, as a sentence; "" if it belongs to no schema."""
    parent, _, name = key.rpartition(".")
    schema = OmegaConf.get_type(OmegaConf.select(config, parent)) if parent else Config
    if not (isinstance(schema, type) and is_dataclass(schema)):
        return ""
    kind = next(field.type for field in fields(schema) if field.name == name)
    return f"{key} takes {kind}{f' ({doc})' if (doc := field_docs(schema).get(name)) else ''}. "


def _strangers(node: Any, prefix: str = "") -> list[str]:
    """Dotted names of the entries that the schema of their node does not have."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return []
    schema = OmegaConf.get_type(node)
    own = {field.name for field in fields(schema)} if is_dataclass(schema) else set(node)
    found = [f"{prefix}{key}" for key in map(str, node) if key not in own]
    for key in map(str, node):
        found += _strangers(node._get_node(key), f"{prefix}{key}.")
    return found


def _unknown(
    override: Override, name: str, chosen: list[str], known: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> str:
    key = str(override.key_or_group)
    parent = key.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    beside = [name.removeprefix(prefix) for name in known if name.rpartition(".")[0] == parent]
    fields_beside = [name for name in beside if parent or name not in groups]
    misspelt = key.removeprefix(prefix).split(".")[0]
    close = difflib.get_close_matches(misspelt, [*beside, *groups] if not parent else beside, n=1, cutoff=0.7)
    # else the right field in the wrong place, or without its place: `lr` for `algorithm.lr`
    elsewhere = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    meant = [f"{prefix}{name}" for name in close] or elsewhere[:3]
    hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
    group = key.split(".")[0]
    for option in groups.get(group, ()):
        if group != "experiment" and key in _keys(hydra.compose(name, [*chosen, f"{group}={option}"])):
            hint = f" It is a field of {group}={option}."
    if parent == "task.metrics":  # OmegaConf cannot add to a dict of schemas from the command line
        valid = f"Metrics: {', '.join(beside)}; a new one is written in a YAML file of conf/task or conf/experiment."
    elif parent and not beside:
        valid = f"{parent} has none; add it with +{_line(override)}."
    elif parent:
        valid = f"Fields of {parent}: {', '.join(beside)}."
    else:
        valid = f"Groups: {', '.join(groups)}. Fields: {', '.join(fields_beside)}."
    what = "group" if "/" in key else "field"
    return f"{_line(override)}: there is no {what} {key}.{hint} {valid} `--cfg job` prints all fields."


def _line(override: Override) -> str:
    """The override as it was typed."""
    return str(override.input_line)


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all nodes of a config."""
    if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
        for key in map(str, node):
            yield f"{prefix}{key}"
            yield from _keys(node._get_node(key), f"{prefix}{key}.")


def _lines(error: BaseException) -> str:
    """What an error and its causes say, once each, without the lines in which OmegaConf describes its own tree."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        for line in map(str.strip, str(cause).splitlines()):
            if line and line not in told and not line.startswith(("full_key:", "object_type=", "reference_type=")):
                told.append(line)
        cause = cause.__cause__
    return " ".join(line if line.endswith((".", ":", "?")) else f"{line}." for line in told)


# --- help ------------------------------------------------------------------------------------------------------------


def help_text(entry: str) -> str:
    """What `--help` prints: groups, experiments, common overrides with defaults and doc lines, examples."""
    register()
    folder = config_dir()
    command = f"python -m collab.{entry}" if _module() == f"collab.{entry}" else f"python {entry}.py"
    with hydra.initialize_config_dir(str(folder), job_name=entry, version_base=None):
        config = hydra.compose(entry)
    groups = options([folder])
    experiments = groups.pop("experiment", [])
    first = {"train": "Train a policy and compare it with its base.", "evaluate": "Compare policies on the same goals."}
    defaults = _default_options(folder)
    swaps = []
    for group, names in groups.items():
        default = f"  (default: {defaults[group]})" if group in defaults and len(names) > 1 else ""
        swaps.append((group, " | ".join(names) + default))
    fields = [(f"{key}={_shown(_raw(config, key))}", _doc(config, key)) for key in _common(entry)]
    return "\n".join(
        [
            first[entry],
            "",
            f"  {command} [experiment=NAME] [group=option ...] [field=value ...]",
            "",
            "Experiments (experiment=NAME), versioned sets of overrides:",
            *(f"  {name}" for name in experiments),
            "",
            "Groups (group=option), one for each thing to swap:",
            *_table(swaps),
            "",
            "Common fields (field=value), with their defaults:",
            *_table(fields),
            "",
            "Flags:",
            *_table(
                [
                    ("-m", "sweep: key=a,b runs one job for each value; a job that fails does not stop the others"),
                    (
                        "--cfg job",
                        "print the composed config, all fields; --resolve fills in what refers to others",
                    ),
                    ("--info defaults", "where each part of the config comes from"),
                    ("--hydra-help", "the flags of Hydra"),
                ]
            ),
            "",
            "Examples:",
            *_table([(f"{command} {rest}", what) for rest, what in EXAMPLES[entry]]),
        ]
    )


def _common(entry: str) -> list[str]:
    return [key for key in COMMON if key != "policies" or entry == "evaluate"]  # training names its own rows


def _default_options(folder: Path) -> dict[str, str]:
    """Group -> the option that train.yaml, on which evaluate.yaml builds, takes for it."""
    written: Any = OmegaConf.to_container(OmegaConf.load(folder / "train.yaml"))
    return {key: value for line in written["defaults"] if isinstance(line, dict) for key, value in line.items()}


def _doc(config: DictConfig, key: str) -> str:
    parent, _, name = key.rpartition(".")
    schema = OmegaConf.get_type(OmegaConf.select(config, parent)) if parent else Config
    return field_docs(schema).get(name, "") if schema is not None else ""


def _raw(config: DictConfig, key: str) -> Any:
    """The value of a field as it is written, interpolations left as they are."""
    value: Any = OmegaConf.to_container(config)
    for name in key.split("."):
        value = value[name]
    return value


def _shown(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max(len(left) for left, _ in rows)
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]


# --- processes -------------------------------------------------------------------------------------------------------


def rank() -> int:
    """This process's number among all processes of the run, as its launcher (torchrun, SLURM, Lightning) tells it."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if variable in os.environ:
            return int(os.environ[variable])
    return 0


@functools.cache
def stamp() -> str:
    """When this run started, as `2026-01-31_23-59-59`; the same in all of its processes, for they share a folder.

    Processes that Lightning starts get their folder on the command line. Those of torchrun agree through its store,
    where the first one's clock counts; those of SLURM take the number of their job step, which they share.
    """
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import TCPStore

        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        return store.compare_set("collab/stamp", "", now).decode()
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return f"slurm-{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
    return now


def _run_in_own_process(args: argparse.Namespace) -> Job:
    """Run the sweep's current job with the command that one would type for it alone, in the folder it was given."""
    about = HydraConfig.get()
    folder = Path(about.runtime.output_dir)
    module = _module()
    program = ["-m", module] if module else [sys.argv[0]]
    flags = ["--config-name", args.config_name] if args.config_name else []
    flags += ["--config-dir", args.config_dir] if args.config_dir else []
    ours = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/sweeper", "hydra/launcher")
    passed = [text for text in about.overrides.hydra if not text.lstrip("+~").startswith(ours)]
    overrides = list(about.overrides.task)
    command = [sys.executable, *program, *flags, *overrides, *passed, f"output_dir={_quoted(str(folder))}"]
    env = dict(os.environ)
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's store keeps what earlier jobs wrote for their process group: each job opens one on its own port.
        env["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        env["MASTER_PORT"] = str(int(env["MASTER_PORT"]) + 1 + about.job.num)
    return Job(overrides, folder, subprocess.run(command, env=env).returncode)


def _module() -> str | None:
    """NAME, where this process runs `python -m NAME`."""
    import __main__

    return __main__.__spec__.name if __main__.__spec__ else None


def _quoted(text: str) -> str:
    """`text` as a value in Hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()


def summary(jobs: Sequence[Job]) -> str:
    """One line for each job of a sweep: its overrides, how it ended, its folder."""
    failed = sum(job.code != 0 for job in jobs)
    width = max(len(_ending(job)) for job in jobs)
    rows = [(" ".join(job.overrides), f"{_ending(job):<{width}}  {os.path.relpath(job.folder)}") for job in jobs]
    return "\n".join([f"Sweep: {len(jobs) - failed} of {len(jobs)} jobs finished, {failed} failed.", *_table(rows)])


def _ending(job: Job) -> str:
    if job.code < 0:
        return f"FAILED by signal {-job.code}"
    return f"FAILED with exit status {job.code}" if job.code else "finished"
