"""What hosted models have cost so far, logged beside the metrics of a step."""

from __future__ import annotations

from typing import Any

import lightning as L

from collab.chat.budget import ROLES, Ledger


class SpendCallback(L.Callback):
    """Logs `spend/usd`, `spend/tokens` and the counts of each role after every step, summed over processes.

    Of runs that speak to a server: all of their processes have it.

    Args:
        ledger: Of this process.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        several = trainer.world_size > 1
        # All processes have to log the same names, whoever has spoken on them so far.
        found = self.ledger.metrics(ROLES if several else sorted(self.ledger.spent))
        pl_module.log_dict(
            {f"spend/{name}": value for name, value in found.items()}, batch_size=1, sync_dist=several, reduce_fx="sum"
        )
