"""Logs what hosted models have cost so far, and warns before the budget is spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from collab.chat.budget import ROLES, Ledger

_NEARLY = 0.8  # share of the budget at which it warns


class SpendCallback(L.Callback):
    """Logs `spend/usd`, `spend/tokens` and the counts of each role after every step, summed over processes.

    Warns once, when 80 % of the budget are spent.

    If one process of a run has this callback, all must have it.

    Args:
        ledger: Of this process.
        warn: Shows a line.
    """

    def __init__(self, ledger: Ledger, warn: Callable[[str], None]) -> None:
        self.ledger, self.warn = ledger, warn
        self._warned = False  # a resumed run warns again: it may have a larger budget

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        several = trainer.world_size > 1
        # All processes must log the same names, even if only some have called a role yet.
        spent = self.ledger.metrics(ROLES if several else sorted(self.ledger.spent))
        metrics = {f"spend/{name}": value for name, value in spent.items()}
        pl_module.log_dict(metrics, batch_size=1, sync_dist=several, reduce_fx="sum")
        share = self.ledger.share_spent
        if share >= _NEARLY and not self._warned:
            self._warned = True
            self.warn(
                f"{share:.0%} of the budget are spent after step {batch_idx + 1}: {self.ledger.total_usd:.2f} $, "
                f"{self.ledger.total_tokens} tokens. A run that reaches its budget stops. It can be resumed with a "
                "larger one."
            )
