"""What Lightning's trainer is given where a server plays the policy."""

from __future__ import annotations

from typing import Any

import lightning as L


class HostedPolicyModule(L.LightningModule):
    """No weights: `RolloutCallback` plays with the chat model that it was given, and this looks on."""

    def configure_model(self) -> None:
        """Nothing to shard; a strategy that shards wants to hear it."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass
