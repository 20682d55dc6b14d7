"""Where simulation meets training: goals of a batch become scored groups before `training_step` sees them.

A training batch: (1) each goal is played on-policy to a drawn turn, a context, or a stored one is taken
(`sampler.contexts`); (2) `group_size` candidates answer it; (3) the future of each is played `num_samples` times, up
to `window` turns; (4) finished conversations are scored and averaged, which is MR (Eq. 1); (5) the groups are put on
the batch. `simulation/sampler.py` does (1) to (4) for one goal. A batch of validation or test goals is played as whole
conversations instead. All conversations of a batch run at once. A training batch that has its groups already
(`datamodules.conversations`) is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
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
from collab.modules.sharding import gathered, is_spread, whole_state
from collab.simulation.sampler import LostCounts, Simulation
from collab.simulation.schedule import context_turn
from collab.util.errors import RunStopped


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
        self._engine: RolloutEngine | None = None
        self._decoded = 0  # tokens so far
        self._lost = LostCounts()
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
        self._stop_if_lost(trainer, self._lost, f"forward conversations of step {self._step}")
        # A comparison takes two; what is left of a group that was never larger is all that was wanted.
        least = min(2, self.simulation.sampler.group_size)
        kept = [(group, n) for group, n in zip(groups, numbers, strict=True) if len(group.candidates) >= least]
        batch.groups = [group for group, _ in kept]
        values = group_values(batch.groups, {name: w for name, (w, _) in self.simulation.reward.metrics.items()})
        wanted = [context_turn(self.simulation.seed, n, self.simulation.turns) for _, n in kept]
        # Chats that the user kept ending before the drawn turn; see `draw_context`.
        values["earlier_contexts"] = [
            float(group.context.turn < turn) for group, turn in zip(batch.groups, wanted, strict=True)
        ]
        # Of the process that takes longest, since the update waits for it, and of all their tokens.
        seconds = over_ranks(trainer, [time.monotonic() - started], "max")[0]
        tokens = over_ranks(trainer, [float(self._decoded - before)])[0]
        values |= {"rollout_seconds": [seconds], "rollout_tokens_per_s": [tokens / seconds]}
        self._log(trainer, pl_module, "train", values)
        counts = {name: float(count - problems[name]) for name, count in self.simulation.problems.items()}
        counts |= {**asdict(self._lost), "lost_groups": float(len(groups) - len(kept))}
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
    def _speaking(self, pl_module: Any) -> Iterator[RolloutEngine]:
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
                if sharded:
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
        """Scored groups, one for each goal. `numbers` count the goals of the run, over all processes."""
        self._lost = LostCounts()
        played = (
            self.simulation.group(engine, goal, self.system_prompt, step, number, self._lost)
            for goal, number in zip(goals, numbers, strict=True)
        )
        return list(await asyncio.gather(*played))

    async def conversations(self, engine: Any, goals: Sequence[Goal], split: str, count: int) -> list[Scored]:
        return await self.simulation.conversations(engine, goals, self.system_prompt, split, count)


def _logprobs(pl_module: Any) -> LogProbs:
    """The module's own log-probs of a reply, as its update computes them."""

    def of(prompt: Sequence[int], ids: Sequence[int], temperature: float, adapter: bool) -> list[float]:
        reply = Reply("", tuple(ids), (0.0,) * len(ids), prompt_ids=tuple(prompt))
        with torch.no_grad():
            output = pl_module.policy(pack([[reply]], temperature).to(pl_module.device), reference=not adapter)
        return output.logprobs.tolist()

    return of
