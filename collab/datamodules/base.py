"""Goals as Lightning batches.

A run is one epoch: the training loader holds the whole schedule, `max_steps` batches of goals, so that what step k
trains on depends on the seed and k alone. Validation and test goals come in file order.

Every loader is sequential. With several processes it has a `DistributedSampler`, by which process r of W takes items
r, r + W, ...: with `goals_per_step / W` goals a process, step k trains on the same goals whatever W is. For evaluation
Lightning adds it, and repeats some goals where W does not divide their number: count results by goal id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import lightning
from torch.utils.data import DataLoader, DistributedSampler

from collab.conversation import Conversation, Goal, Group, Score
from collab.datamodules.goals import GoalSplits
from collab.randomness import RngKey
from collab.util.errors import BadInput

if TYPE_CHECKING:
    from torch.utils.data import Dataset

EVAL_BATCH = 64  # goals whose conversations are played together

Scored = tuple[Conversation, Score]
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
        goals_per_step: Goals of one update, over all processes.
        max_steps: Updates of the run; use `Trainer(max_epochs=1)`.
        seed: Orders the training goals.
    """

    def __init__(self, splits: GoalSplits, goals_per_step: int, max_steps: int, seed: int) -> None:
        super().__init__()
        self.splits = splits
        self.goals_per_step = goals_per_step
        self.max_steps = max_steps
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Goal]:
        """`max_steps` batches of this process's share of `goals_per_step`.

        Raises:
            BadInput: The goals of a step cannot be shared out evenly.
        """
        return training_loader(self, self.splits.train, GoalBatch)

    def val_dataloader(self) -> DataLoader[Goal]:
        """The validation goals in file order."""
        return _loader(self.splits.val, EVAL_BATCH, GoalBatch)

    def test_dataloader(self) -> DataLoader[Goal]:
        """The test goals in file order."""
        return _loader(self.splits.test, EVAL_BATCH, GoalBatch)


def training_loader(
    data: Any, items: Sequence[Item], make_batch: Callable[[list[Item]], GoalBatch]
) -> DataLoader[Item]:
    """All batches of a run for this process: its share of `goals_per_step` items each, `max_steps` of them.

    Args:
        data: The data module, with `goals_per_step`, `max_steps` and `seed`.
        items: What to train on, goals or scored groups.
        make_batch: Makes a batch of some of them.

    Raises:
        BadInput: The items of a step cannot be shared out evenly.
    """
    world_size = data.trainer.world_size if data.trainer is not None else 1
    if data.goals_per_step % world_size:
        enough = (data.goals_per_step // world_size + 1) * world_size
        raise BadInput(
            f"trainer.goals_per_step ({data.goals_per_step}) must be a multiple of the number of processes "
            f"({world_size}): each takes as many goals. Set it to {enough}."
        )
    order = schedule(items, data.goals_per_step, data.max_steps, data.seed)
    # On resume Lightning counts on from the step it had reached, but starts the loader anew.
    done = data.trainer.fit_loop.epoch_loop.batch_progress.current.ready if data.trainer is not None else 0
    done *= data.goals_per_step
    items = order[done:] + order[:done]
    # The sampler that Lightning would put here shuffles.
    sampler: DistributedSampler[Item] | None = None
    if world_size > 1:
        sampler = DistributedSampler(
            cast("Dataset[Item]", items), num_replicas=world_size, rank=data.trainer.global_rank, shuffle=False
        )
    return _loader(items, data.goals_per_step // world_size, make_batch, sampler)


def _loader(
    items: list[Item],
    batch_size: int,
    make_batch: Callable[[list[Item]], GoalBatch],
    sampler: DistributedSampler[Item] | None = None,
) -> DataLoader[Item]:
    return DataLoader(cast("Dataset[Item]", items), batch_size=batch_size, collate_fn=make_batch, sampler=sampler)
