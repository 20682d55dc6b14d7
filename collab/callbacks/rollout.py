"""Where simulation meets training: goals of a batch become scored groups before `training_step` sees them.

A training batch: (1) each goal is played on-policy to a drawn turn, a context; (2) `group_size` candidates answer it;
(3) the future of each is played `num_samples` times (on average, where they are adaptive), up to `window` turns;
(4) finished conversations are scored and averaged, which is MR (Eq. 1); (5) the groups are put on the batch. A batch of
validation or test goals is played as whole conversations instead. All conversations of a batch run at once.
A training batch that has its groups already (`datamodules.conversations`) is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning as L
import torch

from collab.chat.base import ChatModel, Sampling
from collab.chat.journal import Journal, Journalled
from collab.conversation import Goal, Group, Key, Reply, Score
from collab.datamodules.base import GoalBatch, Scored
from collab.errors import RunStopped
from collab.generation.engine import LocalEngine
from collab.generation.vllm import LogProbs, VLLMEngine
from collab.modules.packing import pack
from collab.rewards.metrics import assistant_tokens
from collab.rewards.reward import ConversationReward
from collab.simulation.allocation import candidates_at
from collab.simulation.rollout import (
    Players,
    as_group,
    draw_context,
    multiturn_reward,
    play_goals,
    sample_candidates,
)
from collab.simulation.user import UserSimulator


@dataclass(frozen=True)
class Simulation:
    """Everything about a conversation except the policy's weights; built from the config in `collab.build`.

    Attributes:
        user: Plays the user.
        reward: `R*` of a finished conversation.
        sampling: How the policy's replies are drawn.
        max_turns: Turns of a conversation at most.
        window: w of Eq. 1, in turns.
        num_samples: Forward samples per candidate, on average where they are adaptive.
        group_size: Candidates per context.
        equal_turns: More candidates where the conversation ends within the window (`candidates_at`).
        paired: Candidates of one context face the same user randomness.
        adaptive: More forward samples for candidates whose ranking is open; see `collab.simulation.allocation`.
        seed: Of the run.
        make_engine: (causal LM, tokenizer) -> the engine that decodes.
        on_conversation: Called whenever a conversation is over.
        journal: Where replies are kept, so that a run that is interrupted need not ask for them again.
        problems: What users and judges that are language models got wrong so far, as they count it.
        max_invalid: Share of what is played at a time (a step's forward conversations, a validation, a row of the
            test) that may be lost; more stops the run.
    """

    user: UserSimulator
    reward: ConversationReward
    sampling: Sampling
    max_turns: int
    window: int
    num_samples: int
    group_size: int
    equal_turns: bool
    paired: bool
    adaptive: bool
    seed: int
    make_engine: Callable[[Any, Any], LocalEngine | VLLMEngine]
    on_conversation: Callable[[], None] = field(default=lambda: None)
    journal: Journal | None = None
    problems: Counter[str] = field(default_factory=Counter)
    max_invalid: float = 1.0

    def candidates_at(self, position: int) -> int:
        """Candidates of a context at a turn; with `equal_turns`, for as many turns as `group_size` whole windows."""
        if not self.equal_turns:
            return self.group_size
        return candidates_at(position, self.max_turns, self.window, self.num_samples, self.group_size)

    def players(self, engine: Any) -> Players:
        return Players(engine, self.user, self.sampling, self.max_turns, self.on_conversation)


@dataclass
class Losses:
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

    def count(self, scored: Iterable[Scored]) -> Losses:
        for conversation, score in scored:
            self.futures += 1
            self.invalid += not conversation.valid
            self.unscored += conversation.valid and score.reward is None
        return self

    def count_nothing(self, futures: int) -> None:
        """So many were never begun."""
        self.futures += futures
        self.invalid += futures


class RolloutCallback(L.Callback):
    """Plays conversations with the policy of the module it is attached to.

    Args:
        simulation: The other side of the conversations, and the rules.
        system_prompt: The assistant's instruction.
        num_conversations: Times that each test goal is played.
        policy: Plays the assistant in place of the module's weights.
        name: Of the policy that plays test goals.

    Attributes:
        tested: Conversations of the last `trainer.test` on this process, with their scores.
    """

    def __init__(
        self,
        simulation: Simulation,
        system_prompt: str,
        num_conversations: int = 1,
        policy: ChatModel | None = None,
        name: str = "policy",
    ) -> None:
        self.simulation, self.system_prompt, self.policy = simulation, system_prompt, policy
        self.num_conversations = num_conversations
        self.name = name
        self.tested: list[Scored] = []
        self._step = 0  # of the last rollout for training, from 1
        self._engine: LocalEngine | VLLMEngine | None = None
        self._losses = Losses()

    def state_dict(self) -> dict[str, Any]:
        return {"problems": dict(self.simulation.problems)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.simulation.problems.update(state_dict["problems"])

    # --- hooks ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: GoalBatch, batch_idx: int
    ) -> None:
        if batch.groups is not None:
            return  # conversations that were played earlier
        started = time.monotonic()
        # The numbers in the run of this process's goals: Lightning deals a step's goals out to the ranks in turn.
        world, local = trainer.world_size, len(batch.goals)
        numbers = [batch_idx * world * local + i * world + trainer.global_rank for i in range(local)]
        self._step = batch_idx + 1
        before, problems = self._tokens(), Counter(self.simulation.problems)
        with self._rollout(pl_module, f"train-{self._step:06d}") as policy:
            groups = asyncio.run(self.groups(policy, batch.goals, batch_idx, numbers))
        self._stop_if_lost(trainer, self._losses, f"forward conversations of step {self._step}")
        # A comparison takes two; what is left of a group that was never larger is all that was wanted.
        least = min(2, self.simulation.group_size)
        kept = [(group, n) for group, n in zip(groups, numbers, strict=True) if len(group.candidates) >= least]
        batch.groups = [group for group, _ in kept]
        metrics = group_metrics(batch.groups, {name: w for name, (w, _) in self.simulation.reward.metrics.items()})
        wanted = [context_position(self.simulation.seed, n, self.simulation.max_turns) for _, n in kept]
        earlier = [float(g.context.position < turn) for g, turn in zip(batch.groups, wanted, strict=True)]
        seconds = time.monotonic() - started
        # Chats that the user kept ending before the drawn turn; see `draw_context`.
        metrics["earlier_contexts"] = _mean(earlier)
        metrics |= {"rollout_seconds": seconds, "rollout_tokens_per_s": (self._tokens() - before) / seconds}
        if isinstance(self._engine, VLLMEngine):
            metrics |= {"server_share": math.nan, **self._engine.checked}
        pl_module.log_dict(
            {f"train/{name}": value for name, value in metrics.items()}, batch_size=1, sync_dist=trainer.world_size > 1
        )
        counts = {name: float(count - problems[name]) for name, count in self.simulation.problems.items()}
        counts |= {**asdict(self._losses), "lost_groups": float(len(groups) - len(kept))}
        pl_module.log_dict(
            {f"train/{name}": float(value) for name, value in counts.items()},
            batch_size=1,
            sync_dist=trainer.world_size > 1,
            reduce_fx="sum",
        )

    def _stop_if_lost(self, trainer: L.Trainer, losses: Losses, what: str) -> None:
        """Stop the run, on all ranks alike, where too little of what was played could be scored.

        Raises:
            RunStopped: More than `max_invalid` of it is lost.
        """
        ours = torch.tensor([losses.lost, losses.futures], dtype=torch.float64)
        lost, futures = trainer.strategy.reduce(ours.to(trainer.strategy.root_device), reduce_op="sum").tolist()
        if lost > self.simulation.max_invalid * futures:
            told = {name: count for name, count in self.simulation.problems.items() if count}
            raise RunStopped(
                f"{lost:.0f} of the {futures:.0f} {what} have no score, more than "
                f"trainer.max_invalid={self.simulation.max_invalid} allows: {losses.invalid} invalid conversations "
                f"and {losses.unscored} without a score of {losses.futures} on this process. "
                f"Replies of users and judges that could not be taken, so far: {told or 'none'}. Take "
                "another user or judge, or set trainer.max_invalid=1 to go on regardless.",
                everywhere=True,
            )

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: GoalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        with self._rollout(pl_module, f"val-{self._step:06d}") as policy:
            batch.scored = asyncio.run(self.conversations(policy, batch.goals, "val", 1))
        self._stop_if_lost(trainer, Losses().count(batch.scored), f"validation conversations after step {self._step}")
        pl_module.log_dict(
            {f"val/{name}": value for name, value in conversation_metrics(batch.scored).items()},
            batch_size=len(batch.goals),
            sync_dist=trainer.world_size > 1,
        )

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.tested = []

    def on_test_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: GoalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        with self._rollout(pl_module, f"test-{self.name}") as policy:
            batch.scored = asyncio.run(self.conversations(policy, batch.goals, "test", self.num_conversations))
        self._stop_if_lost(trainer, Losses().count(batch.scored), f"test conversations of {self.name}")
        self.tested += batch.scored

    @contextmanager
    def _rollout(self, pl_module: Any, scope: str) -> Iterator[ChatModel]:
        """Enter and exit of a rollout: the only place besides `configure_model` that has to know of sharding.

        Yields who is to play the policy, with its replies kept in the journal if there is one.
        """
        journal = self.simulation.journal
        with contextlib.ExitStack() as stack:
            if journal is not None:
                stack.enter_context(journal.scope(scope))
            speaker = self.policy or stack.enter_context(self._speaking(pl_module))
            yield speaker if journal is None else Journalled(speaker, journal)

    def _tokens(self) -> int:
        """Tokens that the engine has decoded so far."""
        return self._engine.new_tokens if self._engine else 0

    @contextmanager
    def _speaking(self, pl_module: Any) -> Iterator[LocalEngine | VLLMEngine]:
        """The module's own weights, ready to speak; what the engine keeps of them is forgotten at the end."""
        lm = pl_module.policy.lm
        if self._engine is None or self._engine.lm is not lm:
            self._engine = self.simulation.make_engine(lm, pl_module.tokenizer)
        pl_module.policy.eval()
        try:
            if isinstance(self._engine, VLLMEngine):
                self._engine.take_up(_logprobs(pl_module), pl_module.trainer.strategy.broadcast)
            yield self._engine
        finally:
            self._engine.forget()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._leave()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> None:
        """Nobody asks the engine any more."""
        if isinstance(self._engine, VLLMEngine):
            self._engine.close()

    # --- what is played ------------------------------------------------------------------------------------------

    async def groups(self, engine: Any, goals: Sequence[Goal], step: int, numbers: Sequence[int]) -> list[Group]:
        """Scored groups, one for each goal. `numbers` count the goals of the run, over all processes.

        A group has the candidates that have MR; none where no context could be had.
        """
        self._losses = Losses()
        played = (self._group(engine, goal, step, n) for goal, n in zip(goals, numbers, strict=True))
        return list(await asyncio.gather(*played))

    async def _group(self, engine: Any, goal: Goal, step: int, number: int) -> Group:
        simulation = self.simulation
        players = simulation.players(engine)
        # `number` keeps apart a goal that comes twice in one step.
        key = Key(simulation.seed, split=f"train/{number}", round=step, goal=goal.id)
        position = context_position(simulation.seed, number, simulation.max_turns)
        context = await draw_context(players, goal, self.system_prompt, position, key.at(split=f"context/{number}"))
        if context.pending is None:  # the user failed each time
            self._losses.count_nothing(simulation.group_size * (simulation.num_samples if simulation.window else 1))
            return Group(context, ())
        size = simulation.candidates_at(context.position)
        replies = await sample_candidates(players, context, size, key)
        candidates = await multiturn_reward(
            context,
            replies,
            players=players,
            reward=simulation.reward,
            window=simulation.window,
            num_samples=simulation.num_samples,
            key=key,
            paired=simulation.paired,
            adaptive=simulation.adaptive,
        )
        each = simulation.num_samples if simulation.window else 1
        self._losses.count_nothing(each * (size - len(replies)))
        for candidate in candidates:
            self._losses.count(zip(candidate.futures, candidate.scores, strict=True))
        return as_group(context, candidates)

    async def conversations(self, engine: Any, goals: Sequence[Goal], split: str, count: int) -> list[Scored]:
        """Whole conversations and their `R*`. The draws do not depend on the step or on the policy's name."""
        players = self.simulation.players(engine)
        key = Key(self.simulation.seed, split=split)
        played = await play_goals(players, goals, self.system_prompt, key, count)
        scores = await asyncio.gather(*(self.simulation.reward(conversation) for conversation in played))
        return list(zip(played, scores, strict=True))


