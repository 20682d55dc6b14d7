"""CUDA graphs of decoding steps: a step of a small model is a thousand launches, and its graph is one.

A graph is recorded for fixed shapes and fixed addresses. So rows are filled up to a power of two, and keys are read up
to a multiple of 64 positions. Tokens and their positions, which change between two steps of a shape, are copied into
the tensors that the graph reads. Graphs are recorded anew after the engine's memory has moved, and in each rollout.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

log = logging.getLogger(__name__)


class StepGraphs:
    """Replays a decoding step by its shape; the first step of a shape is recorded.

    Attributes:
        works: False once a step could not be recorded.
        recorded: By shape, the tensors that a graph reads and the function that replays it.
    """

    def __init__(self) -> None:
        self.works = True
        self.recorded: dict[Hashable, tuple[torch.Tensor, torch.Tensor, Callable[[], torch.Tensor]]] = {}
        self._memory: object = None

    def usable(self, device: torch.device) -> bool:
        return self.works and device.type == "cuda"

    def clear_cache(self) -> None:
        self.recorded.clear()
        self._memory = None

    def keep_if(self, memory: object) -> None:
        """Drop all graphs, unless `memory` is the very object that they were recorded with."""
        if memory is not self._memory:
            self.clear_cache()
            self._memory = memory

    def run(self, shape: Hashable, step: Step, ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor | None:
        """`step(ids, starts)`, `[N, V]`, overwritten by the next run; None where the step cannot be recorded.

        Args:
            shape: All that a graph depends on besides the number of rows.
            step: Tokens and positions, on their device, to logits; it must not wait for the device.
            ids, starts: [N, 1] tokens and their positions.
        """
        key = (tuple(ids.shape), shape)
        if key not in self.recorded:
            try:
                self.recorded[key] = (ids, starts, record(step, ids, starts))
            except RuntimeError as error:
                self.clear_cache()
                self.works = False
                log.warning("decoding goes on without CUDA graphs, which this model does not allow: %s", error)
                return None
        held_ids, held_starts, replay = self.recorded[key]
        held_ids.copy_(ids)
        held_starts.copy_(starts)
        return replay()


def record(step: Step, ids: torch.Tensor, starts: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Record `step` on a CUDA device; the returned function repeats it with the then values of `ids` and `starts`.

    Raises:
        RuntimeError: Something in the step waits for the device, or its memory does not suffice.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what a first call sets up must not be recorded
        step(ids, starts)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        logits = step(ids, starts)

    def replay() -> torch.Tensor:
        graph.replay()
        return logits

    return replay


@functools.cache
def _pool() -> Any:
    """Memory that all graphs share: they run one at a time, and a result is used up before the next run."""
    return torch.cuda.graph_pool_handle()
