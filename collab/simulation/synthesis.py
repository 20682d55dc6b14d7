"""Multiturn data from a goal by MR (CollabLLM, appendix B.1): the best candidate of each turn goes on.

At each turn several candidates answer the context, half of them under the proactive instruction. All are scored by MR
as answers to the usual context: their futures are played under the usual instruction, and it is the usual one that the
data is trained under, so what proactive prompting brings out is learned without the prompt. The best is appended, then
the first user message of its forward window, and so on to the end of the conversation.

A turn's candidates have random streams of their own (`RngKey.round` is the turn). Otherwise the winner's future of one
turn would come again among the candidates of the next, whose scores would inherit that it had won.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from collab.conversation import Candidate, Conversation, Goal
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play, sample_candidates
from collab.simulation.multiturn import multiturn_reward


@dataclass(frozen=True)
class SynthesisedTurn:
    """One turn: a context and everything that was tried as its answer.

    Attributes:
        context: The conversation so far, a user message waiting.
        candidates: All of them, scored or not; the last `num_proactive` were sampled under the proactive instruction.
        num_proactive: How many those are.
    """

    context: Conversation
    candidates: tuple[Candidate, ...]
    num_proactive: int


@dataclass(frozen=True)
class Synthesised:
    """A whole conversation; `ended_by` as in `Conversation`."""

    turns: tuple[SynthesisedTurn, ...]
    ended_by: str


async def synthesise(
    goal: Goal,
    *,
    players: Players,
    reward: ConversationReward,
    system_prompt: str,
    proactive_prompt: str,
    candidates_at: Callable[[int], int],
    window: int,
    num_samples: int,
    key: RngKey,
    paired: bool = True,
) -> Synthesised | None:
    """Play one conversation, turn by turn on the best candidate.

    Args:
        goal: What the user wants.
        players: Policy and user, and the rules.
        reward: `R*` of a finished conversation.
        system_prompt: The assistant's instruction, that of the contexts.
        proactive_prompt: That of the other half of the candidates; they are kept as answers to the usual context. Of an
            odd number the odd one is usual.
        candidates_at: Turn number -> candidates.
        window: As in `multiturn_reward`, like `num_samples` and `paired`.
        num_samples: Forward samples per candidate.
        key: Randomness of this conversation.

    Returns:
        The turns; None where at some turn no candidate could be scored, for then there is no best one to go on from,
        or the user failed.
    """
    key = key.at(goal=goal.id)
    turns: list[SynthesisedTurn] = []
    conversation = await play(players, Conversation(goal, system_prompt), key, until_context=1)
    while conversation.pending is not None:
        turn_key = key.at(round=conversation.turn)
        size = candidates_at(conversation.turn)
        replies = await sample_candidates(players, conversation, size - size // 2, turn_key)
        prompted = replace(conversation, system_prompt=proactive_prompt)
        proactive_key = turn_key.at(split=f"{key.split}/proactive")
        replies += await sample_candidates(players, prompted, size // 2, proactive_key)
        candidates = await multiturn_reward(
            conversation,
            replies,
            players=players,
            reward=reward,
            window=window,
            num_samples=num_samples,
            key=turn_key,
            paired=paired,
        )
        scored = [candidate for candidate in candidates if candidate.mr is not None]
        if not scored:
            return None
        turns.append(SynthesisedTurn(conversation, tuple(candidates), size // 2))
        best = max(scored, key=lambda candidate: candidate.mr or 0.0)
        conversation = await _go_on(players, conversation.with_reply(best.reply), best, window, turn_key)
    if not conversation.valid:
        return None
    return Synthesised(tuple(turns), conversation.ended_by)


async def _go_on(players: Players, played: Conversation, best: Candidate, window: int, key: RngKey) -> Conversation:
    """`played`, which ends with the best candidate, with the user's next message; ended where the user has none."""
    if not window:  # no future was played: the user is asked now
        return await play(players, played, key, until_context=played.turn)
    done = len(played.turns)
    futures = [future for future in best.futures if future.valid]  # at least one, or it had not been scored
    for future in futures:
        if len(future.turns) > done:
            return played.with_user(future.turns[done].user, future.user)
    return played.with_end(futures[0].ended_by)