def context_position(seed: int, number: int, max_turns: int) -> int:
    """The turn, from 1, at which the `number`-th context of a run is drawn.

    Each run of `max_turns` contexts holds every turn once, in random order: no position is drawn more often than
    another.
    """
    cycle, place = divmod(number, max_turns)
    return int(Key(seed, role="context", round=cycle).stream().permutation(max_turns)[place]) + 1


def group_metrics(groups: Sequence[Group], weights: dict[str, float]) -> dict[str, float]:
    """What a rollout was like. `*_spread`: standard deviation of a part times its weight, mean over groups.

    Spreads tell which part of MR the comparison of candidates is made by. Missing values are left out; what nobody has
    is nan.
    """
    candidates = [candidate for group in groups for candidate in group.candidates]
    futures = [future for candidate in candidates for future in candidate.futures if future.valid]
    replies = [candidate.reply for candidate in candidates]
    spoken = [turn.reply for future in futures for turn in future.turns]
    found = {
        "mr": _mean([c.mr for c in candidates]),
        "mr_spread": _mean([_spread([c.mr for c in g.candidates]) for g in groups]),
        "assistant_tokens": _mean([float(assistant_tokens(future)) for future in futures]),
        "turns": _mean([float(len(future.turns)) for future in futures]),
        "context_turn": _mean([float(group.context.position) for group in groups]),
        "reply_tokens": _mean([float(reply.num_tokens) for reply in replies]),
        "cut_replies": _mean([float(reply.finish_reason == "length") for reply in spoken]),
        "candidates": float(len(candidates)),
    }
    for name, weight in weights.items():
        found[name] = _mean([c.part(name) for c in candidates])
        found[f"{name}_spread"] = abs(weight) * _mean([_spread([c.part(name) for c in g.candidates]) for g in groups])
    if "token_penalty" in weights:
        found["token_penalty_saturated"] = _saturated([score for c in candidates for score in c.scores])
    return found


