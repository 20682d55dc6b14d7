"""Rollouts of the next steps during the update (`rollout.max_staleness`).

With k = `max_staleness`, the groups of step t, from 0, are played by the policy of version max(0, t - k), where version
v has learned from v rollouts. At the start of step t the groups of step t + k begin, with a frozen copy of the policy
as it is now. A thread plays them on an event loop of its own, while the main thread waits for the groups of step t and
updates the policy with them. So there are k + 1 copies at most.

Which version plays a step depends on k alone, not on how fast users or threads are. So runs repeat as they do without
overlap. It is the schedule of prime-rl; TRL and AReaL bound the age too, but a step takes whatever is ready first. A
checkpoint has the trained weights of the copies that play, and a resumed run goes on with them.

The thread runs no collective operation: logging, and the count of lost conversations over all processes, stay in the
main thread. All conversations of a training, validations too, are played in the thread, since an engine serves one
event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import lightning as L
import torch

from collab.callbacks.rollout import Rollout, RolloutCallback, difference, numbers_of
from collab.chat.base import ChatModel
from collab.chat.journal import Journalled
from collab.conversation import Goal, Scored
from collab.generation.engine import LocalEngine
from collab.simulation.sampler import LostCounts, Simulation

T = TypeVar("T")


class FrozenPolicy:
    """A copy of a policy for an engine of its own. Its trained weights change by `load` alone; frozen ones are shared.

    Args:
        lm: The causal LM that is trained.
        simulation: Makes the engine.
        tokenizer: Of the model.
    """

    def __init__(self, lm: Any, simulation: Simulation, tokenizer: Any) -> None:
        shared = [*(p for p in lm.parameters() if not p.requires_grad), *lm.buffers()]
        self._lm = copy.deepcopy(lm, {id(tensor): tensor for tensor in shared}).eval()
        self.engine = simulation.make_engine(self._lm, tokenizer)
        assert isinstance(self.engine, LocalEngine), "`rollout.max_staleness` is refused for other engines"
        self.engine.graphs.works = False  # a CUDA graph cannot be recorded while another thread uses the device

    def weights(self) -> dict[str, torch.Tensor]:
        """Name -> trained weight; not a copy."""
        return trained_weights(self._lm)

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over trained weights. No reply may be under way."""
        for name, weight in self.weights().items():
            weight.copy_(weights[name])
        self.engine.clear_cache()


def trained_weights(lm: Any) -> dict[str, torch.Tensor]:
    """Name -> trained weight of a model."""
    return {name: parameter.detach() for name, parameter in lm.named_parameters() if parameter.requires_grad}


class Player:
    """A thread with an event loop. Tasks that are left at `close` are cancelled.

    Args:
        device: That the tasks compute on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._until_closed(),), name="rollout", daemon=True)
        self._thread.start()
        self._ready.wait()

    async def _until_closed(self) -> None:
        self._loop, self._closed, self._never = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # each thread has a current device
        self._ready.set()
        await self._closed.wait()

    def start(self, work: Coroutine[Any, Any, T], within: AbstractContextManager[Any]) -> Future[T]:
        """Start a task within a context, which is entered and left in the thread.

        If the task fails, the context stays until `close`: conversations beside the one that failed go on, and their
        replies go into the journal.
        """
        outcome: Future[T] = Future()

        async def task() -> None:
            try:
                with within:
                    try:
                        result = await work
                    except Exception as error:
                        outcome.set_exception(error)
                        await self._never.wait()  # until it is cancelled; the event holds the task
                outcome.set_result(result)
            except Exception as error:  # the context's own
                if not outcome.done():
                    outcome.set_exception(error)

        asyncio.run_coroutine_threadsafe(task(), self._loop)
        return outcome

    def close(self) -> None:
        """Cancel what is under way, and wait for its end."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()


@dataclass(frozen=True)
class _Step:
    """A training step whose groups are played, or have been played.

    Attributes:
        policy: Plays it.
        version: Rollouts that this policy has learned from.
        outcome: Its groups.
    """

    policy: FrozenPolicy
    version: int
    outcome: Future[Rollout]


