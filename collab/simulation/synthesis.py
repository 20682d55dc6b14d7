"""Multiturn data from a goal by MR (CollabLLM, appendix B.1): the best candidate of each turn goes on.

At each turn several candidates answer the context, half of them under the proactive instruction. MR scores all of them
as answers to the usual context: the usual instruction is in their futures and in the training data, so a policy learns
what proactive prompting brings out without the prompt. The best candidate is appended, then the first user message of
its forward window, and so on to the end of the conversation.

The candidates of each turn have random streams of their own (`RngKey.round` is the turn). Otherwise the winner's future
would return among the candidates of the next turn, and bias their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from collab.chat.base import CONTEXT_FULL
from collab.conversation import Candidate, Conversation, Goal
from collab.randomness import RngKey
from collab.simulation.conversation_loop import play, sample_candidates
from collab.simulation.multiturn import as_group
from collab.simulation.sampler import Simulation
from collab.simulation.user import invalid


class SynthesisedTurn(NamedTuple):
    """One turn: a context and all candidates for its answer.

    Attributes:
        context: The conversation so far, with a pending user message.
        candidates: All of them, scored or not.
        num_proactive: Number of candidates, at the end, that were sampled under the proactive instruction.
    """

    context: Conversation
    candidates: Sequence[Candidate]
    num_proactive: int


@dataclass(frozen=True)
class Synthesised:
    """A whole conversation; `ended_by` as in `Conversation`, or "context_full" behind its last scored turn."""

    turns: tuple[SynthesisedTurn, ...]
    ended_by: str


async def synthesise(
    simulation: Simulation, engine: Any, goal: Goal, *, system_prompt: str, proactive_prompt: str, key: RngKey
) -> Synthesised | None:
    """Play one conversation, turn by turn on the best candidate.

    Args:
        simulation: User, reward and settings.
        engine: Plays the policy.
        goal: What the user wants.
        system_prompt: The assistant's usual instruction.
        proactive_prompt: The instruction of half of the candidates, rounded down.
        key: Randomness of this conversation.

    Returns:
        The turns; None if the user failed, or if at some turn no candidate could be scored.
    """
    players, key = simulation.players(engine), key.at(goal=goal.id)
    turns: list[SynthesisedTurn] = []
    conversation = await play(players, Conversation(goal, system_prompt), key, until_context=1)
    while conversation.pending is not None:
        turn_key = key.at(round=conversation.turn)
        size = simulation.candidates_at(conversation.turn)
        prompted = replace(conversation, system_prompt=proactive_prompt)
        proactive_key = turn_key.at(split=f"{key.split}/proactive")
        usual = await sample_candidates(players, conversation, size - size // 2, turn_key)
        proactive = await sample_candidates(players, prompted, size // 2, proactive_key) or []
        candidates = await simulation.scored(players, conversation, [*(usual or []), *proactive], turn_key)
        scored = as_group(conversation, candidates).candidates
        if not scored:
            ends = {future.ended_by for candidate in candidates for future in candidate.futures}
            too_long = usual is None or ends == {invalid(CONTEXT_FULL)}
            return Synthesised(tuple(turns), CONTEXT_FULL) if turns and too_long else None
        turns.append(SynthesisedTurn(conversation, candidates, len(proactive)))
        best = max(scored, key=lambda candidate: candidate.mr or 0.0)
        answered = conversation.with_reply(best.reply)
        if simulation.sampler.window:
            conversation = _follow(answered, best)
        else:  # no future was played, so the user is asked now
            conversation = await play(players, answered, turn_key, until_context=answered.turn)
    return Synthesised(tuple(turns), conversation.ended_by) if conversation.valid else None


def _follow(answered: Conversation, best: Candidate) -> Conversation:
    """Append the user's next message in a future of the best candidate, or end where all futures do."""
    done = len(answered.turns)
    futures = [future for future in best.futures if future.valid]  # at least one, since it was scored
    for future in futures:
        if len(future.turns) > done:
            following = future.turns[done]
            return replace(answered, state=following.state).with_user(following.user, future.user)
    return answered.with_end(futures[0].ended_by)
