"""Where simulation meets training: goals of a batch become scored groups before `training_step` sees them.

A training batch: (1) each goal is played on-policy to a drawn turn, a context, or a stored one is taken
(`sampler.contexts`); (2) `group_size` candidates answer it; (3) the future of each is played `num_samples` times, up
to `window` turns; (4) finished conversations are scored and averaged, which is MR
(Eq. 1); (5) the groups are put on the batch. A batch of validation or test goals is played as whole conversations
instead. All conversations of a batch run at once. A training batch that has its groups already
(`datamodules.conversations`) is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import lightning as L
import torch

from collab.chat.base import ChatModel, Sampling
from collab.chat.journal import Journal, Journalled
from collab.conversation import Conversation, Goal, Group, Reply, Score
from collab.datamodules.base import GoalBatch, Scored
from collab.generation.engine import LocalEngine
from collab.generation.vllm import LogProbs, VLLMEngine
from collab.modules.base import over_ranks
from collab.modules.packing import pack
from collab.modules.sharding import gathered, is_spread, whole_state
from collab.parsing.agenda_state import distinct_questions
from collab.randomness import RngKey
from collab.rewards.metrics import assistant_tokens
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, draw_context, play_goals, sample_candidates
from collab.simulation.multiturn import as_group, multiturn_reward
from collab.simulation.schedule import candidates_at, context_turns
from collab.simulation.user import UserSimulator
from collab.util.errors import RunStopped


@dataclass(frozen=True)
class Simulation:
    """Everything about a conversation except the policy's weights; built from the config in `collab.app.build`.

    Attributes:
        user: Plays the user.
        reward: `R*` of a finished conversation.
        sampling: How the policy's replies are drawn.
        max_turns: Turns of a conversation at most.
        window: w of Eq. 1, in turns.
        num_samples: Forward samples per candidate.
        group_size: Candidates per context.
        equal_turns: More candidates where the conversation ends within the window (`candidates_at`).
        paired: Candidates of one context face the same user randomness.
        seed: Of the run.
        make_engine: (causal LM, tokenizer) -> the engine that decodes.
        decodes_here: Whether it does so with the weights in this process.
        on_conversation: Called whenever a conversation is over.
        journal: Where replies are kept, so that a run that is interrupted need not ask for them again.
        problems: What users and judges that are language models got wrong so far, as they count it.
        last_turns: Contexts at the last turn, for each one at any other turn.
        contexts: Stored contexts by the goal's prompt and turn; where there is none, the policy plays one.
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
    seed: int
    make_engine: Callable[[Any, Any], LocalEngine | VLLMEngine]
    on_conversation: Callable[[], None] = field(default=lambda: None)
    journal: Journal | None = None
    problems: Counter[str] = field(default_factory=Counter)
    last_turns: int = 1
    contexts: Mapping[tuple[str, int], Conversation] = field(default_factory=dict)
    max_invalid: float = 1.0
    decodes_here: bool = True

    @property
    def turns(self) -> list[int]:
        """At which contexts are drawn, each entry as often."""
        return context_turns(self.max_turns, self.last_turns)

    def candidates_at(self, position: int) -> int:
        """Candidates of a context at a turn; with `equal_turns`, for as many turns as `group_size` whole windows."""
        if not self.equal_turns:
            return self.group_size
        return candidates_at(position, self.max_turns, self.window, self.num_samples, self.group_size)

    def players(self, engine: Any) -> Players:
        return Players(engine, self.user, self.sampling, self.max_turns, self.on_conversation)


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
        self._decoded = 0  # tokens so far
        self._losses = LostCounts()
        self._validated: list[Scored] = []  # conversations of the validation that is going on

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
        before, problems = self._decoded, Counter(self.simulation.problems)
        with self._rollout(pl_module, f"train-{self._step:06d}") as policy:
            groups = asyncio.run(self.groups(policy, batch.goals, batch_idx, numbers))
        self._stop_if_lost(trainer, self._losses, f"forward conversations of step {self._step}")
        # A comparison takes two; what is left of a group that was never larger is all that was wanted.
        least = min(2, self.simulation.group_size)
        kept = [(group, n) for group, n in zip(groups, numbers, strict=True) if len(group.candidates) >= least]
        batch.groups = [group for group, _ in kept]
        values = group_values(batch.groups, {name: w for name, (w, _) in self.simulation.reward.metrics.items()})
        wanted = [context_position(self.simulation.seed, n, self.simulation.turns) for _, n in kept]
        # Chats that the user kept ending before the drawn turn; see `draw_context`.
        values["earlier_contexts"] = [
            float(group.context.turn < turn) for group, turn in zip(batch.groups, wanted, strict=True)
        ]
        # Of the process that takes longest, since the update waits for it, and of all their tokens.
        seconds = over_ranks(trainer, [time.monotonic() - started], "max")[0]
        tokens = over_ranks(trainer, [float(self._decoded - before)])[0]
        values |= {"rollout_seconds": [seconds], "rollout_tokens_per_s": [tokens / seconds]}
        if isinstance(self._engine, VLLMEngine):
            values |= {name: [value] for name, value in self._engine.checked.items()}
        self._log(trainer, pl_module, "train", values)
        counts = {name: float(count - problems[name]) for name, count in self.simulation.problems.items()}
        counts |= {**asdict(self._losses), "lost_groups": float(len(groups) - len(kept))}
        counts["candidates"] = float(sum(len(group.candidates) for group in batch.groups))
        pl_module.log_dict(
            {f"train/{name}": float(value) for name, value in counts.items()},
            batch_size=1,
            sync_dist=trainer.world_size > 1,
            reduce_fx="sum",
        )

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str, values: Values) -> None:
        """Log the mean of each metric over all processes."""
        found = means(values, lambda sums: over_ranks(trainer, sums))
        # They are the same on all processes, which Lightning wants to be told.
        together = trainer.world_size > 1
        pl_module.log_dict({f"{prefix}/{name}": x for name, x in found.items()}, batch_size=1, sync_dist=together)

    def _stop_if_lost(self, trainer: L.Trainer, losses: LostCounts, what: str) -> None:
        """Stop the run, on all ranks alike, where too little of what was played could be scored.

        Raises:
            RunStopped: More than `max_invalid` of it is lost.
        """
        lost, futures = over_ranks(trainer, [losses.lost, losses.futures])
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
        self._stop_if_lost(
            trainer, LostCounts().count(batch.scored), f"validation conversations after step {self._step}"
        )
        # Lightning fills the processes' shares up with goals that others have: they are played, and count once.
        loader: Any = trainer.val_dataloaders
        ours = (len(loader.dataset) - trainer.global_rank - 1) // trainer.world_size + 1
        batch.scored = batch.scored[: ours - len(self._validated)]
        self._validated += batch.scored

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = self.simulation.reward.metrics
        self._log(trainer, pl_module, "val", conversation_values(self._validated, names))

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
        self._stop_if_lost(trainer, LostCounts().count(batch.scored), f"test conversations of {self.name}")
        self.tested += batch.scored

    @contextmanager
    def _rollout(self, pl_module: Any, scope: str) -> Iterator[ChatModel]:
        """Enter and exit of a rollout.

        Yields who is to play the policy, with its replies kept in the journal if there is one.
        """
        journal = self.simulation.journal
        with contextlib.ExitStack() as stack:
            if journal is not None:
                stack.enter_context(journal.scope(scope))
            speaker = self.policy or stack.enter_context(self._speaking(pl_module))
            yield speaker if journal is None else Journalled(speaker, journal)

    @contextmanager
    def _speaking(self, pl_module: Any) -> Iterator[LocalEngine | VLLMEngine]:
        """The module's own weights, ready to speak; what the engine keeps of them is forgotten at the end."""
        lm = pl_module.policy.lm
        pl_module.policy.eval()
        # A server needs no weights of this process, which may stay in shards.
        with gathered(pl_module.policy) if self.simulation.decodes_here else contextlib.nullcontext(False) as sharded:
            if self._engine is None or self._engine.lm is not lm:
                self._engine = self.simulation.make_engine(lm, pl_module.tokenizer)
            engine, before = self._engine, self._engine.new_tokens
            try:
                if isinstance(engine, VLLMEngine):
                    spread = is_spread(pl_module.policy) and hasattr(lm, "disable_adapter")
                    state = whole_state(lm, only_trained=True) if spread else None
                    engine.sync_weights(_logprobs(pl_module), pl_module.trainer.strategy.broadcast, state)
                    if is_spread(pl_module.policy):
                        pl_module.policy.reshard()  # what its last forward has left gathered
                yield engine
            finally:
                self._decoded += engine.new_tokens - before
                if sharded and isinstance(engine, LocalEngine):
                    engine.clear_cache(weights=True)
                    self._engine = None
                else:
                    engine.clear_cache()

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
        self._losses = LostCounts()
        played = (self._group(engine, goal, step, n) for goal, n in zip(goals, numbers, strict=True))
        return list(await asyncio.gather(*played))

    async def _group(self, engine: Any, goal: Goal, step: int, number: int) -> Group:
        simulation = self.simulation
        players = simulation.players(engine)
        # `number` keeps apart a goal that comes twice in one step.
        key = RngKey(simulation.seed, split=f"train/{number}", round=step, goal=goal.id)
        position = context_position(simulation.seed, number, simulation.turns)
        stored = simulation.contexts.get((goal.prompt, position))
        if stored is not None:
            context = replace(stored, goal=goal)
        else:
            draws = key.at(split=f"context/{number}")
            context = await draw_context(players, goal, self.system_prompt, position, draws)
        if context.pending is None:  # the user failed each time
            self._losses.count_nothing(simulation.group_size * (simulation.num_samples if simulation.window else 1))
            return Group(context, ())
        size = simulation.candidates_at(context.turn)
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
        )
        each = simulation.num_samples if simulation.window else 1
        self._losses.count_nothing(each * (size - len(replies)))
        for candidate in candidates:
            self._losses.count(zip(candidate.futures, candidate.scores, strict=True))
        return as_group(context, candidates)

    async def conversations(self, engine: Any, goals: Sequence[Goal], split: str, count: int) -> list[Scored]:
        """Whole conversations and their `R*`. The draws do not depend on the step or on the policy's name."""
        players = self.simulation.players(engine)
        key = RngKey(self.simulation.seed, split=split)
        played = await play_goals(players, goals, self.system_prompt, key, count)
        scores = await asyncio.gather(*(self.simulation.reward(conversation) for conversation in played))
        return list(zip(played, scores, strict=True))


