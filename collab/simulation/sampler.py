"""The rollout of one goal: a context, candidate responses to it, and a scored future for each of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collab.chat.base import Sampling
from collab.chat.journal import Journal
from collab.config.schema import SamplerConfig
from collab.conversation import Conversation, Goal, Group, Scored
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, draw_context, play_goals, sample_candidates
from collab.simulation.multiturn import as_group, multiturn_reward
from collab.simulation.schedule import candidates_at, context_turn, context_turns
from collab.simulation.user import UserSimulator


@dataclass
class LostCounts:
    """Conversations that were played on this process (of a step: forward samples), and how many have no score.

    Attributes:
        futures: All that were to be played.
        invalid: Those that the simulation spoilt, or that could not be begun.
        unscored: Further ones of which some part of the reward could not be had.
    """

    futures: int = 0
    invalid: int = 0
    unscored: int = 0

    @property
    def lost(self) -> int:
        return self.invalid + self.unscored

    def count(self, scored: Iterable[Scored]) -> LostCounts:
        for conversation, score in scored:
            self.futures += 1
            self.invalid += not conversation.valid
            self.unscored += conversation.valid and score.reward is None
        return self

    def count_nothing(self, futures: int) -> None:
        """So many were never begun."""
        self.futures += futures
        self.invalid += futures


@dataclass(frozen=True)
class Simulation:
    """Everything about a conversation except the policy's weights; built from the config in `collab.app.build`.

    Attributes:
        user: Plays the user.
        reward: R* of a finished conversation.
        sampling: How the policy's replies are drawn.
        max_turns: Turns of a conversation at most.
        sampler: Window, forward samples, candidates.
        seed: Of the run.
        make_engine: (causal LM, tokenizer) -> the engine that decodes.
        decodes_here: Whether it does so with the weights in this process.
        on_conversation: Called whenever a conversation is over.
        journal: Keeps replies, so that an interrupted run need not ask for them again.
        problems: What users and judges that are language models got wrong so far, by kind.
        contexts: Stored contexts by the goal's prompt and turn; where there is none, the policy plays one.
        max_invalid: Share of a step, a validation or a row of the test that may be lost; more stops the run.
    """

    user: UserSimulator
    reward: ConversationReward
    sampling: Sampling
    max_turns: int
    sampler: SamplerConfig
    seed: int
    make_engine: Callable[[Any, Any], Any]
    on_conversation: Callable[[], None] = field(default=lambda: None)
    journal: Journal | None = None
    problems: Counter[str] = field(default_factory=Counter)
    contexts: Mapping[tuple[str, int], Conversation] = field(default_factory=dict)
    max_invalid: float = 1.0
    decodes_here: bool = True

    @property
    def turns(self) -> list[int]:
        """The turns at which contexts are drawn, each entry equally often."""
        return context_turns(self.max_turns, self.sampler.last_turns)

    @property
    def futures(self) -> int:
        """Conversations that are scored for each candidate."""
        return self.sampler.num_samples if self.sampler.window else 1

    def candidates_at(self, turn: int) -> int:
        """Candidates of a context at a turn; `equal_turns` makes them as many turns as `group_size` whole windows."""
        sampler = self.sampler
        if not sampler.equal_turns:
            return sampler.group_size
        return candidates_at(turn, self.max_turns, sampler.window, sampler.num_samples, sampler.group_size)

    def players(self, engine: Any) -> Players:
        return Players(engine, self.user, self.sampling, self.max_turns, self.on_conversation)

    async def group(
        self, engine: Any, goal: Goal, system_prompt: str, step: int, number: int, lost: LostCounts
    ) -> Group:
        """The scored candidates of one goal; without candidates where no context could be had.

        Args:
            engine: Plays the policy.
            goal: What the user wants.
            system_prompt: The assistant's instruction.
            step: Of the run, from 0.
            number: Counts the goals of the run, over all processes. It keeps apart a goal that comes twice in a step.
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
        if context.pending is None:  # the user failed each time
            lost.count_nothing(self.sampler.group_size * self.futures)
            return Group(context, ())
        size = self.candidates_at(context.turn)
        replies = await sample_candidates(players, context, size, key)
        candidates = await multiturn_reward(
            context,
            replies,
            players=players,
            reward=self.reward,
            window=self.sampler.window,
            num_samples=self.sampler.num_samples,
            key=key,
            paired=self.sampler.paired,
        )
        lost.count_nothing(self.futures * (size - len(replies)))
        for candidate in candidates:
            lost.count(zip(candidate.futures, candidate.scores, strict=True))
        return as_group(context, candidates)

    async def conversations(
        self, engine: Any, goals: Sequence[Goal], system_prompt: str, split: str, count: int
    ) -> list[Scored]:
        """Whole conversations and their R*. The draws do not depend on the step or on the policy's name."""
        key = RngKey(self.seed, split=split)
        played = await play_goals(self.players(engine), goals, system_prompt, key, count)
        scores = await asyncio.gather(*(self.reward(conversation) for conversation in played))
        return list(zip(played, scores, strict=True))
