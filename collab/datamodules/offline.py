"""Trains on stored conversations in place of rollouts: tokenises them, and hands them out as batches.

Rows hold text, which is tokenised here as the rollout engine does it. The ids of a reply may then differ from those
that were sampled. That does no harm: an algorithm that learns from a file does not use the log-probs at sampling time,
and half of the replies were sampled under another instruction anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

from collab.conversation import Group
from collab.datamodules.base import GoalBatch, GoalDataModule
from collab.datamodules.conversations import KEY
from collab.datamodules.goals import GoalSplits
from collab.lm.chat_format import ChatFormat
from collab.util.errors import BadInput

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class OfflineData(GoalDataModule):
    """Scored groups in, batches of them out; validation and test have the goals of the task.

    A step trains on `goals_per_step` groups over all processes. Passes over the groups follow each other, each in its
    own order, until the steps of the run are done.

    Args:
        splits: The goals of the task.
        goals_per_step: Groups of one step over all processes; a multiple of their number.
        max_steps: Steps of the run.
        seed: Orders the groups.
        read: Reads the groups; called once, when a run that trains is set up.

    Attributes:
        groups: What was read; empty until then.
    """

    def __init__(
        self, splits: GoalSplits, goals_per_step: int, max_steps: int, seed: int, read: Callable[[], list[Group]]
    ) -> None:
        super().__init__(splits, goals_per_step, max_steps, seed)
        self.groups: list[Group] = []
        self._read = read

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.groups:
            self.groups = self._read()

    def train_dataloader(self) -> DataLoader[GoalBatch]:
        """`max_steps` batches of this process's share of `goals_per_step` groups."""
        return self._training(self.groups, _batch)


def _batch(groups: list[Group]) -> GoalBatch:
    return GoalBatch([group.context.goal for group in groups], groups)


def tokenise(groups: Sequence[Group], format: ChatFormat, positions: int | None) -> list[Group]:
    """Give every candidate its token ids as the rollout engine would: history, and reply with the end of turn.

    Args:
        groups: As `load_groups` returns them.
        format: Of the policy's tokenizer.
        positions: The most tokens of a sequence; None for no limit. Longer candidates are left out, with a warning that
            says how many.

    Raises:
        BadInput: No candidate is short enough.
    """
    left_out, kept = 0, []
    for group in groups:
        prompt = tuple(format.encode(group.context.messages())[0])
        candidates = []
        for candidate in group.candidates:
            reply = candidate.reply
            ids = tuple(format.encode_reply(reply.text, cut=reply.finish_reason == "length"))
            if positions is not None and len(prompt) + len(ids) > positions:
                left_out += 1
            else:
                candidates.append(replace(candidate, reply=replace(reply, token_ids=ids, prompt_ids=prompt)))
        if candidates:
            kept.append(replace(group, candidates=tuple(candidates)))
    if not kept:
        raise BadInput(
            f"{KEY}: no response and its history fit the {positions} positions of the model. Take a model with more, "
            "or shorter conversations."
        )
    if left_out:
        total = left_out + sum(len(group.candidates) for group in kept)
        rank_zero_warn(
            f"{KEY}: {left_out} of {total} responses are left out: with their history they are longer than the "
            f"{positions} positions of the model."
        )
    return kept
