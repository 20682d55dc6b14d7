"""CUDA graphs of decoding steps: a step of a small model is a thousand launches, and its graph is one.

A graph is recorded for fixed shapes and fixed addresses. So rows are filled up to a power of two, keys are read up to
a multiple of 64 positions, and what changes between two steps of a shape, the tokens and their positions, is copied
into the tensors that the graph reads. Graphs are recorded anew whenever the engine's memory or a rounded adapter has
moved; weights that are trained in place stay where they are.

Shapes: N rows, L positions, V vocabulary.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

log = logging.getLogger(__name__)


class StepGraphs:
    """Replays a decoding step by its shape; the first step of a shape is recorded.

    Attributes:
        works: False once a step could not be recorded.
    """

    def __init__(self) -> None:
        self.works = True
        self._recorded: dict[Hashable, tuple[torch.Tensor, torch.Tensor, Callable[[], torch.Tensor]]] = {}
        self._valid_for: tuple[object, ...] = ()

    def __len__(self) -> int:
        return len(self._recorded)

    def usable(self, device: torch.device) -> bool:
        return self.works and device.type == "cuda"

    def clear_cache(self) -> None:
        self._recorded.clear()
        self._valid_for = ()  # it would keep the memory of rows

    def keep_if(self, *held: object) -> None:
        """Drop all graphs, unless these are the very objects that they were recorded with."""
        if len(held) != len(self._valid_for) or any(a is not b for a, b in zip(held, self._valid_for, strict=True)):
            self.clear_cache()
            self._valid_for = held

    def run(self, shape: Hashable, step: Step, ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor | None:
        """`step(ids, starts)`, `[N, V]`; it is overwritten by the next run. None where the step cannot be recorded.

        Args:
            shape: What, besides the sizes of `ids`, makes a graph another one.
            step: Tokens and positions, on their device, to logits; it must not wait for the device.
            ids, starts: [N, 1] tokens and their positions.
        """
        key = (tuple(ids.shape), shape)
        if key not in self._recorded:
            try:
                self._recorded[key] = (ids, starts, record(step, ids, starts))
            except RuntimeError as error:
                self.clear_cache()
                self.works = False
                log.warning("decoding goes on without CUDA graphs, which this model does not allow: %s", error)
                return None
        held_ids, held_starts, replay = self._recorded[key]
        held_ids.copy_(ids)
        held_starts.copy_(starts)
        return replay()


def record(step: Step, ids: torch.Tensor, starts: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Record `step` on a CUDA device; what is returned does it again, with what `ids` and `starts` hold by then.

    Raises:
        RuntimeError: Something in the step waits for the device, or its memory does not suffice.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is set up at a first call must not be recorded
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
    """Memory that all graphs share: they run one at a time, and what one returns is used up before the next."""
    return torch.cuda.graph_pool_handle()


def padded(new: Sequence[Sequence[int]], starts: Sequence[int], most: int) -> tuple[list[list[int]], list[int]]:
    """Rows of one token each, with idle ones behind them up to a power of two, or to `most`."""
    idle = min(most, 1 << (len(new) - 1).bit_length()) - len(new)
    return [*map(list, new), *[[0]] * idle], [*starts, *[0] * idle]
