"""Where simulation meets training: goals of a batch become scored groups before `training_step` sees them.

For each goal of a training batch: (1) the policy plays up to a drawn turn, which gives a context, unless one is stored
(`sampler.contexts`); (2) it samples `group_size` candidates; (3) the future of each is played `num_samples` times, for
up to `window` turns; (4) finished conversations are scored, and their mean is MR (Eq. 1); (5) the group is put on the
batch. `simulation/sampler.py` does (1) to (4). Validation and test goals are played as whole conversations. All
conversations of a batch run at once. A training batch that has groups already (`datamodules.conversations`) is left as
it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning as L
import torch

from collab.callbacks.rollout_metrics import Values, conversation_values, group_values, means
from collab.chat.base import ChatModel
from collab.chat.journal import Journalled
from collab.conversation import Goal, Group, Reply, Scored
from collab.datamodules.base import GoalBatch
from collab.generation.base import RolloutEngine
from collab.generation.vllm import LogProbs, VLLMEngine
from collab.modules.base import over_ranks
from collab.modules.packing import pack
from collab.modules.policy import Policy
from collab.modules.sharding import gathered, is_spread, whole_state
from collab.simulation.sampler import LostCounts, Simulation
from collab.simulation.schedule import context_turn
from collab.util.errors import RunStopped


@dataclass(frozen=True)
class Rollout:
    """What was played for a training step on this process.

    Attributes:
        groups: One for each goal.
        lost: Conversations without a score.
        problems: Unusable replies, by kind.
        tokens: That the policy decoded.
        seconds: That it took.
        logged: More to log: name -> value.
    """

    groups: list[Group]
    lost: LostCounts
    problems: Mapping[str, int]
    tokens: int
    seconds: float
    logged: Mapping[str, float] = field(default_factory=dict)


class RolloutCallback(L.Callback):
    """Plays conversations with the policy of the module that is trained or tested.

    Args:
        simulation: The user, the reward and the rules.
        system_prompt: The assistant's instruction.
        num_conversations: Conversations per test goal.
        policy: Plays the assistant instead of the module's weights.
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
        self.simulation, self.system_prompt = simulation, system_prompt
        self.num_conversations, self.policy, self.name = num_conversations, policy, name
        self.tested: list[Scored] = []
        self._step = 0  # of the last rollout for training, from 1
        self._engine: RolloutEngine | None = None
        self._tokens = 0  # decoded in the last rollout
        self._ended = 0.0  # when the last rollout for training ended
        self._logged: Mapping[str, float] = {}  # of its engine
        self._validated: list[Scored] = []  # conversations of the current validation

    def state_dict(self) -> dict[str, Any]:
        return {"problems": dict(self.simulation.problems)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.simulation.problems.update(state_dict["problems"])

    # --- training ------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: GoalBatch, batch_idx: int
    ) -> None:
        if batch.groups is not None:
            return  # stored conversations
        self._step = batch_idx + 1
        rollout = self._rollout(trainer, pl_module, batch.goals, batch_idx)
        groups, numbers = rollout.groups, numbers_of(trainer, batch_idx, len(batch.goals))
        self._stop_if_lost(trainer, rollout.lost, f"forward conversations of step {self._step}")
        # A group needs two candidates to compare, or one if group_size is 1.
        least = min(2, self.simulation.sampler.group_size)
        kept = [(group, n) for group, n in zip(groups, numbers, strict=True) if len(group.candidates) >= least]
        batch.groups = [group for group, _ in kept]
        values = group_values(batch.groups, {name: w for name, (w, _) in self.simulation.reward.metrics.items()})
        drawn = [context_turn(self.simulation.seed, n, self.simulation.turns) for _, n in kept]
        # The user ended the chat before the drawn turn; see `draw_context`.
        values["earlier_contexts"] = [
            float(group.context.turn < turn) for group, turn in zip(batch.groups, drawn, strict=True)
        ]
        # The update waits for the slowest process.
        seconds = over_ranks(trainer, [rollout.seconds], "max")[0]
        tokens = over_ranks(trainer, [float(rollout.tokens)])[0]
        values |= {"rollout_seconds": [seconds], "rollout_tokens_per_s": [tokens / seconds]}
        values |= {name: [value] for name, value in rollout.logged.items()}
        self._log(trainer, pl_module, "train", values)
        counts = {**rollout.problems, **asdict(rollout.lost), "lost_groups": len(groups) - len(kept)}
        counts["candidates"] = sum(len(group.candidates) for group in batch.groups)
        pl_module.log_dict(
            {f"train/{name}": float(value) for name, value in counts.items()},
            batch_size=1,
            sync_dist=trainer.world_size > 1,
            reduce_fx="sum",
        )
        self._ended = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: GoalBatch, batch_idx: int
    ) -> None:
        if self._step == batch_idx + 1:  # not for stored conversations
            seconds = over_ranks(trainer, [time.monotonic() - self._ended], "max")
            self._log(trainer, pl_module, "train", {"update_seconds": [*seconds]})

    def _rollout(self, trainer: L.Trainer, pl_module: L.LightningModule, goals: Sequence[Goal], step: int) -> Rollout:
        """Play the goals of a step, from 0."""
        started = time.monotonic()
        lost, problems = LostCounts(), Counter(self.simulation.problems)
        with self._speaker(pl_module, f"train-{step + 1:06d}") as policy:
            numbers = numbers_of(trainer, step, len(goals))
            groups = asyncio.run(self.groups(policy, goals, step, numbers, lost))
        new = difference(self.simulation.problems, problems)
        return Rollout(groups, lost, new, self._tokens, time.monotonic() - started, self._logged)

    async def groups(
        self, engine: Any, goals: Sequence[Goal], step: int, numbers: Sequence[int], lost: LostCounts | None = None
    ) -> list[Group]:
        """Scored groups, one for each goal.

        Args:
            engine: Plays the policy.
            goals: Of this process.
            step: Step of the run, from 0.
            numbers: Of the goals in the run, over all processes.
            lost: Counts what has no score.
        """
        lost = LostCounts() if lost is None else lost
        played = (
            self.simulation.group(engine, goal, self.system_prompt, step, number, lost)
            for goal, number in zip(goals, numbers, strict=True)
        )
        return list(await asyncio.gather(*played))

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str, values: Values) -> None:
        """Log the mean of each metric over all processes."""
        metrics = means(values, lambda sums: over_ranks(trainer, sums))
        # `means` is the same on all processes. `sync_dist` only keeps Lightning from warning.
        several = trainer.world_size > 1
        pl_module.log_dict({f"{prefix}/{name}": x for name, x in metrics.items()}, batch_size=1, sync_dist=several)

    def _stop_if_lost(self, trainer: L.Trainer, counts: LostCounts, what: str) -> None:
        """Stop the run on all ranks if too many conversations have no score.

        Raises:
            RunStopped: More than the share `max_invalid` is lost.
        """
        lost, futures = over_ranks(trainer, [counts.lost, counts.futures])
        if lost > self.simulation.max_invalid * futures:
            problems = {name: count for name, count in self.simulation.problems.items() if count}
            raise RunStopped(
                f"{lost:.0f} of the {futures:.0f} {what} have no score, more than "
                f"trainer.max_invalid={self.simulation.max_invalid} allows. Of the {counts.futures} on this process, "
                f"{counts.invalid} are invalid ({counts.context_full} too long for a model) and {counts.unscored} lack "
                f"a part of the reward. Unusable replies of users and judges so far: {problems or 'none'}. Use another "
                "user or judge, or set trainer.max_invalid=1 to continue anyway.",
                everywhere=True,
            )

    # --- validation and test -------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = []

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: GoalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batch.scored = self._conversations(pl_module, f"val-{self._step:06d}", batch.goals, "val", 1)
        what = f"validation conversations after step {self._step}"
        self._stop_if_lost(trainer, LostCounts().count(batch.scored), what)
        self._validated += batch.scored

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = conversation_values(self._validated, self.simulation.reward.metrics)
        self._log(trainer, pl_module, "val", values)

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
        count = self.num_conversations
        batch.scored = self._conversations(pl_module, f"test-{self.name}", batch.goals, "test", count)
        self._stop_if_lost(trainer, LostCounts().count(batch.scored), f"test conversations of {self.name}")
        self.tested += batch.scored

    def _conversations(self, pl_module: Any, scope: str, goals: Sequence[Goal], split: str, count: int) -> list[Scored]:
        with self._speaker(pl_module, scope) as policy:
            return asyncio.run(self.simulation.conversations(policy, goals, self.system_prompt, split, count))

    # --- who speaks ----------------------------------------------------------------------------------------------

    @contextmanager
    def _speaker(self, pl_module: Any, scope: str) -> Iterator[ChatModel]:
        """The model that plays the policy; the journal, if there is one, keeps its replies under `scope`."""
        journal = self.simulation.journal
        with contextlib.ExitStack() as stack:
            if journal is not None:
                stack.enter_context(journal.scope(scope))
            speaker = self.policy or stack.enter_context(self._own_weights(pl_module))
            yield speaker if journal is None else Journalled(speaker, journal)

    @contextmanager
    def _own_weights(self, pl_module: Any) -> Iterator[RolloutEngine]:
        """An engine with the module's current weights. What it keeps of them is dropped at the end."""
        lm = pl_module.policy.lm
        pl_module.policy.eval()
        # A server needs no weights of this process, which may stay in shards.
        with gathered(pl_module.policy) if self.simulation.decodes_here else contextlib.nullcontext(False) as sharded:
            if self._engine is None or self._engine.lm is not lm:
                self._engine = self.simulation.make_engine(lm, pl_module.tokenizer)
            engine, before = self._engine, self._engine.new_tokens
            try:
                if isinstance(engine, VLLMEngine):
                    _sync_weights(engine, pl_module)
                yield engine
            finally:
                self._tokens = engine.new_tokens - before
                self._logged = engine.logged() if isinstance(engine, VLLMEngine) else {}
                if sharded:
                    engine.clear_cache(weights=True)
                    self._engine = None
                else:
                    engine.clear_cache()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(self._engine, VLLMEngine):
            self._engine.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "exception")


