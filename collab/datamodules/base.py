"""Goals, or stored groups, as Lightning batches.

A run is one epoch: the training loader holds the whole schedule, `max_steps` batches, so that the goals of step k
depend on the seed and k alone. Validation and test goals come in file order.

With W processes, process r takes items r, r + W, ... of every loader (`DistributedSampler`). A training step has
`goals_per_step / W` goals on each process, so it trains on the same goals whatever W is. Evaluation goals are padded
with None to a multiple of W, so that all processes have the same number of batches. Batches leave the padding out: each
goal is played once, and a batch may be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import lightning
from torch.utils.data import DataLoader, DistributedSampler

from collab.conversation import Goal, Group, Scored
from collab.datamodules.goals import GoalSplits
from collab.randomness import RngKey

if TYPE_CHECKING:
    from torch.utils.data import Dataset

EVAL_BATCH = 64  # goals whose conversations are played together

Item = TypeVar("Item")


class GoalBatch:
    """Goals and the conversations that were played for them.

    A plain class: Lightning would copy a dataclass when it moves the batch to the device, and lose what a callback
    adds to the first one.

    Attributes:
        goals: At most as many as the loader's batch size.
        groups: In training: scored candidates, added by the rollout unless they come from a file.
        scored: In evaluation: whole conversations with their scores, added by the rollout.
    """

    def __init__(self, goals: list[Goal], groups: list[Group] | None = None) -> None:
        self.goals = goals
        self.groups = groups
        self.scored: list[Scored] = []


def schedule(goals: Sequence[Item], goals_per_step: int, max_steps: int, seed: int) -> list[Item]:
    """The goals (or scored groups) of a whole run in order, `max_steps * goals_per_step` of them.

    They are passes over all `goals`, each shuffled anew. If a step spans two passes, goals that it already has wait for
    the next step, so a step repeats a goal only if `goals_per_step` exceeds the number of goals.
    """
    order: list[Item] = []
    waiting: list[int] = []
    passes = 0
    for _ in range(max_steps):
        step: list[int] = []
        while len(step) < goals_per_step:
            if not waiting:
                waiting = RngKey(seed, role="data", round=passes).stream().permutation(len(goals)).tolist()
                passes += 1
            chosen = next((index for index in waiting if index not in step), waiting[0])
            waiting.remove(chosen)
            step.append(chosen)
        order += [goals[index] for index in step]
    return order


class GoalDataModule(lightning.LightningDataModule):
    """Goals in, batches of goals out.

    Args:
        splits: As `load_splits` returns them.
        goals_per_step: Goals, or entries of `groups`, of one step over all processes; a multiple of the number of
            processes.
        max_steps: Steps of the run; use `Trainer(max_epochs=1)`.
        seed: Orders the training goals.
        groups: Scored groups with token ids to train on in place of rollouts for the training goals. The groups of an
            entry come in the same step and to the same process.
        held_out: As `groups`, to measure the model on in place of the validation goals.
    """

    def __init__(
        self,
        splits: GoalSplits,
        goals_per_step: int,
        max_steps: int,
        seed: int,
        groups: list[tuple[Group, ...]] | None = None,
        held_out: list[tuple[Group, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.splits = splits
        self.goals_per_step = goals_per_step
        self.max_steps = max_steps
        self.seed = seed
        self.groups = groups
        self.held_out = held_out

    def train_dataloader(self) -> DataLoader[GoalBatch]:
        """`max_steps` batches of this process's share of `goals_per_step`."""
        assert self.goals_per_step % self.world_size == 0, "`preflight.check_machine` refuses it"
        order = self._order
        # On resume Lightning counts on from the step that it had reached, but starts the loader anew.
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer is not None else 0
        done *= self.goals_per_step
        return self._loader(order[done:] + order[:done], self.goals_per_step // self.world_size)

    @cached_property
    def _order(self) -> list[Goal | tuple[Group, ...]]:
        items: Sequence[Goal | tuple[Group, ...]] = self.splits.train if self.groups is None else self.groups
        return schedule(items, self.goals_per_step, self.max_steps, self.seed)

    def goals_of(self, step: int) -> list[Goal]:
        """This process's training goals of a step, from 0, as its batch will have them."""
        assert self.groups is None and self.trainer is not None
        start = step * self.goals_per_step
        goals = self._order[start : start + self.goals_per_step][self.trainer.global_rank :: self.world_size]
        return cast("list[Goal]", goals)

    def val_dataloader(self) -> DataLoader[GoalBatch]:
        """This process's validation goals in file order, or what is held out."""
        return self._loader(self.splits.val if self.held_out is None else self.held_out, EVAL_BATCH)

    def test_dataloader(self) -> DataLoader[GoalBatch]:
        """This process's test goals in file order."""
        return self._loader(self.splits.test, EVAL_BATCH)

    @property
    def world_size(self) -> int:
        """Processes of the run; 1 outside of a trainer."""
        return self.trainer.world_size if self.trainer is not None else 1

    def _loader(self, items: Sequence[Any], batch_size: int) -> DataLoader[GoalBatch]:
        padded = cast("Dataset[Any]", [*items, *[None] * (-len(items) % self.world_size)])
        sampler: DistributedSampler[Any] | None = None
        # Under ddp and fsdp, in one process too, Lightning would add a sampler that shuffles the training goals.
        if self.trainer is not None:
            sampler = DistributedSampler(padded, self.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(padded, batch_size, collate_fn=_batch, sampler=sampler)


def _batch(items: list[Goal | None] | list[tuple[Group, ...]]) -> GoalBatch:
    groups = [group for item in items if isinstance(item, tuple) for group in item]
    if groups:
        return GoalBatch([group.context.goal for group in groups], groups)
    return GoalBatch([item for item in items if isinstance(item, Goal)])
