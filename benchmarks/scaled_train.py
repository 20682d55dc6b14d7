"""`train.py`, bound to one core for each process, which leaves what it took in `$MEASURED/rank<n>.json`, in bytes."""

from __future__ import annotations

import json
import os
import resource
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


class Measured(L.Trainer):
    """The trainer of a run, which nobody else gets hold of while it has its optimizers."""

    def fit(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().fit(model, *args, **kwargs)
        states = [
            value for optimizer in self.optimizers for state in optimizer.state.values() for value in state.values()
        ]
        found = {
            "state": held([*model.parameters(), *filter(torch.is_tensor, states)]),
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        Path(os.environ["MEASURED"], f"rank{rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank() % len(cores)]})
    L.Trainer = Measured  # type: ignore[misc]
    main("train")
