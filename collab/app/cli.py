"""The command line of training, evaluation and synthesis: Hydra composes, everything is checked, then the run begins.

In this order, the cheapest first, each with one message for the user and no stack trace:

1. the config is composed; Hydra's errors are told in our words, with the closest name and the valid ones; with
   `resume`, it is composed anew of what that run was started with, and has to be the same; the folder can be written;
2. rules across fields (`collab.config.checks.check`);
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
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from collab.app.compose import compose, parse, quoted, typed
from collab.app.help import help_text, program
from collab.app.preflight import check_hosted, check_machine
from collab.app.resume import (
    CONFIG,
    check_new_folder,
    check_same_config,
    check_writable,
    find_run,
    resumed_overrides,
)
from collab.app.sweep import Sweep, summary
from collab.config.checks import check
from collab.config.register import register
from collab.config.schema import Config
from collab.util.errors import BadInput, RunStopped
from collab.util.paths import config_dir
from collab.util.processes import connected, leave_together, rank

Run = Callable[[Config], None]

_FIRST_SPEAKS = 20.0  # seconds that rank 0 gets to say what is wrong before the others do


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
        _print_help(entry)
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


def _print_help(entry: str) -> None:
    try:
        print(help_text(entry), flush=True)
    except BrokenPipeError:  # the reader has seen enough (`| head`); what is left is flushed to nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    """Step 1 of the module's docstring, of all jobs of a sweep."""
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
        fixed = [*searched, *(str(one.input_line) for one in overrides if not one.is_sweep_override())]
        compose(name, fixed, folders)  # refuses in our words what the next line would refuse in Hydra's
        place = str(hydra.compose(name, fixed, return_hydra_config=True).hydra.sweep.dir)
    args.overrides = [*args.overrides, f"hydra.sweep.dir={quoted(place)}"]  # elsewhere it would be named anew
    flags = ["--config-name", args.config_name] if args.config_name else []
    flags += ["--config-dir", args.config_dir] if args.config_dir else []
    return Sweep([sys.executable, *program(entry), *flags], Path(place), len(configs))


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
        if several := [str(one.input_line) for one in overrides if one.is_sweep_override()]:
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
