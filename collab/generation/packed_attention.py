"""Attention over packed rows that computes what the mask shows and skips what it hides.

A row is a history and, behind it, candidates that see the history and themselves. Under a dense mask each of them is
also multiplied with its siblings, to be hidden. Here a row is computed in blocks without a mask: the history over
itself, all candidates over the history, each candidate over itself. A candidate's two parts are put together by their
normalisers, as between the machines of ring attention (Liu et al. 2023): each block's kernel also returns the logsumexp
of its scores, and the backward kernel, given the normaliser of the whole, returns the block's share of the gradient.

The blocks are for the CPU, whose flash kernel runs over a dense mask in full; `attention.by_layout` takes them there.

Shapes: R rows, Q query heads, K key/value heads (a divisor of Q), T positions, D channels of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

_PIECE = 256  # positions of a history that are computed at a time

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class PackedAttention(torch.autograd.Function):
    """[R, Q, T, D] queries over [R, K, T, D] keys and values; padding behind a row's end gets zeros."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ends: Sequence[Sequence[int]],
        scale: float | None,
    ) -> torch.Tensor:
        out = torch.zeros_like(query)
        total = query.new_zeros(query.shape[:3], dtype=torch.float32)  # logsumexp of the scores that a query has met
        for row, q, k, causal in _blocks(ends):
            part, norm = _forward(query[row, :, q], key[row, :, k], value[row, :, k], 0.0, causal, scale=scale)
            if not causal:
                seen, before = total[row, :, q], out[row, :, q]
                part = torch.lerp(before.float(), part.float(), (norm - seen).sigmoid()[..., None])
                norm = torch.logaddexp(seen, norm)
            out[row, :, q], total[row, :, q] = part, norm
        ctx.save_for_backward(query, key, value, out, total)
        ctx.ends, ctx.scale = ends, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        saved = ctx.saved_tensors
        # In fp32: the backward kernel takes two or three times as long over small blocks in bf16.
        query, key, value, out, total, grad = (x.float() for x in (*saved, grad))
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        for row, q, k, causal in _blocks(ctx.ends):
            from_above, queries, outs, norms = (x[row, :, q] for x in (grad, query, out, total))
            keys, values = key[row, :, k], value[row, :, k]
            parts = _backward(from_above, queries, keys, values, outs, norms, 0.0, causal, scale=ctx.scale)
            for whole, part, where in zip(grads, parts, (q, k, k), strict=True):
                whole[row, :, where] += part
        return *(whole.to(saved[0].dtype) for whole in grads), None, None


def _blocks(ends: Sequence[Sequence[int]]) -> Iterator[tuple[slice, slice, slice, bool]]:
    """(row, queries, keys, whether causal) of what is not hidden: first what a position's own part has of it."""
    for number, (history, *candidates) in enumerate(ends):
        row = slice(number, number + 1)
        for start in range(0, history, _PIECE):
            piece = slice(start, min(start + _PIECE, history))
            yield row, piece, piece, True
            if start:
                yield row, piece, slice(0, start), False
        for start, end in itertools.pairwise([history, *candidates]):
            if end > start:
                yield row, slice(start, end), slice(start, end), True
        if candidates[-1] > history:
            yield row, slice(history, candidates[-1]), slice(0, history), False
