"""Attention over a packed row that computes what the mask shows and skips what it hides.

A row consists of groups: a history and, behind it, candidates that see the history and themselves. Under a dense mask,
each candidate is also multiplied with its siblings and with other groups, and the results are hidden. Here a group is
computed in blocks without a mask: the history over itself, all candidates over the history, each candidate over itself.
The two parts of a candidate are combined by their normalisers, as between the machines of ring attention (Liu et al.
2023): each block's kernel also returns the logsumexp of its scores. The backward kernel gets the normaliser of the
whole and returns the block's share of the gradient.

The blocks are for the CPU, where the flash kernel computes a dense mask in full (`attention.by_layout`).

Shapes: Q query heads, K key/value heads (a divisor of Q), T positions, D channels of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

PIECE = 256  # positions of a history that are computed at once

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class PackedAttention(torch.autograd.Function):
    """[1, Q, T, D] queries over [1, K, T, D] keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ends: Sequence[Sequence[int]],
        scale: float | None,
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        total = query.new_empty(query.shape[:3], dtype=torch.float32)  # logsumexp of a query's scores so far
        for q, k, causal in _blocks(ends):
            part, norm = _forward(query[:, :, q], key[:, :, k], value[:, :, k], 0.0, causal, scale=scale)
            if not causal:
                seen, before = total[:, :, q], out[:, :, q]
                part = torch.lerp(before.float(), part.float(), (norm - seen).sigmoid()[..., None])
                norm = torch.logaddexp(seen, norm)
            out[:, :, q], total[:, :, q] = part, norm
        ctx.save_for_backward(query, key, value, out, total)
        ctx.ends, ctx.scale = ends, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        saved = ctx.saved_tensors
        # In fp32: the backward kernel takes two or three times as long over small blocks in bf16.
        query, key, value, out, total, grad = (x.float() for x in (*saved, grad))
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        for q, k, causal in _blocks(ctx.ends):
            from_above, queries, outs, norms = (x[:, :, q] for x in (grad, query, out, total))
            keys, values = key[:, :, k], value[:, :, k]
            parts = _backward(from_above, queries, keys, values, outs, norms, 0.0, causal, scale=ctx.scale)
            for whole, part, where in zip(grads, parts, (q, k, k), strict=True):
                whole[:, :, where] += part
        return *(whole.to(saved[0].dtype) for whole in grads), None, None


def _blocks(ends: Sequence[Sequence[int]]) -> Iterator[tuple[slice, slice, bool]]:
    """(queries, keys, whether causal) of the blocks that are not hidden; for each query, the causal block first."""
    for first, history, *candidates in ends:
        for start in range(first, history, PIECE):
            piece = slice(start, min(start + PIECE, history))
            yield piece, piece, True
            if start > first:
                yield piece, slice(first, start), False
        for start, end in itertools.pairwise([history, *candidates]):
            if end > start:
                yield slice(start, end), slice(start, end), True
        if candidates[-1] > history:
            yield slice(history, candidates[-1]), slice(first, history), False
