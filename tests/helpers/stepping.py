"""Optimizer steps through Lightning, on scored groups that are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from collab.callbacks.checkpoint import BatchCheckpoint
from collab.conversation import Goal, Group
from collab.datamodules.base import GoalBatch
from collab.modules.base import PolicyModule


class Scored(L.Callback):
    """Stands for the rollout: puts ready groups on each batch, and keeps gradients and logs."""

    def __init__(self, per_step: Callable[[int], list[Group]]) -> None:
        self.per_step = per_step
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch.groups = self.per_step(batch_idx)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients.append({name: grad.clone() for name, grad in whole(found).items()})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        logged = {name.removeprefix("train/"): float(value) for name, value in trainer.callback_metrics.items()}
        self.logged.append(logged)


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All of each, where processes hold shards; they all have to ask."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def trainer_with(callbacks: Sequence[L.Callback], **fields: Any) -> L.Trainer:
    """A trainer of one epoch on the CPU without logger and display; it keeps checkpoints if a callback writes them."""
    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[*callbacks],
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, BatchCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **fields,
    )


def fit(
    module: PolicyModule,
    per_step: Callable[[int], list[Group]] | list[Group],
    steps: int = 1,
    callbacks: Sequence[L.Callback] = (),
    ckpt_path: str | None = None,
    devices: int = 1,
    strategy: Any = "auto",
) -> tuple[L.Trainer, Scored]:
    given = per_step
    scored = Scored(given if callable(given) else lambda _: given)
    trainer = trainer_with([scored, *callbacks], devices=devices, strategy=strategy)
    loader: Any = torch.utils.data.DataLoader(
        [Goal(str(n), "p", "r") for n in range(steps * devices)],  # type: ignore[arg-type]
        batch_size=1,
        collate_fn=GoalBatch,
    )
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer, scored
