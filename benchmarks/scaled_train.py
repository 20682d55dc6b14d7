"""`train.py`, bound to one core for each process, which leaves what it took in `$MEASURED/rank<n>.json`.

Memory is in bytes. The seconds of all steps are from the start of training to the end of its last step.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from collab.app.cli import main
from collab.util.processes import rank


def held(tensors: list[torch.Tensor]) -> int:
    """Memory of what this process has of some tensors."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


class Clock(L.Callback):
    """Seconds from the start of training to the end of the latest step."""

    seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds = time.monotonic() - self.started


class Measured(L.Trainer):
    """The trainer of a run, which nobody else gets hold of while it has its optimizers."""

    def fit(self, model: Any, *args: Any, **kwargs: Any) -> None:
        clock = Clock()
        self.callbacks.insert(0, clock)  # type: ignore[attr-defined]
        super().fit(model, *args, **kwargs)
        states = [
            value for optimizer in self.optimizers for state in optimizer.state.values() for value in state.values()
        ]
        found = {
            "state": held([*model.parameters(), *filter(torch.is_tensor, states)]),
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "steps_seconds": clock.seconds,
        }
        Path(os.environ["MEASURED"], f"rank{rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank() % len(cores)]})
    L.Trainer = Measured  # type: ignore[misc]
    main("train")
