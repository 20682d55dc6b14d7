"""Conversations as coroutines: whole chats, and the forward sampling behind Eq. 1.

A conversation reads as it is defined: await the user, await the policy, append. `asyncio.gather` plays all contexts,
candidates and samples at once, and the engine batches whatever requests wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collab.chat.base import ChatFailed, ChatModel, Sampling
from collab.conversation import Candidate, Conversation, Goal, Group, Key, Reply, Score
from collab.rewards.reward import ConversationReward
from collab.simulation.allocation import adaptive_problem, allocate, mean_of_stages, pilot_samples
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
    key: Key,
    *,
    turns: int | None = None,
    until_context: int | None = None,
    user_key: Key | None = None,
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
            turn = await players.user.respond(conversation, user_key.at(role="user", turn=conversation.position))
            if turn.end:
                return replace(conversation, user=turn.user or conversation.user).with_end(turn.end)
            conversation = conversation.with_user(turn.text, turn.user)
        if conversation.position == until_context:
            return conversation
        try:
            conversation = conversation.with_reply(await _reply(players, conversation, key))
        except ChatFailed:
            return conversation.with_end(invalid("policy"))


async def play_goals(
    players: Players, goals: Sequence[Goal], system_prompt: str, key: Key, num_conversations: int = 1
) -> list[Conversation]:
    """Whole conversations, `num_conversations` for each goal, goal by goal: the evaluation."""

    async def one(goal: Goal, sample: int) -> Conversation:
        done = await play(players, Conversation(goal, system_prompt), key.at(goal=goal.id, sample=sample))
        players.on_conversation()
        return done

    return list(await asyncio.gather(*(one(goal, sample) for goal in goals for sample in range(num_conversations))))


async def draw_context(players: Players, goal: Goal, system_prompt: str, position: int, key: Key) -> Conversation:
    """Play on-policy until the user has opened turn `position`: a context `t^h_j`.

    Where the user ends the chat before that, some more are played, all at once, and the first of them in order that
    gets there counts; where none does, the context is the last turn that the last valid one opened. Where there is no
    such turn because the simulation failed each time, nothing is `pending` in what is returned.
    """

    def attempt(number: int) -> Coroutine[Any, Any, Conversation]:
        beginning = Conversation(goal, system_prompt)
        return play(players, beginning, key.at(goal=goal.id, sample=number), until_context=position)

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


async def sample_candidates(players: Players, context: Conversation, group_size: int, key: Key) -> list[Reply]:
    """`group_size` independent responses to one context; fewer where a policy over HTTP failed."""
    drawn = (_reply(players, context, key.at(candidate=i)) for i in range(group_size))
    found = await asyncio.gather(*drawn, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, ChatFailed):
            raise one
    return [one for one in found if isinstance(one, Reply)]


async def multiturn_reward(
    context: Conversation,
    candidates: Sequence[Reply],
    *,
    players: Players,
    reward: ConversationReward,
    window: int,
    num_samples: int,
    key: Key,
    paired: bool = True,
    adaptive: bool = False,
) -> list[Candidate]:
    """Eq. 1: `MR(m_j | t^h_j, g)`, the mean of `R*(t_{1:j} + t^f | g)` over forward conversations `t^f`.

    Usable without Lightning: anything that satisfies `ChatModel` plays the policy.

    Args:
        context: A conversation whose user message waits for its response.
        candidates: Responses `m_j` to it.
        players: Policy and user that play the future, and the rules.
        reward: `R*` of a finished conversation.
        window: w, further turns at most; 0 scores `t_{1:j}` at once.
        num_samples: Forward samples per candidate. With `window=0` nothing is sampled, and one is enough.
        key: Randomness; all draws are functions of it.
        paired: Leave the candidate out of the user's key, so that all candidates face the same user randomness.
        adaptive: Play the same number of samples in all, but more of them for candidates whose ranking is open after
            a pilot (see `collab.simulation.allocation`); `num_samples` is then the mean over the candidates.

    Returns:
        One `Candidate` for each response, in order. `mr` is None where no future could be scored.

    Raises:
        BadInput: `adaptive` with `window=0` or with too few samples.
    """
    if adaptive and (problem := adaptive_problem(window, num_samples)):
        raise BadInput(problem)

    async def future(index: int, sample: int) -> tuple[Conversation, Score]:
        policy_key = key.at(candidate=index, sample=sample)
        user_key = policy_key.at(candidate=None) if paired else policy_key
        start = context.with_reply(candidates[index])
        done = await play(players, start, policy_key, turns=window, user_key=user_key)
        players.on_conversation()
        return done, await reward(done)

    async def stage(samples: Sequence[range]) -> list[list[tuple[Conversation, Score]]]:
        """Play these samples of each candidate, all at once."""
        played = (asyncio.gather(*(future(i, sample) for sample in numbers)) for i, numbers in enumerate(samples))
        return [list(found) for found in await asyncio.gather(*played)]

    first = pilot_samples(num_samples) if adaptive else num_samples if window else 1
    stages, weights = [await stage([range(first)] * len(candidates))], [1.0]
    if adaptive:
        more = allocate([_rewards(found) for found in stages[0]], num_samples)
        stages.append(await stage([range(first, first + count) for count in more]))
        weights = [first / num_samples, 1 - first / num_samples]

    def candidate(reply: Reply, *played: list[tuple[Conversation, Score]]) -> Candidate:
        pairs = [pair for found in played for pair in found]
        mr = mean_of_stages([_rewards(found) for found in played], weights)
        return Candidate(reply, tuple(future for future, _ in pairs), tuple(score for _, score in pairs), mr)

    return [candidate(*each) for each in zip(candidates, *stages, strict=True)]


def as_group(context: Conversation, candidates: Sequence[Candidate]) -> Group:
    """A group of the candidates that could be scored; the others leave it."""
    return Group(context, tuple(candidate for candidate in candidates if candidate.mr is not None))


def _rewards(played: Sequence[tuple[Conversation, Score]]) -> list[float]:
    """The rewards that could be had."""
    return [score.reward for _, score in played if score.reward is not None]


async def _reply(players: Players, conversation: Conversation, key: Key) -> Reply:
    request = key.at(role="policy", turn=conversation.position)
    return await players.policy.complete(conversation.messages(), players.sampling, request)
