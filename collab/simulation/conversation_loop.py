"""Conversations as coroutines: await the user, await the policy, append.

Many conversations are played at once (`asyncio.gather`), and the engine batches the requests that wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collab.chat.base import CONTEXT_FULL, ChatFailed, ChatModel, ContextFull, Sampling
from collab.conversation import Conversation, Goal, Refusal, Reply
from collab.randomness import RngKey
from collab.simulation.user import UserSimulator, invalid
from collab.util.errors import BadInput

_CONTEXT_TRIES = 4


class Observer:
    """Hears what happens in conversations, for whoever shows it. This one does nothing.

    With `rollout.max_staleness`, calls come from the thread that plays.
    """

    def began(self) -> None:
        """A conversation, or the future of a candidate, begins to be played."""

    def ended(self) -> None:
        """It is no longer played: it has ended, has reached its context, or failed."""

    def replied(self, tokens: int) -> None:
        """The policy has made a reply of so many tokens."""

    def said(self, conversation: Conversation, key: RngKey) -> None:
        """The conversation of `key` as it is now: at its start, and after each message."""

    def scored(self, reward: float | None) -> None:
        """R* of a finished conversation; None if it has none."""

    def valued(self, key: RngKey, name: str, value: float | None) -> None:
        """What the first conversation of `key` is worth: its R*, or MR of its candidate. No more is said in it."""


@dataclass(frozen=True)
class Players:
    """Policy and user, and the rules of a conversation.

    Attributes:
        policy: Plays the assistant.
        user: Plays the user.
        sampling: How the policy's replies are sampled.
        max_turns: Maximum turns of a conversation (`task.max_turns`).
        on_conversation: Called at the end of each conversation, for progress bars.
        observer: Hears what is said.
    """

    policy: ChatModel
    user: UserSimulator
    sampling: Sampling
    max_turns: int
    on_conversation: Callable[[], None] = field(default=lambda: None)
    observer: Observer = field(default_factory=Observer)


async def play(
    players: Players,
    conversation: Conversation,
    key: RngKey,
    *,
    turns: int | None = None,
    until_context: int | None = None,
    user_key: RngKey | None = None,
) -> Conversation:
    """Play on from `conversation` until it ends.

    Args:
        players: Policy and user.
        conversation: Where to start. A pending message is answered first.
        key: Randomness of this conversation; `turn` and `role` are filled in here.
        turns: Maximum further turns (the window); None plays to `max_turns`.
        until_context: Stop when the user has opened the turn of this number; its message is then `pending`.
        user_key: Key of the user's draws if it differs from the policy's (paired sampling).

    Returns:
        The conversation. `ended_by` is set, unless `until_context` was reached.
    """
    players.observer.began()
    try:
        return await _play(players, conversation, key, turns, until_context, user_key or key)
    finally:
        players.observer.ended()


async def _play(
    players: Players,
    conversation: Conversation,
    key: RngKey,
    turns: int | None,
    until_context: int | None,
    user_key: RngKey,
) -> Conversation:
    players.observer.said(conversation, key)
    last = players.max_turns if turns is None else min(players.max_turns, len(conversation.turns) + turns)
    while True:
        if conversation.pending is None:
            if len(conversation.turns) >= last:
                reason = "max_turns" if len(conversation.turns) >= players.max_turns else "window"
                return conversation.with_end(reason)
            turn = await players.user.respond(conversation, user_key.at(role="user", turn=conversation.turn))
            refused = (Refusal(conversation.turn, *refusal) for refusal in turn.refused)
            state = conversation.state if turn.state is None else turn.state
            conversation = replace(conversation, refused=(*conversation.refused, *refused), state=state)
            if turn.end:
                return replace(conversation, user=turn.user or conversation.user).with_end(turn.end)
            conversation = conversation.with_user(turn.text, turn.user)
            players.observer.said(conversation, key)
        if conversation.turn == until_context:
            return conversation
        try:
            conversation = conversation.with_reply(await _reply(players, conversation, key))
        except ContextFull:
            return conversation.with_end(invalid(CONTEXT_FULL))
        except ChatFailed:
            return conversation.with_end(invalid("policy"))
        players.observer.said(conversation, key)


async def play_goals(
    players: Players, goals: Sequence[Goal], system_prompt: str, key: RngKey, num_conversations: int = 1
) -> list[Conversation]:
    """Whole conversations for evaluation: `num_conversations` for each goal, in the order of the goals."""

    async def one(goal: Goal, sample: int) -> Conversation:
        done = await play(players, Conversation(goal, system_prompt), key.at(goal=goal.id, sample=sample))
        players.on_conversation()
        return done

    return list(await asyncio.gather(*(one(goal, sample) for goal in goals for sample in range(num_conversations))))


async def draw_context(players: Players, goal: Goal, system_prompt: str, turn: int, key: RngKey) -> Conversation:
    """Play on-policy until the user has opened turn `turn`: a context `t^h_j`.

    If the user ends the chat before that, `_CONTEXT_TRIES - 1` others are played side by side, all to their end, and
    the first in order that reaches the turn is the context. If none does, the context is the last turn of the last
    valid one that has any. If all of them failed, nothing is `pending` in the result.

    Raises:
        BadInput: The user left each valid conversation before its first message.
    """

    def attempt(sample: int) -> Coroutine[Any, Any, Conversation]:
        start = Conversation(goal, system_prompt)
        return play(players, start, key.at(goal=goal.id, sample=sample), until_context=turn)

    played = [await attempt(0)]
    if played[0].pending is None:
        played += await asyncio.gather(*map(attempt, range(1, _CONTEXT_TRIES)))
    for conversation in played:
        if conversation.pending is not None:
            return conversation
    valid = [conversation for conversation in played if conversation.valid]
    if not valid:
        return played[-1]
    begun = [conversation for conversation in valid if conversation.turns]
    if not begun:
        raise BadInput(f"The simulated user left {len(valid)} times before saying anything (goal {goal.id}).")
    *earlier, last = begun[-1].turns
    refused = tuple(refusal for refusal in begun[-1].refused if refusal.turn <= len(begun[-1].turns))
    return replace(begun[-1], turns=tuple(earlier), pending=last.user, ended_by="", refused=refused, state=last.state)


async def sample_candidates(
    players: Players, context: Conversation, group_size: int, key: RngKey
) -> list[Reply] | None:
    """`group_size` independent responses to one context; fewer if a policy over HTTP failed.

    None if the context is too long for the policy.
    """

    async def sample(candidate: int) -> Reply | ChatFailed:
        try:
            return await _reply(players, context, key.at(candidate=candidate))
        except ChatFailed as failure:
            return failure

    found = await asyncio.gather(*map(sample, range(group_size)))
    if any(isinstance(entry, ContextFull) for entry in found):
        return None
    return [entry for entry in found if isinstance(entry, Reply)]


async def _reply(players: Players, conversation: Conversation, key: RngKey) -> Reply:
    request = key.at(role="policy", turn=conversation.turn)
    reply = await players.policy.complete(conversation.messages(), players.sampling, request)
    players.observer.replied(reply.num_tokens)
    return reply
