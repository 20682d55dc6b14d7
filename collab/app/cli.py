"""The command line of training, evaluation and synthesis: Hydra composes, everything is checked, then the run begins.

The cheapest checks come first. Each refuses with one message and no stack trace:

1. The config is composed. With `resume`, it is composed again from what that run was started with, and it must be the
   same. The folder must be writable.
2. Rules across fields (`collab.config.checks.check`).
3. The goals are read and checked.
4. `dry_run` looks for a judge where a metric needs one, prints the estimate of hosted calls and ends here. Otherwise
   the hub is asked whether it takes what the run makes (`push_to_hub`), the servers of hosted models are asked, the
   budget is compared with the estimate, and torch is imported: device, precision, processes, metrics, the model's files
   and tokenizer, the length of the references (`collab.app.preflight`).
5. Hydra makes the folder of the run. A synthesis claims it.
6. `train`, `evaluate` or `synthesize` of `collab.app` is called.

A report (`simulator-report`, `judge-report`) takes the same steps; `check_report` of its module does the third and
fourth.

`--help` and a misspelt override end before 2, so this file imports neither torch nor anything that does.

A sweep (`-m`) runs each job as a process of its own: `collab.app.sweep`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from collab.app.compose import compose, parse, quoted, typed
from collab.app.help import help_text, program
from collab.app.preflight import check_hosted, check_judge, check_machine
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
from collab.config.tasks import about_task, further_tasks
from collab.conversation import Group
from collab.util.errors import BadInput, RunStopped
from collab.util.paths import config_dir
from collab.util.processes import connected, leave_together, rank

Run = Callable[[Config], None]

REPORTS = ("simulator-report", "judge-report")

_PLACES = ("output_dir", "hydra.run.dir", "hydra.sweep.dir")  # fields that name the folder of a run or sweep
_FIRST_SPEAKS = 20.0  # seconds that rank 0 gets to print an error before the others do


def main(entry: str, run: Run | None = None) -> None:
    """Run the command line `sys.argv`; leaves the process by SystemExit unless all went well.

    Exit status: 0; 1 for a run that failed or input that was refused; 2 for an unknown flag; 130 when interrupted.

    Args:
        entry: "train", "evaluate", "synthesize", "simulator-report" or "judge-report": the primary config in `conf/`,
            and which rules apply.
        run: Called with the checked config instead of the program of `entry`. It needs neither model nor device, so the
            part of step 4 after `dry_run` is left out.
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
    """Print the error and leave. Where all processes fail alike, rank 0 alone prints it."""
    together = isinstance(error, RunStopped) and error.everywhere
    if rank() > 0 and (together or not connected()):
        time.sleep(_FIRST_SPEAKS)  # meanwhile the launcher ends this process, if rank 0 failed too
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
    OmegaConf.register_new_resolver("stamp", stamp, replace=True)
    sweep: Sweep | None = None
    # A rerun is composed already; Hydra's own help and completion compose nothing.
    if not (args.hydra_help or args.shell_completion or args.experimental_rerun):
        if args.multirun:
            sweep = check_sweep(entry, args)
        else:
            args.overrides = _check_before_start(entry, args, machine=run is None)
    sys.argv[1:] = flags + args.overrides
    if rank() > 0:
        sys.argv.append("hydra.output_subdir=null")  # rank 0 writes the config

    def job(composed: DictConfig) -> None:
        if sweep is not None:
            sweep.run()
            return
        try:
            _run(entry, typed(composed, output_dir=HydraConfig.get().runtime.output_dir), run)
        except (BadInput, RunStopped) as error:  # caught here, since Hydra would print it with its trace
            _refuse(error)

    start = hydra.main(config_path=str(config_dir()), config_name=entry, version_base=None)(job)
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
    except BrokenPipeError:  # `| head` has seen enough; Python flushes the rest at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(entry: str, config: Config, run: Run | None) -> None:
    """Steps 5 and 6 of the module's docstring."""
    if entry == "synthesize":
        from collab.app.synthesize import claim_folder

        claim_folder(config)
    resumed = bool(config.resume)
    config.resume = False  # so a run that was resumed has the same config as one in one piece
    if rank() == 0 and not resumed:
        if entry != "synthesize":
            check_new_folder(Path(config.output_dir))  # again, since `hydra.run.dir` may name another one
        OmegaConf.save(OmegaConf.structured(config), Path(config.output_dir) / CONFIG)
    if rank() == 0:
        for note in config.notes:
            print(f"note: {note}", flush=True)
    if run is None:
        name = entry.replace("-", "_")
        run = getattr(importlib.import_module(f"collab.app.{name}"), name)
    run(config)
    leave_together()


