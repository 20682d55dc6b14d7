"""The module of Lightning's trainer when a server plays the policy."""

from __future__ import annotations

from typing import Any

import lightning as L


class HostedPolicyModule(L.LightningModule):
    """A module without weights: `RolloutCallback` plays with a chat model."""

    def configure_model(self) -> None:
        """Nothing to shard; strategies that shard require the method."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass
