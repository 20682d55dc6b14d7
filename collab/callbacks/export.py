"""Exports the best policy and the last one as model folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from peft import PeftModel

from collab.callbacks.watch import CollapseWatch
from collab.modules.export import export_policy
from collab.modules.sharding import is_spread, whole_state


class ExportBest(L.Callback):
    """Exports to `<folder>/policy` whenever the metric is the best so far, and to `<folder>/policy_last` at the end.

    Without any validation `policy` is the last one too, unless it has collapsed: then it is the last policy whose
    rollout showed no sign of it. Rank 0 writes; the metric must be the same on all ranks.

    Args:
        folder: Of the run.
        merge: Write adapters merged into the base weights.
        watch: Knows whether the policy has collapsed; None if nothing is rolled out.
        metric: Of a validation; more is better.
        card: The model card, which is written with each policy; None for none of ours.

    Attributes:
        best_reward: The best metric so far, None before the first; checkpoints keep it.
        best_step: Training batches before that validation; checkpoints keep it.
    """

    def __init__(
        self,
        folder: Path | str,
        merge: bool = False,
        watch: CollapseWatch | None = None,
        metric: str = "val/reward",
        card: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.merge, self.watch, self.metric, self.card = merge, watch, metric, card
        self.best_reward: float | None = None
        self.best_step: int | None = None
        self._step = 0  # batches done

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # The rollout has shown what this policy is worth, and the update that comes now may spoil it.
        if self.watch is not None and not self.watch.signs and not trainer.enable_validation:
            self._export(trainer, pl_module, "policy")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step = batch_idx + 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        measured = trainer.callback_metrics.get(self.metric)
        if measured is None or trainer.sanity_checking:
            return
        reward = float(measured)
        if reward > (-math.inf if self.best_reward is None else self.best_reward):  # false for nan
            self.best_reward, self.best_step = reward, self._step
            self._export(trainer, pl_module, "policy")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._export(trainer, pl_module, "policy_last")
        if self.best_reward is None and not (self.watch is not None and self.watch.signs):
            self._export(trainer, pl_module, "policy")

    def state_dict(self) -> dict[str, Any]:
        return {"best_reward": self.best_reward, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_reward, self.best_step = state_dict["best_reward"], state_dict["best_step"]

    def _export(self, trainer: L.Trainer, pl_module: Any, name: str) -> None:
        lm, state = pl_module.policy.lm, None
        if is_spread(pl_module.policy):
            state = whole_state(lm, only_trained=isinstance(lm, PeftModel))
        if trainer.is_global_zero:
            folder = self.folder / name
            export_policy(lm, pl_module.tokenizer, folder, merge=self.merge, state=state, card=self.card)
