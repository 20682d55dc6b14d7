"""Checkpoints during training, by batches.

Lightning's `ModelCheckpoint(every_n_train_steps=n)` goes by `global_step`, which counts optimizer steps: a batch in
which no group had spread makes none, so its trigger may pass by, or save the same step twice. This one counts batches.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from collab.errors import RunStopped


class BatchCheckpoint(Checkpoint):
    """Saves `step-000008.ckpt` after every n-th batch and the last one, and keeps the newest few.

    What goes in is Lightning's full state (loops, optimizers, callbacks) with the weights that the module's
    `on_save_checkpoint` leaves: `trainer.fit(ckpt_path=...)` continues from it. From the one behind the last batch
    nothing is left to do: Lightning takes that epoch as finished. Where a validation follows the batch, the checkpoint
    is written once more behind it: a resumed run does not validate there again, and has to know what was measured. A
    checkpoint appears under its name only when it is whole. Being a `Checkpoint`, this runs after all other callbacks
    and so saves their latest state.

    Args:
        folder: Where checkpoints go.
        every_n_steps: Training batches between two of them.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path | str, every_n_steps: int, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._step = 0  # batches done
        self._saved = 0  # batches that were done at the latest checkpoint

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step = batch_idx + 1
        if self._step % self.every_n_steps == 0 or self._step == trainer.num_training_batches:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._step and self._saved == self._step:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved != self._step:  # stopped early
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Raised between two updates, on all ranks: what is in memory is the state after the last whole step.
        if isinstance(exception, RunStopped) and self._step and self._saved != self._step:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._saved = self._step
        target = self.folder / f"step-{self._step:06d}.ckpt"
        partial = target.with_suffix(".part")
        trainer.save_checkpoint(
            partial, weights_only=False
        )  # all ranks enter, and none leaves before the file is written
        if not trainer.is_global_zero:
            return
        if target.is_dir():  # a sharded checkpoint is a folder, which cannot be replaced in one go
            shutil.rmtree(target)
        os.replace(partial, target)
        # By age, not by number: a run that was taken up at an earlier step has fresh low numbers.
        for old in sorted(self.folder.glob("step-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)[: -self.keep]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
