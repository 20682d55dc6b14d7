"""Packing: groups of candidates in one row, without padding; the history of a group is computed once.

A group is `history, candidate 1, candidate 2, ...`, and a row is one group after the other. A reply that was given
within the history, such as an earlier turn of the same conversation, is predicted where it stands there. Every other
candidate's positions continue from the end of its history. The mask lets it see that history and itself, but not its
siblings nor other groups, so the log-probs are those of separate sequences. The mask must be explicit: transformers
would take positions that jump back for a new sequence.

Shapes: T positions, S sequences (candidates) of all groups, N candidate tokens of all groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from collab.conversation import Reply


@dataclass(frozen=True)
class PackedBatch:
    """A row of histories and candidates, and the positions that predict the candidates' tokens.

    Attributes:
        input_ids: [1, T] tokens.
        position_ids: [1, T] position of each token in its own sequence.
        ends: For each group, the indices in the row at which its history begins and ends and each candidate ends.
        predict_from: [N] index of the position whose hidden state predicts a candidate token.
        targets: [N] the candidate tokens, as sampled.
        sampled_logprobs: [N] their log-probs at sampling time.
        sequence: [N] the sequence, 0..S-1, that a token belongs to.
        num_sequences: S.
        temperature: Logits are divided by it.
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

    def owners(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For each position, the numbers of its own history or candidate and of its group's history, [1, T] each."""
        own, history = torch.empty_like(self.input_ids), torch.empty_like(self.input_ids)
        number = 0
        for ends in self.ends:
            history[:, ends[0] : ends[-1]] = number
            for start, end in itertools.pairwise(ends):
                own[:, start:end] = number
                number += 1
        return own, history

    def visible(self) -> torch.Tensor:
        """Attention mask, [1, T, T] bool, query by key."""
        own, history = self.owners()
        causal = torch.ones(own.shape[1], own.shape[1], dtype=torch.bool, device=own.device).tril()
        keys = own[:, None, :]
        return causal & ((keys == own[:, :, None]) | (keys == history[:, :, None]))

    def to(self, device: torch.device) -> PackedBatch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)


def continues(later: Reply, earlier: Reply) -> bool:
    """Whether `earlier`, with its history, is a beginning of the history of `later`."""
    told = len(earlier.prompt_ids)
    end = told + len(earlier.token_ids)
    return later.prompt_ids[told:end] == earlier.token_ids and later.prompt_ids[:told] == earlier.prompt_ids


def packed_length(replies: Sequence[Reply]) -> int:
    """Number of positions of a group: its history once, and of each reply to it all tokens but the last.

    The last token is predicted, never fed.
    """
    history = _history(replies)
    return len(history) + sum(len(reply.token_ids) - 1 for reply in replies if reply.prompt_ids == history)


def _history(replies: Sequence[Reply]) -> tuple[int, ...]:
    return max((reply.prompt_ids for reply in replies), key=len)


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Distribute groups, in order, over micro-batches of at most `budget` positions.

    A group longer than the budget is a micro-batch of its own: in two parts its history would be computed twice.

    Args:
        lengths: `packed_length` of each group.
        budget: Maximum number of positions of a micro-batch.

    Returns:
        Indices into `lengths`, each once.
    """
    batches: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not batches or length > room:
            batches.append([])
            room = budget
        batches[-1].append(index)
        room -= length
    return batches


def pack(groups: Sequence[Sequence[Reply]], temperature: float) -> PackedBatch:
    """Pack groups of replies.

    The replies of a group share their `prompt_ids`, the group's history; or they stand within it (`continues`).
    """
    ids: list[int] = []
    positions: list[int] = []
    ends: list[tuple[int, ...]] = []
    predict_from: list[int] = []
    targets: list[int] = []
    sampled: list[float] = []
    sequence: list[int] = []
    num_sequences = 0
    for replies in groups:
        history = _history(replies)
        places = [len(ids), len(ids) + len(history)]
        ids += history
        positions += range(len(history))
        for reply in replies:
            if reply.prompt_ids == history:
                fed = reply.token_ids[:-1]
                predict_from += [places[1] - 1, *range(len(ids), len(ids) + len(fed))]
                ids += fed
                positions += range(len(history), len(history) + len(fed))
                places.append(len(ids))
            else:
                start = len(reply.prompt_ids)
                assert history[:start] == reply.prompt_ids, "the replies of a group share their history"
                assert history[start : start + len(reply.token_ids)] == reply.token_ids, "as it stands in the history"
                predict_from += range(places[0] + start - 1, places[0] + start - 1 + len(reply.token_ids))
            targets += reply.token_ids
            sampled += reply.logprobs
            sequence += [num_sequences] * len(reply.token_ids)
            num_sequences += 1
        ends.append(tuple(places))
    return PackedBatch(
        torch.tensor([ids]),
        torch.tensor([positions]),
        tuple(ends),
        torch.tensor(predict_from),
        torch.tensor(targets),
        torch.tensor(sampled),
        torch.tensor(sequence),
        num_sequences,
        temperature,
    )


def idle_batch() -> PackedBatch:
    """One reply of one token, for forward passes that only keep step with other processes."""
    reply = Reply(text="", token_ids=(0,), logprobs=(0.0,), finish_reason="length", prompt_ids=(0,))
    return pack([[reply]], temperature=1.0)