def numbers_of(trainer: L.Trainer, step: int, local: int) -> list[int]:
    """Numbers in the run of this process's `local` goals of a step, from 0: Lightning deals goals to ranks in turn."""
    world = trainer.world_size
    return [step * world * local + i * world + trainer.global_rank for i in range(local)]


def difference(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """What has been counted since `before`."""
    return {name: count - before.get(name, 0) for name, count in now.items()}


def _sync_weights(engine: VLLMEngine, pl_module: Any) -> None:
    policy, lm = pl_module.policy, pl_module.policy.lm
    spread = is_spread(policy)
    state = whole_state(lm, only_trained=True) if spread and hasattr(lm, "disable_adapter") else None
    engine.sync_weights(policy_logprobs(policy, pl_module.device), pl_module.trainer.strategy.broadcast, state)
    if spread:
        policy.reshard()  # the last forward has left weights gathered


def policy_logprobs(policy: Policy, device: torch.device) -> LogProbs:
    """The policy's own log-probs of a reply, as its update computes them."""

    def logprobs(prompt: Sequence[int], ids: Sequence[int], temperature: float, adapter: bool) -> list[float]:
        reply = Reply("", tuple(ids), (0.0,) * len(ids), prompt_ids=tuple(prompt))
        with torch.no_grad():
            output = policy(pack([[reply]], temperature).to(device), reference=not adapter)
        return output.logprobs.tolist()

    return logprobs
