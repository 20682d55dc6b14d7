"""Conversations as coroutines: await the user, await the policy, append.

`asyncio.gather` plays many conversations at once, and the engine batches the requests that wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collab.chat.base import ChatFailed, ChatModel, Sampling
from collab.conversation import Conversation, Goal, Reply
from collab.randomness import RngKey
from collab.simulation.user import UserSimulator, invalid
from collab.util.errors import BadInput

_CONTEXT_TRIES = 4


@dataclass(frozen=True)
class Players:
    """Who talks and under which rules.

    Attributes:
        policy: Plays the assistant.
        user: Plays the user.
        sampling: How the policy's replies are drawn.
        max_turns: Turns of a conversation at most (`task.max_turns`).
        on_conversation: Called whenever one conversation is over, for progress bars.
    """

    policy: ChatModel
    user: UserSimulator
    sampling: Sampling
    max_turns: int
    on_conversation: Callable[[], None] = field(default=lambda: None)


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
        conversation: Where to start; a message that waits in it is answered first.
        key: Randomness of this conversation; `turn` and `role` are filled in here.
        turns: Further turns to play at most (the window); None plays to `max_turns`.
        until_context: Stop as soon as the user has opened the turn of this number, its message `pending`.
        user_key: Key of the user's draws where it differs from the policy's (paired sampling).

    Returns:
        The conversation, `ended_by` set, except where `until_context` was reached.
    """
    user_key = user_key or key
    last = players.max_turns if turns is None else min(players.max_turns, len(conversation.turns) + turns)
    while True:
        if conversation.pending is None:
            if len(conversation.turns) >= last:
                reason = "max_turns" if len(conversation.turns) >= players.max_turns else "window"
                return conversation.with_end(reason)
            turn = await players.user.respond(conversation, user_key.at(role="user", turn=conversation.turn))
            if turn.end:
                return replace(conversation, user=turn.user or conversation.user).with_end(turn.end)
            conversation = conversation.with_user(turn.text, turn.user)
        if conversation.turn == until_context:
            return conversation
        try:
            conversation = conversation.with_reply(await _reply(players, conversation, key))
        except ChatFailed:
            return conversation.with_end(invalid("policy"))


async def play_goals(
    players: Players, goals: Sequence[Goal], system_prompt: str, key: RngKey, num_conversations: int = 1
) -> list[Conversation]:
    """Whole conversations, `num_conversations` for each goal, goal by goal: the evaluation."""

    async def one(goal: Goal, sample: int) -> Conversation:
        done = await play(players, Conversation(goal, system_prompt), key.at(goal=goal.id, sample=sample))
        players.on_conversation()
        return done

    return list(await asyncio.gather(*(one(goal, sample) for goal in goals for sample in range(num_conversations))))


async def draw_context(players: Players, goal: Goal, system_prompt: str, turn: int, key: RngKey) -> Conversation:
    """Play on-policy until the user has opened turn `turn`: a context `t^h_j`.

    Where the user ends the chat before that, some more are played, all at once, and the first of them in order that
    gets there counts; where none does, the context is the last turn that the last valid one opened. Where there is no
    such turn because the simulation failed each time, nothing is `pending` in what is returned.
    """

    def attempt(number: int) -> Coroutine[Any, Any, Conversation]:
        beginning = Conversation(goal, system_prompt)
        return play(players, beginning, key.at(goal=goal.id, sample=number), until_context=turn)

    found = await attempt(0)
    if found.pending is not None:
        return found
    others = [asyncio.create_task(attempt(number)) for number in range(1, _CONTEXT_TRIES)]
    try:
        for other in others:
            latest = await other
            if latest.pending is not None:
                return latest
            found = latest if latest.valid or not found.valid else found
    finally:
        if getattr(players.user, "paid", False):
            await asyncio.gather(*others)  # what was asked is paid for, and no timing may decide what is asked
        for other in others:
            other.cancel()
    if not found.valid:
        return found
    if not found.turns:
        raise BadInput(f"The simulated user left {_CONTEXT_TRIES} times before saying anything (goal {goal.id}).")
    last = found.turns[-1]
    return replace(found, turns=found.turns[:-1], pending=last.user, ended_by="")


async def sample_candidates(players: Players, context: Conversation, group_size: int, key: RngKey) -> list[Reply]:
    """`group_size` independent responses to one context; fewer where a policy over HTTP failed."""
    drawn = (_reply(players, context, key.at(candidate=i)) for i in range(group_size))
    found = await asyncio.gather(*drawn, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, ChatFailed):
            raise one
    return [one for one in found if isinstance(one, Reply)]


async def _reply(players: Players, conversation: Conversation, key: RngKey) -> Reply:
    request = key.at(role="policy", turn=conversation.turn)
    return await players.policy.complete(conversation.messages(), players.sampling, request)