def context_position(seed: int, number: int, turns: Sequence[int]) -> int:
    """The turn, from 1, at which the `number`-th context of a run is drawn.

    Each run of as many contexts as `turns` has entries holds every entry once, in random order.
    """
    cycle, place = divmod(number, len(turns))
    return turns[int(RngKey(seed, role="context", round=cycle).stream().permutation(len(turns))[place])]


Values = dict[str, list[float | None]]  # metric -> what its mean is over; None where it could not be had


def means(values: Values, sum_up: Callable[[list[float]], list[float]] = lambda sums: sums) -> dict[str, float]:
    """The mean of each list; missing values are left out, and what nobody has is nan.

    Args:
        values: Metric -> values of this process.
        sum_up: Adds numbers up over all processes, which have to have the same metrics.
    """
    known = [[value for value in listed if value is not None and value == value] for listed in values.values()]
    totals = iter(sum_up([number for listed in known for number in (math.fsum(listed), float(len(listed)))]))
    pairs = zip(values, totals, totals, strict=True)
    return {name: total / count if count else math.nan for name, total, count in pairs}


def group_values(groups: Sequence[Group], weights: dict[str, float]) -> Values:
    """What a rollout was like. `*_spread`: of each group, standard deviation of a part times its weight.

    Spreads tell which part of MR the comparison of candidates is made by.
    """
    candidates = [candidate for group in groups for candidate in group.candidates]
    futures = [future for candidate in candidates for future in candidate.futures if future.valid]
    spoken = [turn.reply for future in futures for turn in future.turns]
    found: Values = {
        "mr": [c.mr for c in candidates],
        "mr_spread": [_spread([c.mr for c in g.candidates]) for g in groups],
        "assistant_tokens": [float(assistant_tokens(future)) for future in futures],
        "turns": [float(len(future.turns)) for future in futures],
        "context_turn": [float(group.context.turn) for group in groups],
        "reply_tokens": [float(candidate.reply.num_tokens) for candidate in candidates],
        "cut_replies": [float(reply.finish_reason == "length") for reply in spoken],
    }
    found["distinct_questions"] = distinct_questions(futures)
    for name, weight in weights.items():
        found[name] = [c.part(name) for c in candidates]
        if weight:
            found[f"{name}_spread"] = [_spread([c.part(name) for c in g.candidates], abs(weight)) for g in groups]
    if "token_penalty" in weights:
        found["token_penalty_saturated"] = _saturated([score for c in candidates for score in c.scores])
    return found