class OverlappedRollout(RolloutCallback):
    """Plays the groups of the next steps during the update; see the module's docstring.

    Args:
        simulation: The user, the reward and the rules.
        system_prompt: The assistant's instruction.
        max_staleness: Rollouts that the policy may have learned from since a group was sampled, at least 1.
    """

    def __init__(self, simulation: Simulation, system_prompt: str, max_staleness: int) -> None:
        super().__init__(simulation, system_prompt)
        self.max_staleness = max_staleness
        self._player: Player | None = None
        self._free: list[FrozenPolicy] = []
        self._under_way: dict[int, _Step] = {}  # number of a step, from 0
        self._saved: dict[int, dict[str, Any]] = {}  # of the steps that were under way at a checkpoint
        self._counted: dict[str, int] = {}  # unusable replies that a step has reported

    def state_dict(self) -> dict[str, Any]:
        steps = {n: {"version": s.version, "weights": s.policy.weights()} for n, s in self._under_way.items()}
        return {**super().state_dict(), "under_way": steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._saved = state_dict["under_way"]
        self._counted = dict(self.simulation.problems)

    def _rollout(self, trainer: L.Trainer, pl_module: Any, goals: Sequence[Goal], step: int) -> Rollout:
        """The groups of a step, which began up to `max_staleness` steps ago; begins those of the next steps."""
        started = time.monotonic()
        for number in range(step, min(step + self.max_staleness, int(trainer.num_training_batches) - 1) + 1):
            if number not in self._under_way:
                self._under_way[number] = self._begin(trainer, pl_module, number, step)
        found = self._under_way[step]
        assert goals == trainer.datamodule.goals_of(step)  # type: ignore[attr-defined]
        rollout = found.outcome.result()
        waited = {"rollout_wait_seconds": time.monotonic() - started, "staleness": float(step - found.version)}
        return replace(rollout, logged=waited)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._free.append(self._under_way.pop(batch_idx).policy)

    def _begin(self, trainer: Any, pl_module: Any, number: int, version: int) -> _Step:
        """Begin to play a step with the policy as it is now, of this version, or as it was before an interruption."""
        saved = self._saved.pop(number, None)
        policy = self._copy(pl_module, saved and saved["weights"])
        goals = trainer.datamodule.goals_of(number)
        work = self._played(policy, goals, number, numbers_of(trainer, number, len(goals)))
        outcome = self._start(pl_module, work, f"train-{number + 1:06d}")
        return _Step(policy, saved["version"] if saved else version, outcome)

    async def _played(self, policy: FrozenPolicy, goals: Sequence[Goal], step: int, numbers: Sequence[int]) -> Rollout:
        started, lost, before = time.monotonic(), LostCounts(), policy.engine.new_tokens
        groups = await self.groups(self._speaks(policy), goals, step, numbers, lost)
        seconds = time.monotonic() - started
        await policy.engine.idle()
        counted, self._counted = self._counted, dict(self.simulation.problems)
        return Rollout(groups, lost, difference(self._counted, counted), policy.engine.new_tokens - before, seconds)

    def _conversations(self, pl_module: Any, scope: str, goals: Sequence[Goal], split: str, count: int) -> list[Scored]:
        policy = self._copy(pl_module)

        async def played() -> list[Scored]:
            speaker = self._speaks(policy)
            scored = await self.simulation.conversations(speaker, goals, self.system_prompt, split, count)
            await policy.engine.idle()
            return scored

        scored = self._start(pl_module, played(), scope).result()
        self._free.append(policy)
        return scored

    def _copy(self, pl_module: Any, weights: Mapping[str, torch.Tensor] | None = None) -> FrozenPolicy:
        """A copy of the policy, by default with the weights that it has now."""
        lm = pl_module.policy.lm
        policy = self._free.pop() if self._free else FrozenPolicy(lm, self.simulation, pl_module.tokenizer)
        policy.load(trained_weights(lm) if weights is None else weights)
        return policy

    def _speaks(self, policy: FrozenPolicy) -> ChatModel:
        journal = self.simulation.journal
        return policy.engine if journal is None else Journalled(policy.engine, journal)

    def _start(self, pl_module: Any, work: Coroutine[Any, Any, T], scope: str) -> Future[T]:
        if self._player is None:
            self._player = Player(pl_module.device)
        journal = self.simulation.journal
        return self._player.start(work, contextlib.nullcontext() if journal is None else journal.scope(scope))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._player is not None:
            self._player.close()  # the copies stay, for a checkpoint of a run that was stopped
            self._player = None
