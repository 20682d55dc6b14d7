"""The main job: base and proactive on the test goals, fit, trained on the test goals, one table.

`collab train --help` lists the options. What imports torch is imported inside functions.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from collab.app.evaluate import compare_pairs, expect_rows, play_rows, report, results_of, write_page
from collab.app.model_card import model_card, write_card
from collab.app.resume import RunState, at_work
from collab.config.endpoints import hosted
from collab.config.schema import Config
from collab.reports.plots import training_curves
from collab.reports.problems import add_problems
from collab.util.errors import RunStopped
from collab.util.hub import push
from collab.util.processes import rank

if TYPE_CHECKING:
    from collab.callbacks.progress import Progress
    from collab.chat.endpoints import Endpoints
    from collab.simulation.sampler import Simulation

CHECKPOINTS = "checkpoints"  # folder of a run


def train(config: Config) -> None:
    """Train a policy; writes everything into `config.output_dir`."""
    from collab.app import build
    from collab.app.loggers import log_results
    from collab.app.wandb_mode import offline_note
    from collab.callbacks.progress import Progress

    folder = Path(config.output_dir)
    if config.algorithm.plays_user:
        from collab.app.train_user import train_user

        train_user(config)
        return
    with (
        at_work(config, "train") as run,
        Progress(animate=config.callbacks.progress_bar, rank=rank(), watch=config.callbacks.watch) as progress,
        build.endpoints(config, progress) as endpoints,
    ):
        build.start(config)
        progress.say(build.describe(config))
        if note := offline_note(config):
            progress.note(note)
        if "fit" not in run.seconds:
            progress.left.expect("step", config.trainer.max_steps)
        expect_rows(config, ("base", "proactive", "trained"), progress, run)
        for name in ("base", "proactive"):
            play_rows(config, name, None, progress, endpoints, run)
        if "fit" not in run.seconds:
            fit(config, progress, endpoints, run)
        play_rows(config, "trained", folder / "policy", progress, endpoints, run)
        compare_pairs(config, run, progress, endpoints)
        progress.say(*endpoints.ledger.table())
        curves = training_curves(folder / "csv" / "metrics.csv", folder / "curves.png") if rank() == 0 else None
        if rank() == 0:  # before the results, which end the run: none that is finished lacks its card, or is not logged
            results = results_of(config, run)
            write_card(config, build.data(config, run.entry).splits, results)
            log_results(config, run, results)
        report(config, run, progress)
    if rank() > 0:
        return
    for what, path in (
        ("results", folder / "results.json"),
        ("conversations", folder / "transcripts.jsonl"),
        ("best policy", folder / "policy"),
        ("last policy", folder / "policy_last"),
        ("curves", curves),
        ("W&B run", next(iter(sorted(folder.glob("wandb/*run-*"))), None)),
    ):
        if path is not None:
            progress.say(f"{what:>15}: {path}")
    if config.push_to_hub is not None:
        progress.say(f"{'on the hub':>15}: {push(folder / 'policy', config.push_to_hub, 'model', config.hub_private)}")
    write_page(config, progress)


def fit(config: Config, progress: Progress, endpoints: Endpoints, run: RunState) -> None:
    """Roll out and update for `trainer.max_steps` steps, validating on the way; goes on from the run's last checkpoint.

    Args:
        config: The checked config.
        progress: Shows the phase and each finished conversation.
        endpoints: The hosted models of the run.
        run: Records the time of the phase.
    """
    import lightning as L

    from collab.app import build
    from collab.app.loggers import log_inputs, loggers
    from collab.callbacks.checkpoint import BatchCheckpoint, StepSeed, step_of
    from collab.callbacks.export import ExportBest
    from collab.callbacks.overlap import OverlappedRollout
    from collab.callbacks.progress import STEP, STORED, RolloutProgress
    from collab.callbacks.rollout import RolloutCallback
    from collab.callbacks.spend import SpendCallback
    from collab.callbacks.transcripts import TranscriptCallback, TranscriptWriter
    from collab.callbacks.wandb_logger import alert
    from collab.callbacks.watch import CollapseWatch, GamingWatch

    started = time.monotonic()
    folder = Path(config.output_dir)
    L.seed_everything(config.seed, workers=True, verbose=False)  # training does not depend on what was played before
    tokenizer = build.tokenizer(config)
    stored = build.stored_groups(config)
    data = build.data(config, run.entry, stored)
    journal = build.journal(config)
    advance = endpoints.shown_by(progress.advance)
    simulation = build.simulation(config, endpoints, advance, config.model, journal, progress)
    simulation = replace(simulation, contexts=build.stored_contexts(config, data.splits.train, progress.say))
    latest = where_to_go_on(folder, run, progress)
    logged_to = loggers(config, run.id, 0 if latest is None else step_of(latest))

    def warn(title: str, text: str) -> None:
        progress.note(text)
        alert(logged_to, f"{title}: {folder.name}", text)

    watch = CollapseWatch(partial(warn, "Collapse")) if data.groups is None else None
    best = ExportBest(folder, config.export.merge, watch, card=model_card(config, data.splits))
    shown = STEP if stored is None else STORED
    prompt, staleness = config.task.system_prompt, config.rollout.max_staleness
    callbacks: list[L.Callback] = [
        StepSeed(config.seed),
        RolloutProgress(progress, conversations_per_step(config, simulation), len(data.splits.val), shown),
        OverlappedRollout(simulation, prompt, staleness) if staleness else RolloutCallback(simulation, prompt),
        *([watch] if watch is not None else []),
        *([GamingWatch(partial(warn, "Reward gaming"))] if rank() == 0 else []),
        *([SpendCallback(endpoints.ledger, partial(warn, "Budget"))] if hosted(config, "train") else []),
        TranscriptCallback(TranscriptWriter(folder, rank(), tokenizer)),
        best,
        BatchCheckpoint(folder / CHECKPOINTS, config.checkpoint.every_n_steps, run=run.id, on_pruned=journal.forget),
    ]
    trainer = build.trainer(config, logged_to, callbacks)
    module = build.module(config, config.model, tokenizer)
    if stored is not None:
        progress.say(f"{config.algorithm.data}: {module.check_data(stored)}")
    log_inputs(config, logged_to, data.splits)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=latest, weights_only=True)
    except RunStopped as error:
        alert(logged_to, f"Stopped: {folder.name}", str(error))
        raise
    finally:
        if told := add_problems(folder, "fit", simulation.problems, rank()):
            progress.say(told)
    for logger in logged_to:
        logger.finalize("success")
    run.finish("fit", time.monotonic() - started)


def conversations_per_step(config: Config, simulation: Simulation) -> int:
    """Mean number of forward conversations that this process plays for a training batch; 0 with stored data."""
    from collab.app.build import num_processes

    if config.algorithm.data is not None:
        return 0
    goals = config.trainer.goals_per_step // num_processes(config)
    return round(goals * simulation.futures * statistics.fmean(map(simulation.candidates_at, simulation.turns)))


def where_to_go_on(folder: Path, run: RunState, progress: Progress) -> Path | None:
    """The checkpoint that training goes on from, None at the beginning; prints which checkpoints are refused."""
    from collab.callbacks.checkpoint import last_checkpoint

    latest, refused = last_checkpoint(folder / CHECKPOINTS, run.id)
    for problem in refused:
        progress.say(f"{problem}: not used, and renamed to .refused")
    if latest is not None:
        progress.say(f"going on from {latest}")
    if rank() == 0:
        tidy(folder, [folder / CHECKPOINTS / problem.split()[0] for problem in refused])
    return latest


def tidy(folder: Path, refused: Sequence[Path]) -> None:
    """Clean up after an interruption: rename refused checkpoints and remove files that were half written."""
    for path in refused:
        path.rename(path.with_name(f"{path.name}.refused"))
    for path in (*folder.glob(".policy*"), *folder.glob(f"{CHECKPOINTS}/*.part")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