def conversation_values(scored: Sequence[Scored], names: Iterable[str]) -> Values:
    """Of whole conversations: `mr` (R*), the parts `names`, tokens, turns, whether replies are cut at the limit.

    Of valid ones alone; `invalid` tells the others, `unscored` the valid ones without a reward. With a token penalty
    among the parts, also whether it is saturated.
    """
    names = list(names)
    invalid: list[float | None] = [float(not conversation.valid) for conversation, _ in scored]
    scored = [(conversation, score) for conversation, score in scored if conversation.valid]
    replies = [turn.reply for conversation, _ in scored for turn in conversation.turns]
    found: Values = {
        "invalid": invalid,
        "unscored": [float(score.reward is None) for _, score in scored],
        "mr": [score.reward for _, score in scored],
        **{name: [score.parts.get(name) for _, score in scored] for name in names},
        "distinct_questions": distinct_questions([conversation for conversation, _ in scored]),
        "assistant_tokens": [float(assistant_tokens(conversation)) for conversation, _ in scored],
        "turns": [float(len(conversation.turns)) for conversation, _ in scored],
        "cut_replies": [float(reply.finish_reason == "length") for reply in replies],
    }
    if "token_penalty" in names:
        found["token_penalty_saturated"] = _saturated([score for _, score in scored])
    return found


def conversation_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Means of `conversation_values`, of all parts that the scores have."""
    return means(conversation_values(scored, dict.fromkeys(name for _, score in scored for name in score.parts)))


def _saturated(scores: Sequence[Score]) -> list[float | None]:
    """Whether each token penalty is at its limit."""
    values = [score.parts["token_penalty"] for score in scores]
    return [None if value is None else float(value >= 1) for value in values]


def _spread(values: Sequence[float | None], weight: float = 1.0) -> float | None:
    known = [value for value in values if value is not None]
    return weight * statistics.pstdev(known) if known else None


def _logprobs(pl_module: Any) -> LogProbs:
    """The module's own log-probs of a reply, as its update computes them."""

    def of(prompt: Sequence[int], ids: Sequence[int], temperature: float, adapter: bool) -> list[float]:
        reply = Reply("", tuple(ids), (0.0,) * len(ids), prompt_ids=tuple(prompt))
        with torch.no_grad():
            output = pl_module.policy(pack([[reply]], temperature).to(pl_module.device), reference=not adapter)
        return output.logprobs.tolist()

    return of
