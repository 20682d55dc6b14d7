"""Goals as Lightning batches.

A run is one epoch: the training loader holds the whole schedule, `max_steps` batches of goals, so that what step k
trains on depends on the seed and k alone. Validation and test goals come in file order.

With W processes, process r takes items r, r + W, ... of every loader (`DistributedSampler`). A training step has
`goals_per_step / W` goals a process, so it trains on the same goals whatever W is. Evaluation goals are padded with
None to a multiple of W, so that every process has as many batches. Batches leave the padding out: each goal is played
once, and a batch may have no goals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import lightning
from torch.utils.data import DataLoader, DistributedSampler

from collab.conversation import Goal, Group, Scored
from collab.datamodules.goals import GoalSplits
from collab.randomness import RngKey

if TYPE_CHECKING:
    from torch.utils.data import Dataset

EVAL_BATCH = 64  # goals whose conversations are played together

Item = TypeVar("Item", Goal, Group)


class GoalBatch:
    """Goals, and what is made of them while they are a batch.

    A plain class, not a dataclass: Lightning would copy a dataclass field by field to move it to the device, and
    what a callback had put on it before would be put on another object.

    Attributes:
        goals: At most as many as the loader's batch size.
        groups: In training: scored candidates, which the rollout puts here unless they are there already.
        scored: In evaluation: whole conversations with their scores, which the rollout puts here.
    """

    def __init__(self, goals: list[Goal], groups: list[Group] | None = None) -> None:
        self.goals = goals
        self.groups = groups
        self.scored: list[Scored] = []


def schedule(goals: Sequence[Item], goals_per_step: int, max_steps: int, seed: int) -> list[Item]:
    """The goals (or scored groups) of a whole run in order, `max_steps * goals_per_step` of them.

    They are passes over all `goals`, each pass shuffled anew. Where a step spans two passes, goals that it already
    has wait for the next step, so a step repeats a goal only where `goals_per_step` exceeds the number of goals.
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
        goals_per_step: Goals of one step over all processes; a multiple of their number.
        max_steps: Steps of the run; use `Trainer(max_epochs=1)`.
        seed: Orders the training goals.
    """

    def __init__(self, splits: GoalSplits, goals_per_step: int, max_steps: int, seed: int) -> None:
        super().__init__()
        self.splits = splits
        self.goals_per_step = goals_per_step
        self.max_steps = max_steps
        self.seed = seed

    def train_dataloader(self) -> DataLoader[GoalBatch]:
        """`max_steps` batches of this process's share of `goals_per_step`."""
        return self._training(self.splits.train, GoalBatch)

    def val_dataloader(self) -> DataLoader[GoalBatch]:
        """This process's validation goals in file order."""
        return self._evaluation(self.splits.val)

    def test_dataloader(self) -> DataLoader[GoalBatch]:
        """This process's test goals in file order."""
        return self._evaluation(self.splits.test)

    @property
    def world_size(self) -> int:
        """Processes of the run; 1 outside of a trainer."""
        return self.trainer.world_size if self.trainer is not None else 1

    def _training(self, items: Sequence[Item], make_batch: Callable[[list[Item]], GoalBatch]) -> DataLoader[GoalBatch]:
        assert self.goals_per_step % self.world_size == 0, "`preflight.check_machine` refuses it"
        order = schedule(items, self.goals_per_step, self.max_steps, self.seed)
        # On resume Lightning counts on from the step it had reached, but starts the loader anew.
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer is not None else 0
        done *= self.goals_per_step
        return self._loader(order[done:] + order[:done], self.goals_per_step // self.world_size, make_batch)

    def _evaluation(self, goals: Sequence[Goal]) -> DataLoader[GoalBatch]:
        padding = [None] * (-len(goals) % self.world_size)
        return self._loader([*goals, *padding], EVAL_BATCH, _without_padding)

    def _loader(
        self, items: list[Any], batch_size: int, make_batch: Callable[[list[Any]], GoalBatch]
    ) -> DataLoader[GoalBatch]:
        sampler: DistributedSampler[Any] | None = None
        if self.world_size > 1:  # else Lightning would put one here that shuffles the training goals
            assert self.trainer is not None
            sampler = DistributedSampler(
                cast("Dataset[Any]", items), self.world_size, self.trainer.global_rank, shuffle=False
            )
        return DataLoader(cast("Dataset[Any]", items), batch_size, collate_fn=make_batch, sampler=sampler)


def _without_padding(goals: list[Goal | None]) -> GoalBatch:
    return GoalBatch([goal for goal in goals if goal is not None])
