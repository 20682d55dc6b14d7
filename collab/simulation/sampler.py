"""The rollout of one goal: a context, candidate responses to it, and a scored future for each of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collab.chat.base import CONTEXT_FULL, Sampling
from collab.chat.journal import Journal
from collab.config.schema import SamplerConfig
from collab.conversation import Candidate, Conversation, Goal, Group, Reply, Scored
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Observer, Players, draw_context, play_goals, sample_candidates
from collab.simulation.multiturn import as_group, multiturn_reward
from collab.simulation.schedule import candidates_at, context_turn, context_turns
from collab.simulation.user import UserSimulator, invalid


@dataclass
class LostCounts:
    """Counts of this process's conversations (in a training step: forward samples) that have no score.

    Attributes:
        futures: All conversations, played or not.
        invalid: Those in which the user or the policy failed, and those that could not begin.
        unscored: Valid ones without a reward, because some metric had no value.
        context_full: Those of the invalid ones that became longer than a model reads.
    """

    futures: int = 0
    invalid: int = 0
    unscored: int = 0
    context_full: int = 0

    @property
    def lost(self) -> int:
        return self.invalid + self.unscored

    def count(self, scored: Iterable[Scored]) -> LostCounts:
        for conversation, score in scored:
            self.futures += 1
            self.invalid += not conversation.valid
            self.context_full += conversation.ended_by == invalid(CONTEXT_FULL)
            self.unscored += conversation.valid and score.reward is None
        return self

    def count_unplayed(self, futures: int, context_full: bool = False) -> None:
        self.futures += futures
        self.invalid += futures
        self.context_full += futures * context_full


@dataclass(frozen=True)
class Simulation:
    """Everything about a conversation except the policy's weights; `collab.app.build` makes it from the config.

    Attributes:
        user: Plays the user.
        reward: R* of a finished conversation.
        sampling: How the policy's replies are sampled.
        max_turns: Maximum turns of a conversation.
        sampler: Window, forward samples, candidates.
        seed: Seed of the run.
        make_engine: (causal LM, tokenizer) -> the engine that decodes.
        on_conversation: Called at the end of each conversation.
        observer: Hears what is said.
        journal: Keeps replies, so that an interrupted run need not ask for them again.
        problems: Counts unusable replies of the models that play users and judges, by kind.
        contexts: (prompt of a goal, turn) -> stored context. The policy plays the others.
        max_invalid: Share of lost conversations above which a step, a validation or a row of the test stops the run.
        decodes_here: Whether the engine decodes with the weights of this process.
    """

    user: UserSimulator
    reward: ConversationReward
    sampling: Sampling
    max_turns: int
    sampler: SamplerConfig
    seed: int
    make_engine: Callable[[Any, Any], Any]
    on_conversation: Callable[[], None] = field(default=lambda: None)
    observer: Observer = field(default_factory=Observer)
    journal: Journal | None = None
    problems: Counter[str] = field(default_factory=Counter)
    contexts: Mapping[tuple[str, int], Conversation] = field(default_factory=dict)
    max_invalid: float = 1.0
    decodes_here: bool = True

    @property
    def turns(self) -> list[int]:
        """As `context_turns`."""
        return context_turns(self.max_turns, self.sampler.last_turns)

    @property
    def futures(self) -> int:
        """Conversations that are scored for each candidate."""
        return self.sampler.num_samples if self.sampler.window else 1

    def candidates_at(self, turn: int) -> int:
        """As `schedule.candidates_at`."""
        return candidates_at(self.sampler, self.max_turns, turn)

    def players(self, engine: Any) -> Players:
        return Players(engine, self.user, self.sampling, self.max_turns, self.on_conversation, self.observer)

    async def scored(
        self, players: Players, context: Conversation, replies: Sequence[Reply], key: RngKey
    ) -> list[Candidate]:
        """As `multiturn_reward`, with this simulation's reward and settings."""
        return await multiturn_reward(
            context,
            replies,
            players=players,
            reward=self.reward,
            window=self.sampler.window,
            num_samples=self.sampler.num_samples,
            key=key,
            paired=self.sampler.paired,
        )

    async def group(
        self, engine: Any, goal: Goal, system_prompt: str, step: int, number: int, lost: LostCounts
    ) -> Group:
        """The scored candidates of one goal; no candidates if no context could be played, or if it is too long.

        Args:
            engine: Plays the policy.
            goal: What the user wants.
            system_prompt: The assistant's instruction.
            step: Step of the run, from 0.
            number: Number of the goal in the run, over all processes. It tells a goal that comes twice in a step apart.
            lost: Counts what has no score.
        """
        players = self.players(engine)
        key = RngKey(self.seed, split=f"train/{number}", round=step, goal=goal.id)
        turn = context_turn(self.seed, number, self.turns)
        stored = self.contexts.get((goal.prompt, turn))
        if stored is not None:
            context = replace(stored, goal=goal)
        else:
            context = await draw_context(players, goal, system_prompt, turn, key.at(split=f"context/{number}"))
        if context.pending is None:  # user or policy failed each time
            full = context.ended_by == invalid(CONTEXT_FULL)
            lost.count_unplayed(self.candidates_at(turn) * self.futures, full)
            self.observer.valued(key, "MR", None)
            return Group(context, ())
        size = self.candidates_at(context.turn)
        replies = await sample_candidates(players, context, size, key)
        if replies is None:
            lost.count_unplayed(self.futures * size, context_full=True)
            self.observer.valued(key, "MR", None)
            return Group(context, ())
        candidates = await self.scored(players, context, replies, key)
        self.observer.valued(key, "MR", candidates[0].mr if candidates else None)
        lost.count_unplayed(self.futures * (size - len(replies)))
        for candidate in candidates:
            lost.count(zip(candidate.futures, candidate.scores, strict=True))
        return replace(as_group(context, candidates), number=number)

    async def conversations(
        self, engine: Any, goals: Sequence[Goal], system_prompt: str, split: str, count: int
    ) -> list[Scored]:
        """Whole conversations and their R*. The draws depend on neither the step nor the policy's name."""
        key = RngKey(self.seed, split=split)
        played = await play_goals(self.players(engine), goals, system_prompt, key, count)
        scores = await asyncio.gather(*(self.reward(conversation) for conversation in played))
        for i, (conversation, score) in enumerate(zip(played, scores, strict=True)):
            if i % count == 0:  # the first conversation of a goal
                self.observer.valued(key.at(goal=conversation.goal.id), "R*", score.reward)
        return list(zip(played, scores, strict=True))
