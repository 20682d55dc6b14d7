"""The command line of training, evaluation and synthesis: Hydra composes, everything is checked, then the run begins.

In this order, the cheapest first, each with one message for the user and no stack trace:

1. the config is composed; Hydra's errors are told in our words, with the closest name and the valid ones; with
   `resume`, it is composed anew of what that run was started with, and has to be the same; the folder can be written;
2. rules across fields (`collab.config.schema.check`);
3. the goals are read and checked;
4. with `dry_run` the estimate of hosted calls is printed, and that is all; else the servers of hosted models are asked,
   the budget is held against the estimate, and torch is imported: device, precision, processes, metrics, the model's
   files and tokenizer, the length of the references;
5. Hydra makes the run's folder; a synthesis may find that it is another one's;
6. `collab.app.train.train`, `collab.app.evaluate.evaluate` or `collab.app.synthesize.synthesize` is called.

`--help` and a misspelt override end before 2, so this file imports neither torch nor anything that does.

A sweep (`-m`) runs each job as a process of its own: `collab.app.sweep`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from collab.app.compose import as_typed, compose, hydra_settings, options, parse, quoted, typed
from collab.app.preflight import check_hosted, check_machine
from collab.app.resume import (
    CONFIG,
    check_new_folder,
    check_same_config,
    check_writable,
    find_run,
    resumed_overrides,
)
from collab.app.sweep import Sweep, check_launcher, summary
from collab.config.schema import Config, check, field_docs, register
from collab.util.errors import BadInput, RunStopped
from collab.util.paths import config_dir
from collab.util.processes import connected, leave_together, rank

Run = Callable[[Config], None]

COMMON = (  # what --help lists; the doc lines are those of the schema
    "seed",
    "name",
    "output_dir",
    "resume",
    "precision",
    "policies",
    "dry_run",
    "cache",
    "budget.max_usd",
    "budget.max_tokens",
    "model.path",
    "model.attention",
    "model.lora.enabled",
    "task.train_file",
    "task.val_file",
    "task.test_file",
    "task.data",
    "task.num_test",
    "task.max_turns",
    "task.max_new_tokens",
    "algorithm.data",
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
    "synthesis.num_goals",
    "synthesis.num_conversations",
    "synthesis.at_once",
)
# Of these, what does not concern a command.
IDLE = {
    "train": ("policies", "synthesis."),
    "evaluate": ("synthesis.",),
    "synthesize": (
        *(
            "policies",
            "resume",
            "model.lora.",
            "task.val_file",
            "task.test_file",
            "task.num_test",
            "algorithm.",
            "trainer.devices",
        ),
        *("trainer.max_steps", "trainer.goals_per_step", "logger.", "evaluation.", "export."),
    ),
}
_FIRST_SPEAKS = 20.0  # seconds that rank 0 gets to say what is wrong before the others do
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
        ("experiment=doc_edit -m seed=1,2,3", "a sweep: one job for each value"),
        ("experiment=doc_edit --cfg job", "print the composed config, run nothing"),
    ),
    "synthesize": (
        ("experiment=doc_edit", "from the training goals that ship, on a CPU"),
        ("experiment=doc_edit sampler.window=2 sampler.num_samples=3 output_dir=data/w2", "the paper's MR, elsewhere"),
        ("experiment=doc_edit synthesis.num_conversations=2", "two conversations per goal; those that are there stay"),
        ("experiment=doc_edit task.train_file=goals.jsonl output_dir=data/mine", "from your own goals"),
        ("experiment=doc_edit --cfg job", "print the composed config, run nothing"),
    ),
}


def main(entry: str, run: Run | None = None) -> None:
    """Run the command line `sys.argv`; leaves the process by SystemExit unless all went well.

    Exit status: 0; 1 for a run that failed or input that was refused; 2 for an unknown flag; 130 when interrupted.

    Args:
        entry: "train", "evaluate" or "synthesize": the primary config in `conf/`, and which rules apply.
        run: What to call with the checked config instead of the program of `entry`; it is taken to need neither model
            nor device, so step 4 of the module's docstring is left out.
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