# --- before the start ------------------------------------------------------------------------------------------------


@contextmanager
def _composer(entry: str, args: argparse.Namespace) -> Iterator[Callable[..., DictConfig]]:
    """Initialise Hydra; yields `compose` for the primary config and the folders that the flags name."""
    folders, searched = [config_dir()], []
    if args.config_dir:
        folders.insert(0, Path(args.config_dir).absolute())
        searched = [f"hydra.searchpath=[{quoted(str(folders[0]))}]"]

    def composed_of(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
        return compose(args.config_name or entry, [*searched, *overrides], folders, with_hydra=with_hydra)

    with hydra.initialize_config_dir(str(args.config_path or config_dir()), job_name=entry, version_base=None):
        yield composed_of


def check_sweep(entry: str, args: argparse.Namespace) -> Sweep:
    """Step 1 of the module's docstring for all jobs of a sweep. Puts the folder of the sweep into `args.overrides`."""
    with _composer(entry, args) as composed_of:
        overrides = parse(args.overrides)
        places = [one for one in overrides if one.key_or_group in _PLACES]
        if len(places) > 1 or any(one.is_sweep_override() for one in places):
            raise BadInput(
                f"{' '.join(str(one.input_line) for one in places)}: a sweep has one folder, and each of its jobs a "
                "folder in it. Name one: output_dir=FOLDER."
            )
        configs = []
        if not any(one.key_or_group == "hydra/sweeper" for one in overrides):  # another sweeper makes its own jobs
            jobs = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
            configs = [composed_of(list(job)) for job in jobs]
        if any(config.resume for config in configs):
            raise BadInput("resume goes on with one run, and -m starts several. Resume each job: resume=FOLDER.")
        pushed = [config.push_to_hub for config in configs if config.push_to_hub]
        if len(set(pushed)) < len(pushed):
            raise BadInput(
                f"push_to_hub={pushed[0]}: several jobs would replace each other's policy there. Name a repository for "
                "each, as in 'push_to_hub=OWNER/NAME-${seed}', or leave it out."
            )
        fixed = [str(one.input_line) for one in overrides if not one.is_sweep_override()]
        folders = composed_of(fixed, with_hydra=True).hydra
        single = places and places[0].key_or_group != "hydra.sweep.dir"  # it names the folder of a single run
        place = str(folders.run.dir if single else folders.sweep.dir)
    others = [text for text, one in zip(args.overrides, overrides, strict=True) if one not in places]
    args.overrides = [*others, f"hydra.sweep.dir={quoted(place)}"]  # elsewhere it would get another name
    flags = ["--config-name", args.config_name] if args.config_name else []
    flags += ["--config-dir", args.config_dir] if args.config_dir else []
    return Sweep([sys.executable, *program(entry), *flags], Path(place), len(configs))


def _check_before_start(entry: str, args: argparse.Namespace, machine: bool) -> list[str]:
    """Steps 1 to 4 of the module's docstring; of a config that is only shown, step 1.

    Returns:
        The overrides to run with: as typed, or those of the run that is resumed.
    """
    with _composer(entry, args) as composed_of:
        if several := [str(one.input_line) for one in parse(args.overrides) if one.is_sweep_override()]:
            raise BadInput(
                f"{' '.join(several)} lists several values, and a single run takes one. "
                "Add -m to run one job for each, or quote a value with a comma: 'key=\"a,b\"'."
            )
        composed = composed_of(args.overrides)
        if args.cfg or args.info:
            return args.overrides
        config = typed(copy.deepcopy(composed), output_dir="")  # the folder is named only once everything is right
        if entry in REPORTS and composed.resume is not False:
            raise BadInput(
                f"resume={composed.resume}: a report is begun anew, and takes the replies of servers from the cache. "
                "Leave resume out."
            )
        resumed = find_run(composed, entry) if entry in ("train", "evaluate") else None
        if resumed is not None:
            args.overrides = resumed_overrides(resumed, args.overrides)
            config = typed(composed_of(args.overrides), output_dir="")
    if resumed is not None:
        check_same_config(resumed, config)
        check_writable(resumed)
        place = quoted(str(resumed))
        args.overrides += [f"resume={place}", f"output_dir={place}", "hydra.output_subdir=null"]
    elif rank() == 0 and entry != "synthesize":
        check_new_folder(Path(str(composed.output_dir)))
    check(config, entry)
    for name, one in further_tasks(config).items():
        with about_task(name):
            check(one, entry)
    _check_data(entry, replace(config, output_dir=str(resumed or composed.output_dir)), machine)
    return args.overrides


def _check_data(entry: str, config: Config, machine: bool) -> None:
    """Steps 3 and 4."""
    from collab.datamodules.chat_logs import logs_of
    from collab.datamodules.conversations import training_groups
    from collab.datamodules.goals import load_splits

    if entry in REPORTS and not config.dry_run:
        importlib.import_module(f"collab.app.{entry.replace('-', '_')}").check_report(config)
        return
    splits, groups = load_splits(config.task), list[Group]()
    further = []
    for name, one in further_tasks(config).items():
        with about_task(name):
            further.append((name, one, load_splits(one.task)))
    if entry == "train" and config.algorithm.plays_user:
        groups, _ = logs_of(config.algorithm, splits)
    elif entry == "train" and config.algorithm.data is not None:
        groups = training_groups(config.algorithm, config.task.system_prompt)
    if config.dry_run:
        from collab.app.estimate import check_budget, describe, estimate, together

        check_judge(config)
        for name, one, _ in further:
            with about_task(name):
                check_judge(one)
        expected = together([estimate(config, splits, entry), *(estimate(one, its, entry) for _, one, its in further)])
        print(describe(config, expected), flush=True)
        if entry == "train" and config.cluster.name != "none":
            from collab.app.cluster import describe as describe_step

            print(describe_step(config, expected), flush=True)
        check_budget(config, expected)
        sys.exit(0)
    if machine:
        if config.push_to_hub is not None and rank() == 0:
            from collab.util.hub import check_push

            check_push(config.push_to_hub, "model" if entry == "train" else "dataset", config.hub_private)
        check_hosted(config, splits, entry)
        format = check_machine(config, splits, entry, groups)
        for name, one, its in further:
            with about_task(name):
                check_hosted(one, its, entry)
                check_machine(one, its, entry, further=name, format=format)
        if entry == "train":
            from collab.app.build import stored_contexts

            stored_contexts(config, splits.train)
        if entry in ("train", "evaluate"):
            from collab.app.loggers import check_loggers
            from collab.app.wandb_mode import wandb_mode

            check_loggers(config)
            wandb_mode(config.logger.wandb)  # last, since it may wait for W&B's server


@functools.cache
def stamp() -> str:
    """When this run started, as `2026-01-31_23-59-59`; the same in all of its processes, since they share a folder.

    Processes that Lightning starts get their folder on the command line. Those of torchrun take the clock of the first
    one, through torchrun's store. Those of SLURM take the number of their job step instead of a time.
    """
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import TCPStore

        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        return store.compare_set("collab/stamp", "", now).decode()
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return f"slurm-{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
    return now
