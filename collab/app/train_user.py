"""Training of a user model on chat logs (`algorithm.speaker=user`): perplexity before, fit, perplexity after.

The perplexity is that of the users' messages in held-out conversations, end tokens included. No conversation is played:
`evaluate.py user=userlm user.endpoint.model=RUN/policy` does that.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from collab.app.model_card import model_card, write_card
from collab.app.resume import RESULTS, RunState, at_work
from collab.config.schema import Config
from collab.reports.results import PolicyScores
from collab.util.files import write_json
from collab.util.hub import push
from collab.util.processes import rank

if TYPE_CHECKING:
    from collab.callbacks.progress import Progress

_BEST = "val/log_likelihood"  # the metric that chooses the best model
_BEFORE, _AFTER = "before", "fit"  # phases


def train_user(config: Config) -> None:
    """Train a user model; writes everything into `config.output_dir`, the best model as `policy`."""
    from collab.app import build
    from collab.app.loggers import log_results
    from collab.callbacks.progress import Progress

    folder = Path(config.output_dir)
    with at_work(config, "train") as run, Progress(animate=config.callbacks.progress_bar, rank=rank()) as progress:
        build.start(config)
        progress.say(build.describe(config))
        if _AFTER not in run.seconds:
            fit(config, progress, run)
        if rank() > 0:
            return
        before, after = (run.scores[phase]["perplexity"]["held-out"][0] for phase in (_BEFORE, _AFTER))
        results = {
            "perplexity": {"before": before, "after": after},
            "config": asdict(config),
            "seconds": {**run.seconds, "total": run.elapsed()},
        }
        write_card(config, None, results)
        log_results(config, run, results, _BEST)
        write_json(folder / RESULTS, results)
        progress.say(
            f"perplexity of held-out users' messages: {before:.3f} before, {after:.3f} after",
            f"{'results':>15}: {folder / RESULTS}",
            f"{'best user model':>15}: {folder / 'policy'}",
        )
    if config.push_to_hub is not None:
        progress.say(f"{'on the hub':>15}: {push(folder / 'policy', config.push_to_hub, 'model', config.hub_private)}")


def fit(config: Config, progress: Progress, run: RunState) -> None:
    """Measure, and learn for `trainer.max_steps` steps; goes on from the run's last checkpoint."""
    import lightning as L

    from collab.app import build
    from collab.app.loggers import loggers
    from collab.app.train import CHECKPOINTS, where_to_go_on
    from collab.callbacks.checkpoint import BatchCheckpoint, StepSeed, step_of
    from collab.callbacks.export import ExportBest
    from collab.callbacks.progress import RolloutProgress

    started = time.monotonic()
    folder = Path(config.output_dir)
    data, notes = build.chat_logs(config)
    assert data.held_out is not None
    for note in notes:
        progress.note(note)
    latest = where_to_go_on(folder, run, progress)
    best = ExportBest(folder, config.export.merge, metric=_BEST, card=model_card(config, None))
    callbacks: list[L.Callback] = [
        StepSeed(config.seed),
        RolloutProgress(progress, 0, len(data.held_out), {"perplexity": "perplexity", "loss": "loss"}),
        best,
        BatchCheckpoint(folder / CHECKPOINTS, config.checkpoint.every_n_steps, run=run.id),
    ]
    logged_to = loggers(config, run.id, 0 if latest is None else step_of(latest))
    trainer = build.trainer(config, logged_to, callbacks)
    module = build.module(config, config.model, build.tokenizer(config))
    if _BEFORE not in run.scores:  # a checkpoint is later than this
        (measured,) = trainer.validate(module, datamodule=data, verbose=False)
        run.finish(_BEFORE, time.monotonic() - started, _scores(measured[_BEST]))
    trainer.fit(module, datamodule=data, ckpt_path=latest, weights_only=True)
    for logger in logged_to:
        logger.finalize("success")
    assert best.best_reward is not None, "a run ends with a validation"
    run.finish(_AFTER, time.monotonic() - started, _scores(best.best_reward))


def _scores(log_likelihood: float) -> PolicyScores:
    return {"perplexity": {"held-out": [math.exp(-log_likelihood)]}}
