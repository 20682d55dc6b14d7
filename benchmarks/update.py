"""Rows on the update. Both sides run in fresh processes, since one of them measures its memory."""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.measure import Figures, Setting, compare
from benchmarks.peer import Peer, PeerFailed
from collab.config.schema import LoraConfig

_CANDIDATES, _TOKENS = 8, 64
_HISTORY = 512
NORM_TOLERANCE = 0.02  # relative, between the norms of both sides' gradients in bf16


def _sides(setting: Setting) -> tuple[Callable[[], dict[str, float]], Callable[[], dict[str, float]]]:
    """One update of ours and one of TRL's on the same data."""
    shared = {
        "model": setting.model,
        "dtype": setting.named_dtype,
        "device": str(setting.device),
        "checkpointing": setting.checkpointing,
        "history": _HISTORY,
        "candidates": _CANDIDATES,
        "tokens": _TOKENS,
    }
    lora = LoraConfig()
    ours = setting.peer(None, "update_ours", **shared)
    trl = setting.peer("trl", "update_trl", **shared, rank=lora.r, alpha=lora.alpha)
    norms: dict[str, float] = {}

    def side(peer: Peer) -> Callable[[], dict[str, float]]:
        def update() -> dict[str, float]:
            found = peer.ask("update")
            norms[peer.name] = found["gradient_norm"]
            if len(norms) == 2 and not math.isclose(*norms.values(), rel_tol=NORM_TOLERANCE):
                raise PeerFailed(f"The two sides do not compute the same: norms of their gradients are {norms}.")
            return found

        return update

    return side(ours), side(trl)


def update_vs_trl(setting: Setting) -> Figures:
    ours, trl = _sides(setting)
    count = _CANDIDATES * _TOKENS
    return compare(setting, lambda: count / ours()["seconds"], lambda: count / trl()["seconds"])


def update_memory_vs_trl(setting: Setting) -> Figures:
    ours, trl = _sides(setting)
    return compare(setting, lambda: ours()["peak_bytes"] / 1e6, lambda: trl()["peak_bytes"] / 1e6)
