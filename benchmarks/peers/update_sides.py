"""What both sides of the update rows share: the data, and how time and memory are taken."""

from __future__ import annotations

import ctypes
import gc
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

TEMPERATURE = 0.7


def draw(history: int, candidates: int, tokens: int, vocabulary: int) -> tuple[list[int], list[list[int]], list[float]]:
    """A history, its candidates and their advantages: what the tokens are makes no difference to the time."""
    source = random.Random(0)
    ids = [[source.randrange(vocabulary) for _ in range(n)] for n in (history, *[tokens] * candidates)]
    return ids[0], ids[1:], [1.0 if n % 2 else -1.0 for n in range(candidates)]


def measured(update: Callable[[], Any], parameters: Iterable[torch.nn.Parameter], device: str) -> dict[str, float]:
    """One update, without an optimizer step: its time, its peak of memory above what was held before it, and the norm
    of all gradients, by which the driver sees that both sides compute the same.
    """
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
    gc.collect()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier updates have freed
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the highest VmRSS
    started = time.perf_counter()
    update()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = (torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")) - before
    norms = [parameter.grad.float().norm() for parameter in parameters if parameter.grad is not None]
    return {"seconds": seconds, "peak_bytes": peak, "gradient_norm": float(torch.stack(norms).norm())}


def _status(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
