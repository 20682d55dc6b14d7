"""Logs what hosted models have cost so far."""

from __future__ import annotations

from typing import Any

import lightning as L

from collab.chat.budget import ROLES, Ledger


class SpendCallback(L.Callback):
    """Logs `spend/usd`, `spend/tokens` and the counts of each role after every step, summed over processes.

    If one process of a run has this callback, all must have it.

    Args:
        ledger: Of this process.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        several = trainer.world_size > 1
        # All processes must log the same names, even if only some have called a role yet.
        spent = self.ledger.metrics(ROLES if several else sorted(self.ledger.spent))
        metrics = {f"spend/{name}": value for name, value in spent.items()}
        pl_module.log_dict(metrics, batch_size=1, sync_dist=several, reduce_fx="sum")