def conversation_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Means over whole conversations: `mr` (R*), every part, tokens, turns, share of replies cut at the limit.

    Of valid ones alone; `invalid` is the share of the others, `unscored` that of the valid ones without a reward.
    With a token penalty among the parts, also the share of conversations in which it is saturated.
    """
    names = dict.fromkeys(name for _, score in scored for name in score.parts)
    invalid = [float(not conversation.valid) for conversation, _ in scored]
    scored = [(conversation, score) for conversation, score in scored if conversation.valid]
    replies = [turn.reply for conversation, _ in scored for turn in conversation.turns]
    found = {
        "invalid": _mean(invalid),
        "unscored": _mean([float(score.reward is None) for _, score in scored]),
        "mr": _mean([score.reward for _, score in scored]),
        **{name: _mean([score.parts.get(name) for _, score in scored]) for name in names},
        "assistant_tokens": _mean([float(assistant_tokens(conversation)) for conversation, _ in scored]),
        "turns": _mean([float(len(conversation.turns)) for conversation, _ in scored]),
        "cut_replies": _mean([float(reply.finish_reason == "length") for reply in replies]),
    }
    if "token_penalty" in names:
        found["token_penalty_saturated"] = _saturated([score for _, score in scored])
    return found


def _saturated(scores: Sequence[Score]) -> float:
    """Share of the token penalties that are at their limit."""
    values = [score.parts["token_penalty"] for score in scores]
    return _mean([float(value >= 1) for value in values if value is not None])


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and value == value]
    return statistics.fmean(known) if known else float("nan")


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.pstdev(known) if known else None


def _logprobs(pl_module: Any) -> LogProbs:
    """The module's own log-probs of a reply, as its update computes them."""

    def of(prompt: Sequence[int], ids: Sequence[int], temperature: float, adapter: bool) -> list[float]:
        reply = Reply("", tuple(ids), (0.0,) * len(ids), prompt_ids=tuple(prompt))
        with torch.no_grad():
            output = pl_module.policy(pack([[reply]], temperature).to(pl_module.device), reference=not adapter)
        return output.logprobs.tolist()

    return of
