"""Eq. 1 of CollabLLM: the multiturn-aware reward (MR) of a response, estimated by forward sampling.

    MR(m_j | t_{1:j-1}, g) = E[ R*(t_{1:j} + t_future | g) ]

The policy and the simulated user play `num_samples` futures of up to `window` turns for each candidate response. MR is
the mean R* of the finished conversations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import fmean

from collab.conversation import Candidate, Conversation, Group, Reply, Score
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play


async def multiturn_reward(
    context: Conversation,
    candidates: Sequence[Reply],
    *,
    players: Players,
    reward: ConversationReward,
    window: int,
    num_samples: int,
    key: RngKey,
    paired: bool = True,
) -> list[Candidate]:
    """MR of each candidate response to one context (Eq. 1).

    It needs no Lightning: any `ChatModel` plays the policy.

    Args:
        context: A conversation with a pending user message.
        candidates: Responses `m_j` to it.
        players: Policy and user of the futures.
        reward: R* of a finished conversation.
        window: w, the maximum further turns; 0 scores `t_{1:j}` at once.
        num_samples: Forward samples per candidate. With `window=0` nothing is sampled, and one is enough.
        key: Randomness; all draws are functions of it.
        paired: Whether all candidates face the same randomness of the user: its key leaves out the candidate.

    Returns:
        One `Candidate` for each response, in order. `mr` is None if no future could be scored.
    """

    async def future(candidate: int, sample: int) -> tuple[Conversation, Score]:
        policy_key = key.at(candidate=candidate, sample=sample)
        user_key = policy_key.at(candidate=None) if paired else policy_key
        start = context.with_reply(candidates[candidate])
        done = await play(players, start, policy_key, turns=window, user_key=user_key)
        players.on_conversation()
        score = await reward(done)
        players.observer.scored(score.reward)
        return done, score

    async def estimate(candidate: int) -> Candidate:
        samples = range(num_samples if window else 1)
        futures, scores = zip(*await asyncio.gather(*(future(candidate, s) for s in samples)), strict=True)
        rewards = [score.reward for score in scores if score.reward is not None]
        return Candidate(candidates[candidate], futures, scores, mr=fmean(rewards) if rewards else None)

    return list(await asyncio.gather(*map(estimate, range(len(candidates)))))


def as_group(context: Conversation, candidates: Sequence[Candidate]) -> Group:
    """A group of the candidates that have an MR."""
    return Group(context, tuple(candidate for candidate in candidates if candidate.mr is not None))
