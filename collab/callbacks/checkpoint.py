"""Checkpoints during training, by batches.

Lightning's `ModelCheckpoint(every_n_train_steps=n)` goes by `global_step`, which counts optimizer steps: a batch in
which no group had spread makes none, so its trigger may pass by, or save the same step twice. This one counts batches.
"""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from collab.modules.sharding import REST
from collab.randomness import RngKey
from collab.util.errors import RunStopped
from collab.util.files import naming

_KEY = "BatchCheckpoint"  # of its state among the callbacks' in a checkpoint


class BatchCheckpoint(Checkpoint):
    """Saves `step-000008.ckpt` after every n-th batch and at the end, and keeps the newest few.

    What goes in is Lightning's full state (loops, optimizers, callbacks) with the weights that the module's
    `on_save_checkpoint` leaves: `trainer.fit(ckpt_path=...)` continues from it. Where a validation follows the batch,
    the checkpoint is written behind it, and a resumed run does not validate there again. The last one is written when
    everything else that ends training is done: from it nothing is left to do, Lightning takes that epoch as finished.
    A checkpoint appears under its name when it is whole and on disk. Being a `Checkpoint`, this runs after all other
    callbacks and so saves their latest state.

    Args:
        folder: Where checkpoints go.
        every_n_steps: Training batches between two of them.
        keep: How many of the newest stay.
        run: Marks them as this run's; see `last_checkpoint`.
        on_pruned: Called on rank 0 with the step of the oldest one that is kept, where `keep` of them are there.
    """

    def __init__(
        self,
        folder: Path | str,
        every_n_steps: int,
        keep: int = 2,
        run: str = "",
        on_pruned: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.run = run
        self.on_pruned = on_pruned
        self._step = 0  # batches done
        self._saved = 0  # batches that were done at the latest checkpoint

    @property
    def state_key(self) -> str:
        return _KEY

    def state_dict(self) -> dict[str, Any]:
        return {"run": self.run, "step": self._step}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step = batch_idx + 1
        every = trainer.val_check_batch if trainer.enable_validation else None
        validated = every is not None and self._step % every == 0
        if self._due(trainer) and not validated:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._step and self._due(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved != self._step:  # the last batch, or stopped early
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Raised in a rollout, between two updates: what is in memory is the state after the last whole step. Saving
        # takes all processes.
        together = isinstance(exception, RunStopped) and (exception.everywhere or trainer.world_size == 1)
        if together and trainer.training and self._saved != self._step:
            # Lightning counts the batch that the last checkpoint was behind when it loads one, and has counted it here.
            loop = trainer.fit_loop.epoch_loop
            loop._batches_that_stepped -= 1
            try:
                self._save(trainer)
            finally:
                loop._batches_that_stepped += 1

    def _due(self, trainer: L.Trainer) -> bool:
        return self._step % self.every_n_steps == 0 and self._step != trainer.num_training_batches

    def _save(self, trainer: L.Trainer) -> None:
        target = self.folder / f"step-{self._step:06d}.ckpt"
        partial = target.with_suffix(".part")
        try:
            # All ranks enter, and none leaves before the file is written.
            with naming(target):
                trainer.save_checkpoint(partial, weights_only=False)
            self._saved = self._step
            if not trainer.is_global_zero:
                return
            for file in [partial] if partial.is_file() else partial.iterdir():
                _force_to_disk(file)
            if target.is_dir():  # a sharded checkpoint is a folder, which cannot be replaced in one go
                shutil.rmtree(target)
            os.replace(partial, target)
        except BaseException:
            if trainer.is_global_zero:
                _remove(partial)
            raise
        _force_to_disk(self.folder)
        # By age, not by number: a run that was taken up at an earlier step has fresh low numbers.
        there = sorted(self.folder.glob("step-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        for old in there[: -self.keep]:
            _remove(old)
        if len(there) >= self.keep:
            self.on_pruned(min(map(step_of, there[-self.keep :])))


class StepSeed(L.Callback):
    """Seeds the global random generators anew at every training batch, by the run's seed, the step and the rank.

    Everything of ours draws from keyed streams; whatever else draws (dropout, a metric of yours) then repeats too when
    a run goes on from a checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        key = RngKey(self.seed, role="global", round=batch_idx, sample=trainer.global_rank)
        number = int(key.stream().integers(2**32))
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)


def last_checkpoint(folder: Path, run: str) -> tuple[Path | None, list[str]]:
    """The checkpoint of a run to go on from, the furthest that is whole.

    Args:
        folder: Where checkpoints are.
        run: That they have to be of.

    Returns:
        Its path, None where there is none; and for each one further on that cannot be used, its name and why.
    """
    refused: list[str] = []
    for path in sorted(folder.glob("step-*.ckpt"), key=step_of, reverse=True):
        if not (problem := _problem(path, run)):
            return path, refused
        refused.append(f"{path.name} {problem}")
    return None, refused


def _problem(path: Path, run: str) -> str:
    if path.is_dir():  # of shards
        if not (path / ".metadata").is_file() or not any(path.glob("*.distcp")):
            return "is truncated, or no checkpoint"
        path = path / REST
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged:
            return f"is damaged (at {damaged})"
        # Mapped, not read: only the marks are looked at here.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        mark = found["callbacks"][_KEY]["run"]
    except (zipfile.BadZipFile, FileNotFoundError):
        return "is truncated, or no checkpoint"
    except Exception as error:  # of torch or pickle, without a common class
        return f"is no checkpoint of a run ({type(error).__name__})"
    if mark != run:
        return f"is of another run ({mark}, and this is {run})"
    return ""


def step_of(path: Path) -> int:
    """Training batches that were done at a checkpoint, by its name; -1 if that does not say."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
