"""The main job: base and proactive on the test goals, fit, trained on the test goals, one table.

`python train.py --help` tells the command line. `python -m collab.train --help` runs this file, so what imports torch
is imported inside functions.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from collab.cli import rank
from collab.config import Config
from collab.evaluate import play_row, report
from collab.reports.plots import training_curves
from collab.reports.problems import add_problems
from collab.reports.results import PolicyScores

if TYPE_CHECKING:
    from collab.callbacks.progress import Progress


def train(config: Config) -> None:
    """Train a policy; writes everything into `config.output_dir`."""
    from collab import build
    from collab.callbacks.progress import Progress

    build.start(config)
    started = time.monotonic()
    folder = Path(config.output_dir)
    scores: dict[str, PolicyScores] = {}
    seconds: dict[str, float] = {}
    with Progress(animate=config.callbacks.progress_bar, rank=rank()) as progress:
        progress.console.print(build.describe(config), markup=False)
        for name in ("base", "proactive"):
            scores[name], seconds[name] = play_row(config, name, None, progress)
        seconds["fit"] = fit(config, progress)
        scores["trained"], seconds["trained"] = play_row(config, "trained", folder / "policy", progress)
    seconds["total"] = time.monotonic() - started
    report(config, scores, seconds, progress)
    if rank() > 0:
        return
    curves = training_curves(folder / "csv" / "metrics.csv", folder / "curves.png")
    for what, path in (
        ("results", folder / "results.json"),
        ("conversations", folder / "transcripts.jsonl"),
        ("best policy", folder / "policy"),
        ("last policy", folder / "policy_last"),
        ("curves", curves),
        ("W&B run", next(iter(sorted(folder.glob("wandb/*run-*"))), None)),
    ):
        if path is not None:
            progress.console.print(f"{what:>15}: {path}", markup=False, highlight=False, soft_wrap=True)


def fit(config: Config, progress: Progress) -> float:
    """Roll out and update for `trainer.max_steps` steps, validating on the way; returns the seconds it took."""
    import lightning as L

    from collab import build
    from collab.callbacks.checkpoint import BatchCheckpoint
    from collab.callbacks.export import ExportBest
    from collab.callbacks.progress import RolloutProgress
    from collab.callbacks.rollout import RolloutCallback
    from collab.callbacks.transcripts import TranscriptCallback, TranscriptWriter
    from collab.datamodules.conversations import OfflineData
    from collab.modules.loading import load_tokenizer

    started = time.monotonic()
    folder = Path(config.output_dir)
    L.seed_everything(config.seed, workers=True, verbose=False)  # whatever was played before, training starts alike
    tokenizer = load_tokenizer(config.model)
    data = build.data(config)
    simulation = build.simulation(config, progress.advance, config.model)
    candidates = [simulation.candidates_at(turn) for turn in range(1, config.task.max_turns + 1)]
    futures = config.sampler.num_samples if config.sampler.window else 1
    per_step = round(config.trainer.goals_per_step * futures * statistics.fmean(candidates))
    if config.algorithm.data is not None:
        per_step = 0
    loggers = build.loggers(config)
    callbacks: list[L.Callback] = [
        RolloutProgress(progress, per_step, len(data.splits.val), shown=("mr", *config.task.metrics, "loss")),
        RolloutCallback(simulation, config.task.system_prompt),
        TranscriptCallback(TranscriptWriter(folder, rank()), config.logger.num_conversations),
        ExportBest(folder, merge=config.export.merge),
        BatchCheckpoint(folder / "checkpoints", config.checkpoint.every_n_steps),
    ]
    trainer = build.trainer(config, loggers, callbacks)
    module = build.module(config, config.model, tokenizer)
    if isinstance(data, OfflineData):
        data.setup("fit")
        worth = f"{config.algorithm.data}: {module.check_data(data.groups)}"
        progress.console.print(worth, markup=False, highlight=False, soft_wrap=True)
    try:
        trainer.fit(module, datamodule=data)
    finally:
        if told := add_problems(folder, "fit", simulation.problems, rank()):
            progress.console.print(told, markup=False, highlight=False, soft_wrap=True)
    for logger in loggers:
        logger.finalize("success")
    return time.monotonic() - started


if __name__ == "__main__":
    from collab.cli import main

    main("train")
