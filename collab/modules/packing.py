"""Packing: the candidates of a group in one row behind their history, which is computed once.

A row is `history, candidate 1, candidate 2, ...`. Every candidate's positions go on from the end of the history, and
the mask lets it see the history and itself, not its siblings: the log-probs are those of separate sequences. The mask
must be explicit, because positions that jump back would otherwise be taken for a new sequence.

Several groups are rows of one batch, padded to the longest: `micro_batches` puts groups of like length together.

Shapes: R rows (groups), T positions, S sequences (candidates) over all rows, N candidate tokens over all rows.
"""

from __future__ import annotations

import itertools
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
        ends: Of each row, the position where the history ends, then where each candidate does.
        predict_from: [N] index into the R * T positions whose hidden state predicts a candidate token.
        targets: [N] the candidate tokens, as sampled.
        sampled_logprobs: [N] their log-probs when they were sampled.
        sequence: [N] which sequence 0..S-1 a token belongs to.
        num_sequences: S.
        temperature: The distribution's temperature: logits are divided by it.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    ends: tuple[tuple[int, ...], ...]
    predict_from: torch.Tensor
    targets: torch.Tensor
    sampled_logprobs: torch.Tensor
    sequence: torch.Tensor
    num_sequences: int
    temperature: float

    def owners(self) -> torch.Tensor:
        """Whose a position is, [R, T]: 0 the history's, 1.. a candidate's; of padding, a negative number each."""
        rows, width = self.input_ids.shape
        owners = (-1 - torch.arange(width)).repeat(rows, 1)
        for row, ends in enumerate(self.ends):
            for number, (start, end) in enumerate(itertools.pairwise([0, *ends])):
                owners[row, start:end] = number
        return owners.to(self.input_ids.device)

    def visible(self) -> torch.Tensor:
        """Who sees whom, [R, T, T] bool, query by key. Nobody sees padding but padding itself."""
        owners = self.owners()
        causal = torch.ones(owners.shape[1], owners.shape[1], dtype=torch.bool, device=owners.device).tril()
        itself, history = owners[:, :, None] == owners[:, None, :], (owners == 0)[:, None, :]
        return causal & (itself | history)

    def to(self, device: torch.device) -> PackedBatch:
        held = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in held}
        return PackedBatch(**moved)


def packed_length(replies: Sequence[Reply]) -> int:
    """Positions that a group takes in a row: its history once, and of each reply all but the last token.

    That last token is only predicted, never fed.
    """
    return len(replies[0].prompt_ids) + sum(len(reply.token_ids) - 1 for reply in replies)


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Share groups out so that no micro-batch takes more than `budget` positions, padding included.

    Groups of like length go together, which keeps the padding small. A group that is longer than the budget makes a
    micro-batch of its own: in two parts its history would be computed twice.

    Args:
        lengths: `packed_length` of each group.
        budget: Rows times the longest row's positions, at most.

    Returns:
        Indices into `lengths`, each once; the first micro-batch is the one with group 0.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or (len(batches[-1]) + 1) * lengths[index] > budget:
            batches.append([])
        batches[-1].append(index)
    return sorted((sorted(batch) for batch in batches), key=min)


def pack(groups: Sequence[Sequence[Reply]], temperature: float) -> PackedBatch:
    """Pack groups of replies, a row each; the replies of one group share their `prompt_ids`."""
    rows, width = len(groups), max(packed_length(replies) for replies in groups)
    input_ids = torch.zeros(rows, width, dtype=torch.long)
    position_ids = torch.zeros(rows, width, dtype=torch.long)
    ends: list[tuple[int, ...]] = []
    predict_from: list[int] = []
    targets: list[int] = []
    sampled: list[float] = []
    sequence: list[int] = []
    num_sequences = 0
    for row, replies in enumerate(groups):
        history = list(replies[0].prompt_ids)
        end = len(history)
        found = [end]
        input_ids[row, :end] = torch.tensor(history)
        position_ids[row, :end] = torch.arange(end)
        for reply in replies:
            assert list(reply.prompt_ids) == history, "the candidates of a group share their history"
            fed = len(reply.token_ids) - 1
            input_ids[row, end : end + fed] = torch.tensor(reply.token_ids[:-1], dtype=torch.long)
            position_ids[row, end : end + fed] = len(history) + torch.arange(fed)
            predict_from += [row * width + len(history) - 1, *range(row * width + end, row * width + end + fed)]
            targets += reply.token_ids
            sampled += reply.logprobs
            sequence += [num_sequences] * len(reply.token_ids)
            num_sequences += 1
            end += fed
            found.append(end)
        ends.append(tuple(found))
    return PackedBatch(
        input_ids,
        position_ids,
        tuple(ends),
        torch.tensor(predict_from),
        torch.tensor(targets),
        torch.tensor(sampled),
        torch.tensor(sequence),
        num_sequences,
        temperature,
    )


def idle_batch(temperature: float = 1.0) -> PackedBatch:
    """One reply of one token, for passes that only keep step with other processes."""
    reply = Reply(text="", token_ids=(0,), logprobs=(0.0,), finish_reason="length", prompt_ids=(0,))
    return pack([[reply]], temperature)
