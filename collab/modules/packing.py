"""Packing: the candidates of a group in one row behind their history, which is computed once.

A row is `history, candidate 1, candidate 2, ...`. Every candidate's positions go on from the end of the history, and
the mask lets it see the history and itself, not its siblings: the log-probs are those of separate sequences. The mask
must be explicit, because positions that jump back would otherwise be taken for a new sequence.

Shapes: R rows (groups), T positions, S sequences (candidates) over all rows, N candidate tokens over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from collab.conversation import Reply


@dataclass(frozen=True)
class PackedBatch:
    """Rows of history and candidates, and where in them the candidates' tokens are predicted.

    Attributes:
        input_ids: [R, T] tokens; padding holds 0.
        position_ids: [R, T] position of each token in its own sequence.
        visible: [R, 1, T, T] bool, query by key. A padding position sees itself alone.
        predict_from: [N] index into the R * T positions whose hidden state predicts a candidate token.
        targets: [N] the candidate tokens, as sampled.
        sampled_logprobs: [N] their log-probs when they were sampled.
        sequence: [N] which sequence 0..S-1 a token belongs to.
        num_sequences: S.
        temperature: The distribution's temperature: logits are divided by it.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    predict_from: torch.Tensor
    targets: torch.Tensor
    sampled_logprobs: torch.Tensor
    sequence: torch.Tensor
    num_sequences: int
    temperature: float

    def to(self, device: torch.device) -> PackedBatch:
        held = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in held}
        return PackedBatch(**moved)


def pack(groups: Sequence[Sequence[Reply]], temperature: float) -> PackedBatch:
    """Pack groups of replies; the replies of one group share their `prompt_ids`.

    The last token of a reply is only predicted, never fed.
    """
    histories = [list(replies[0].prompt_ids) for replies in groups]
    lengths = [
        len(history) + sum(len(r.token_ids) - 1 for r in replies)
        for history, replies in zip(histories, groups, strict=True)
    ]
    rows, width = len(groups), max(lengths)
    input_ids = torch.zeros(rows, width, dtype=torch.long)
    position_ids = torch.zeros(rows, width, dtype=torch.long)
    # Owner of a position: 0 the history, 1.. a candidate, -1 padding.
    owner = torch.full((rows, width), -1)
    predict_from: list[int] = []
    targets: list[int] = []
    sampled: list[float] = []
    sequence: list[int] = []
    num_sequences = 0
    for row, (history, replies) in enumerate(zip(histories, groups, strict=True)):
        end = len(history)
        input_ids[row, :end] = torch.tensor(history)
        position_ids[row, :end] = torch.arange(end)
        owner[row, :end] = 0
        for number, reply in enumerate(replies, start=1):
            assert list(reply.prompt_ids) == history, "the candidates of a group share their history"
            fed = len(reply.token_ids) - 1
            input_ids[row, end : end + fed] = torch.tensor(reply.token_ids[:-1], dtype=torch.long)
            position_ids[row, end : end + fed] = len(history) + torch.arange(fed)
            owner[row, end : end + fed] = number
            predict_from += [row * width + len(history) - 1, *range(row * width + end, row * width + end + fed)]
            targets += reply.token_ids
            sampled += reply.logprobs
            sequence += [num_sequences] * len(reply.token_ids)
            num_sequences += 1
            end += fed
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = owner[:, :, None] == owner[:, None, :]
    history_key = (owner == 0)[:, None, :]
    visible = causal & (same | history_key) & (owner >= 0)[:, :, None] | torch.eye(width, dtype=torch.bool)
    return PackedBatch(
        input_ids,
        position_ids,
        visible[:, None],
        torch.tensor(predict_from),
        torch.tensor(targets),
        torch.tensor(sampled),
        torch.tensor(sequence),
        num_sequences,
        temperature,
    )
