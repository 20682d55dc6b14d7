"""Checkpoints during training, by batches.

Lightning's `ModelCheckpoint(every_n_train_steps=n)` follows `global_step`, which counts optimizer steps. A batch in
which no group had spread makes no optimizer step, so it could skip a checkpoint or save one step twice. This callback
counts batches.
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

from collab.callbacks.metrics_file import write_row
from collab.modules.sharding import REST
from collab.randomness import RngKey
from collab.util.errors import RunStopped
from collab.util.files import naming

_KEY = "BatchCheckpoint"  # key of its state in a checkpoint
_KEPT = 2  # checkpoints that stay, the newest ones


class BatchCheckpoint(Checkpoint):
    """Saves `step-000008.ckpt` after every n-th batch and at the end, and keeps the newest two.

    A checkpoint has Lightning's full state (loops, optimizers, callbacks) and the weights that the module's
    `on_save_checkpoint` selects; `trainer.fit(ckpt_path=...)` continues from it. If a validation follows the batch, the
    checkpoint is written after it, and a resumed run does not repeat it. The last checkpoint is written at the end of
    training, so nothing is left to do from it: Lightning takes that epoch as finished. A checkpoint gets its name when
    it is complete and on disk. Lightning runs a `Checkpoint` after all other callbacks, so their latest state is saved.

    Args:
        folder: Where checkpoints go.
        every_n_steps: Training batches between two of them.
        run: Marks them as this run's; see `last_checkpoint`.
        on_pruned: Called on rank 0 with the step of the older checkpoint, once there are two.
    """

    def __init__(
        self, folder: Path, every_n_steps: int, run: str = "", on_pruned: Callable[[int], None] = lambda step: None
    ) -> None:
        self.folder, self.every_n_steps, self.run, self.on_pruned = folder, every_n_steps, run, on_pruned
        self._step = 0  # batches done
        self._saved = 0  # `_step` at the latest checkpoint

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
            write_row(trainer)  # a run that goes on from this checkpoint does not write it again
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._step and self._due(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved != self._step:  # the last batch, or stopped early
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # A RunStopped comes from a rollout, between two updates: memory has the state after the last complete step.
        # Saving takes all processes.
        together = isinstance(exception, RunStopped) and (exception.everywhere or trainer.world_size == 1)
        if together and trainer.training and self._saved != self._step:
            # Lightning has counted the last batch, and counts it again when it loads this checkpoint.
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
            with naming(target):  # all ranks enter, and none leaves before the file is written
                trainer.save_checkpoint(partial, weights_only=False)
            self._saved = self._step
            if not trainer.is_global_zero:
                return
            for file in [partial] if partial.is_file() else partial.iterdir():
                _force_to_disk(file)
            if target.is_dir():  # a sharded checkpoint is a folder, which `os.replace` cannot replace
                shutil.rmtree(target)
            os.replace(partial, target)
        except BaseException:
            if trainer.is_global_zero:
                _remove(partial)
            raise
        _force_to_disk(self.folder)
        # By age, not by number: a run that went back to an earlier step writes new checkpoints with lower numbers.
        existing = sorted(self.folder.glob("step-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        for old in existing[:-_KEPT]:
            _remove(old)
        if len(existing) >= _KEPT:
            self.on_pruned(min(map(step_of, existing[-_KEPT:])))


class StepSeed(L.Callback):
    """Seeds the global random generators at every training batch by the run's seed, the step and the rank.

    This package draws from keyed streams. With these seeds other draws too (dropout, a custom metric) repeat when a run
    is resumed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        key = RngKey(self.seed, role="global", round=batch_idx, sample=trainer.global_rank)
        seed = int(key.stream().integers(2**32))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def last_checkpoint(folder: Path, run: str) -> tuple[Path | None, list[str]]:
    """The valid checkpoint of a run with the highest step.

    Args:
        folder: Where checkpoints are.
        run: The mark of the run.

    Returns:
        Its path, or None; and for each invalid checkpoint with a higher step its name and why.
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
        path /= REST
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged:
            return f"is damaged (at {damaged})"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # no tensor is read
        mark = checkpoint["callbacks"][_KEY]["run"]
    except (zipfile.BadZipFile, FileNotFoundError):
        return "is truncated, or no checkpoint"
    except Exception as error:  # errors of torch and pickle have no common class
        return f"is no checkpoint of a run ({type(error).__name__})"
    if mark != run:
        return f"is of another run ({mark}, and this is {run})"
    return ""


def step_of(path: Path) -> int:
    """Training batches before a checkpoint, by its name; -1 if the name has no number."""
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
