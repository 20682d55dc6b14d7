"""Gives stored conversations the token ids that training needs.

Rows hold text, which is tokenised here as the rollout engine does it. The ids of a reply may then differ from the
sampled ones. That does no harm: an algorithm that learns from a file does not use the log-probs at sampling time, and
half of the replies were sampled under another instruction anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch.utilities import rank_zero_warn

from collab.conversation import Group
from collab.datamodules.conversations import KEY
from collab.lm.chat_format import ChatFormat
from collab.util.errors import BadInput


def by_conversation(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """The groups of each stored conversation together, in the order of their first ones."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.context.goal.id, []).append(group)
    return [tuple(conversation) for conversation in found.values()]


def tokenise(groups: Sequence[Group], format: ChatFormat, positions: int | None) -> list[Group]:
    """Give every candidate its token ids as the rollout engine would: history, and reply with the end of turn.

    Args:
        groups: As `load_groups` returns them.
        format: Of the policy's tokenizer.
        positions: Maximum tokens of a sequence; None for no limit. Longer candidates are left out, and a warning says
            how many.

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