def _refuse(error: Exception) -> None:
    together = isinstance(error, RunStopped) and error.everywhere
    if rank() > 0 and (together or not connected()):
        time.sleep(_FIRST_SPEAKS)  # where all fail alike, the launcher ends this one before it says the same again
    if not (rank() > 0 and together):
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
    flags = [text for text in sys.argv[1:] if text not in args.overrides]
    register()
    # The start of the run, for the names of folders.
    OmegaConf.register_new_resolver("stamp", stamp, replace=True)
    folder = config_dir()
    # A rerun is composed already; Hydra's own help and completion compose nothing.
    sweep: Sweep | None = None
    if not (args.hydra_help or args.shell_completion or args.experimental_rerun):
        if args.multirun or "hydra.mode=MULTIRUN" in args.overrides:
            sweep = _check_sweep(entry, args, folder)
        else:
            args.overrides = _check_before_start(entry, args, folder, machine=run is None)
    sys.argv[1:] = flags + args.overrides
    if rank() > 0:
        sys.argv.append("hydra.output_subdir=null")  # rank 0 writes the config

    def job(composed: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            assert sweep is not None
            sweep.run()
            return
        config = typed(composed, output_dir=HydraConfig.get().runtime.output_dir)
        try:
            if entry == "synthesize":
                from collab.app.synthesize import claim_folder

                claim_folder(config)
            goes_on = bool(config.resume)
            if rank() == 0 and entry != "synthesize" and not goes_on:
                check_new_folder(Path(config.output_dir))  # again, since `hydra.run.dir` may name another one
            config.resume = False  # from here on a run is the same one, in how many pieces it may be computed
            if rank() == 0:
                if not goes_on:
                    OmegaConf.save(OmegaConf.structured(config), Path(config.output_dir) / CONFIG)
                for note in config.notes:
                    print(f"note: {note}", flush=True)
            (run or _entry_point(entry))(config)
            leave_together()
        except (BadInput, RunStopped) as error:  # here, since Hydra would print it with its trace
            _refuse(error)

    start = hydra.main(config_path=str(folder), config_name=entry, version_base=None)(job)
    if sweep is None or args.cfg or args.info:
        start()
        return False
    try:
        start()
    finally:
        if rank() == 0:
            print(summary(sweep), flush=True)
    return not sweep.went_well()


def _entry_point(entry: str) -> Run:
    if entry == "train":
        from collab.app.train import train

        return train
    if entry == "synthesize":
        from collab.app.synthesize import synthesize

        return synthesize
    from collab.app.evaluate import evaluate

    return evaluate


# --- before the start ------------------------------------------------------------------------------------------------


def _check_sweep(entry: str, args: argparse.Namespace, folder: Path) -> Sweep:
    """Step 1 of the module's docstring, of all jobs of a sweep; and whether its launcher can start them."""
    folders, searched = _folders(args, folder)
    given = [text for text in args.overrides if not text.startswith("hydra.mode=")]
    name = args.config_name or entry
    with hydra.initialize_config_dir(str(args.config_path or folder), job_name=entry, version_base=None):
        overrides = parse(given)
        configs = []
        if not any(override.key_or_group == "hydra/sweeper" for override in overrides):  # else only it knows the jobs
            every = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
            configs = [compose(name, [*searched, *job], folders) for job in every]
        if any(composed.resume for composed in configs):
            raise BadInput("resume goes on with one run, and -m starts several. Resume each job: resume=FOLDER.")
        fixed = [as_typed(override) for override in overrides if not override.is_sweep_override()]
        settings = hydra_settings(name, [*searched, *fixed], folders)
        place = str(settings.sweep.dir)
        if not (args.cfg or args.info):
            check_launcher(settings.launcher, configs)
    args.overrides = [*args.overrides, f"hydra.sweep.dir={quoted(place)}"]  # elsewhere it would be named anew
    program = [os.path.abspath(sys.argv[0])] if _is_script(entry) else ["-m", "collab", entry]
    flags = ["--config-name", args.config_name] if args.config_name else []
    flags += ["--config-dir", args.config_dir] if args.config_dir else []
    return Sweep([sys.executable, *program, *flags], Path(place), len(configs))


def _folders(args: argparse.Namespace, folder: Path) -> tuple[list[Path], list[str]]:
    """Where options are looked for, and the override that tells Hydra."""
    if not args.config_dir:
        return [folder], []
    more = Path(args.config_dir).absolute()
    return [more, folder], [f"hydra.searchpath=[{quoted(str(more))}]"]


def _check_before_start(entry: str, args: argparse.Namespace, folder: Path, machine: bool) -> list[str]:
    """Steps 1 to 4 of the module's docstring; of a config that is only shown, step 1.

    Returns:
        The overrides to run with: those that were typed, or on resume those that make up the run that goes on.
    """
    folders, searched = _folders(args, folder)
    given = [text for text in args.overrides if not text.startswith("hydra.mode=")]
    name = args.config_name or entry
    with hydra.initialize_config_dir(str(args.config_path or folder), job_name=entry, version_base=None):
        overrides = parse(given)
        if several := [as_typed(override) for override in overrides if override.is_sweep_override()]:
            raise BadInput(
                f"{' '.join(several)} lists several values, and a single run takes one. "
                "Add -m to run one job for each, or quote a value with a comma: 'key=\"a,b\"'."
            )
        composed = compose(name, [*searched, *given], folders)
        if args.cfg or args.info:
            return args.overrides
        config = typed(copy.deepcopy(composed), output_dir="")  # the folder is named only once everything is right
        resumed = find_run(composed, entry) if entry != "synthesize" else None
        if resumed is not None:
            args.overrides = resumed_overrides(resumed, given)
            config = typed(compose(name, [*searched, *args.overrides], folders), output_dir="")
    if resumed is not None:
        check_same_config(resumed, config)
        check_writable(resumed)
        place = quoted(str(resumed))
        args.overrides += [f"resume={place}", f"output_dir={place}", "hydra.output_subdir=null"]
    elif rank() == 0 and entry != "synthesize":
        check_new_folder(Path(str(composed.output_dir)))
    check(config, entry)
    from collab.datamodules.goals import load_splits

    splits = load_splits(config.task)
    groups = []
    if entry == "train" and config.algorithm.data is not None:
        from collab.datamodules.conversations import load_groups

        groups = load_groups(config.algorithm.data, config.task.system_prompt)
    if config.dry_run:
        from collab.app.estimate import check_budget, estimate, told

        found = estimate(config, splits, entry)
        print(told(config, found), flush=True)
        check_budget(config, found)
        sys.exit(0)
    if machine:
        check_hosted(config, splits, entry)
        place = str(resumed or composed.output_dir)
        check_machine(replace(config, output_dir=place), splits, entry, groups)
        if entry == "train":
            from collab.app.build import stored_contexts

            stored_contexts(config)
    return args.overrides


# --- help ------------------------------------------------------------------------------------------------------------


def help_text(entry: str) -> str:
    """What `--help` prints: groups, experiments, common overrides with defaults and doc lines, examples."""
    register()
    folder = config_dir()
    command = f"python {entry}.py" if _is_script(entry) else f"collab {entry}"
    with hydra.initialize_config_dir(str(folder), job_name=entry, version_base=None):
        config = hydra.compose(entry)
    groups = options([folder])
    experiments = groups.pop("experiment", [])
    first = {
        "train": "Train a policy and compare it with its base.",
        "evaluate": "Compare policies on the same goals.",
        "synthesize": "Make conversations to learn from. The same command goes on where it was interrupted.",
    }
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
    return [key for key in COMMON if not key.startswith(IDLE[entry])]


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


def _is_script(entry: str) -> bool:
    """Whether this process runs a script such as `train.py`, and not the console command."""
    return os.path.basename(sys.argv[0]) == f"{entry}.py"
