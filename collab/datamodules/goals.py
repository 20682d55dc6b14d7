"""The goals of a task, split into train, val and test, before any model is loaded. No torch in this file.

A task is a subclass of `TaskGoals`. It may ship goals, read the rows of published data sets (`rows.Layout`), and check
or complete each goal. `readers.py` reads files and data sets; `rows.py` says what a row must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from collab.config.schema import TaskConfig
from collab.conversation import Goal
from collab.datamodules.readers import read_rows
from collab.datamodules.rows import COMPLETION, METADATA, PROMPT, Layout, Row, checked, goal_of, layout_of, unwrapped
from collab.util.errors import BadInput
from collab.util.processes import rank
from collab.util.targets import load_target

SPLITS = ("train", "val", "test")
DATA = Path(__file__).parent / "data"  # the goals that ship
_LIKE_PREFERENCES = ("tone", "audience", "length", "style")


@dataclass(frozen=True)
class GoalSplits:
    """The goals of a task; no goal is in two of the lists. `notes` are for whoever starts the run: what is left out."""

    train: list[Goal]
    val: list[Goal]
    test: list[Goal]
    notes: tuple[str, ...] = field(default=(), compare=False)


class TaskGoals:
    """Where the goals of a task come from; `task.target` names a subclass."""

    layouts: Sequence[Layout] = ()  # published data sets that are read beside goals in the project's own form

    def shipped(self, split: str) -> Path | list[Goal] | None:
        """The goals of a split that come with the task, or a file of them; None if there are none."""
        return None

    def located(self, source: str) -> str | Path:
        """The file behind a name that this task knows; any other `source` comes back unchanged."""
        return source

    def resembles(self, one: Goal, other: Goal) -> bool:
        """Whether two goals are so alike that one may not be trained on if the other is tested."""
        return False

    def completed(self, goal: Goal, where: str) -> Goal:
        """A goal of `rows.goal_of` with what the task adds; raises `BadInput` if the goal lacks something.

        `where` is its file and line, for messages.
        """
        return goal


def make_task(config: TaskConfig) -> TaskGoals:
    """The object that `task.target` and `task.options` describe.

    Raises:
        BadInput: There is no such class, it is no subclass of `TaskGoals`, or it does not take the options.
    """
    cls = load_target(config.target, "task.target")
    if not (isinstance(cls, type) and issubclass(cls, TaskGoals)):
        raise BadInput(
            f"task.target={config.target} must be a subclass of collab.datamodules.goals.TaskGoals: it says where "
            "goals come from. Name one."
        )
    try:
        return cls(**config.options)
    except TypeError as error:
        raise BadInput(
            f"task.options ({config.options}) do not fit {config.target}: {error}. Set them to what the class takes."
        ) from error


def load_splits(config: TaskConfig) -> GoalSplits:
    """The goals of a task: each split from its file, else cut from `task.data`, else those that ship.

    `task.data` is cut in this order: `num_test` goals for testing, the next `num_val` for validation, the next
    `num_train` (by default all others) for training. Of a file or of shipped goals, the first `num_*` are used.
    Of what is left of `task.data`, goals that resemble a test goal are left out. Of a training file beside `task.data`,
    which may be the same published goals, those with the prompt of another split's goal are left out.

    Raises:
        BadInput: As `make_task`, `load_goals` and `check_disjoint`; a split has no source; `task.data` has too few
            goals.
    """
    task = make_task(config)
    needed = ("test",) if config.evaluation_only else SPLITS
    goals: dict[str, list[Goal]] = {split: [] for split in SPLITS}
    names: dict[str, str] = {}  # of the splits in messages
    notes: tuple[str, ...] = ()
    pool: list[Goal] | None = None  # what is left of `task.data`
    for split in reversed(needed):
        count, file = getattr(config, f"num_{split}"), getattr(config, f"{split}_file")
        source = file or config.data or task.shipped(split)
        if source is None:
            raise BadInput(
                f"task.{split}_file is not set, and no goals ship for task '{config.name}': set it, or task.data to "
                "cut all splits from."
            )
        if isinstance(source, list):
            found = source
        elif file or not config.data:
            found = load_goals(source, split, task)
        else:
            found = load_goals(source, "train", task, "task.data") if pool is None else pool
            pool = [] if count is None else found[count:]
            if len(found) < (count or 1):
                raise BadInput(
                    f"task.data={config.data} has too few goals: the {split} split needs {count or 1} and "
                    f"{len(found)} are left (test is cut first, then val, then train). Lower task.num_test, "
                    f"task.num_val or task.num_train, or give more data.{''.join(f' {note}' for note in notes)}"
                )
        if split == "train" and file and config.data:
            found, told = _not_held_out(found, (*goals["val"], *goals["test"]), config)
            notes = (*notes, *told)
        goals[split] = found[:count]
        if pool and split == "test":
            pool, notes = _unlike(pool, goals["test"], task)
        names[split] = f"the {split} goals ({config.target if isinstance(source, list) else source})"
    check_disjoint({names[split]: goals[split] for split in needed})
    return GoalSplits(**goals, notes=(*notes, *_misplaced(goals.values())))


def _misplaced(splits: Iterable[list[Goal]]) -> Iterator[str]:
    """A note about metadata that look like preferences, and that the user does not tell."""
    found = [[name for name in _LIKE_PREFERENCES if name in goal.metadata] for goals in splits for goal in goals]
    if count := sum(map(bool, found)):
        names = ", ".join(name for name in _LIKE_PREFERENCES if any(name in each for each in found))
        yield (
            f"The user does not tell the {names} in the {METADATA} of {count} goals. What it may tell stands in the "
            'entry "preferences" there.'
        )


def _unlike(pool: list[Goal], test: list[Goal], task: TaskGoals) -> tuple[list[Goal], tuple[str, ...]]:
    """The goals that resemble no test goal, and a note about the others."""
    kept = [goal for goal in pool if not any(task.resembles(goal, other) for other in test)]
    if len(kept) == len(pool):
        return kept, ()
    left_out = len(pool) - len(kept)
    return kept, (
        f"{left_out} of the {len(pool)} goals for training and validation resemble a test goal, and are left out.",
    )


def _not_held_out(
    found: list[Goal], held_out: Iterable[Goal], config: TaskConfig
) -> tuple[list[Goal], tuple[str, ...]]:
    """The training goals that ask for nothing that validation or test goals ask for, and a note about the others."""
    prompts = {goal.prompt for goal in held_out}
    kept = [goal for goal in found if goal.prompt not in prompts]
    if len(kept) == len(found):
        return kept, ()
    told = (
        f"{len(found) - len(kept)} of the {len(found)} goals of {config.train_file} are validation or test goals of "
        f"{config.data}, too, and are left out."
    )
    if not kept:
        raise BadInput(f"{told} None is left to train on. Set task.train_file to other goals.")
    return kept, (told,)


def load_goals(source: str | Path, split: str, task: TaskGoals | None = None, key: str | None = None) -> list[Goal]:
    """All goals of a file or a hub data set, in file order or in the order of their layout.

    Args:
        source: As `readers.read_rows` takes it, or a name that the task knows.
        split: Which split of a data set that has several. A file is one split.
        task: May read more layouts; None reads the project's own form alone.
        key: The config field that names `source`, for messages; by default `task.{split}_file`.

    Raises:
        BadInput: Nothing can be read there, it has no rows, or a row breaks the rules of `rows.py` or of the task.
    """
    task = task or TaskGoals()
    ranked: list[tuple[Any, Goal]] = []  # sort key, goal
    known: dict[str, tuple[str, Goal]] = {}  # id -> place, goal
    layout: Layout | None = None
    located = task.located(source) if isinstance(source, str) else source
    for where, row in read_rows(located, split, key or f"task.{split}_file"):
        row = unwrapped(row)
        if not ranked:  # the first goal decides the layout of all rows
            layout = layout_of(row, task.layouts)
        goal = _read(row, where, task, layout)
        if goal is None:
            continue
        if goal.id in known:
            earlier_place, earlier = known[goal.id]
            # each conversation, or each of its turns, has a row
            published = layout or "conv_id" in row or "messages" in row
            if published and (earlier.prompt, earlier.reference) == (goal.prompt, goal.reference):
                continue  # the user cannot edit a published data set that holds a goal twice
            raise BadInput(
                f"{where} has the same id as {earlier_place}: '{goal.id}'. An id must be unique in its file (without "
                f"an id, it is derived from {PROMPT} and {COMPLETION}). Remove one or give it another id."
            )
        known[goal.id] = where, goal
        ranked.append((layout.order(row) if layout and layout.order else None, goal))
    if not ranked:
        raise BadInput(f"{source} holds no goals; at least one row is needed. Write one JSON object a line.")
    if layout and layout.order:
        ranked.sort(key=lambda entry: entry[0])
    return [goal for _, goal in ranked]


def read_goal(row: Row | Goal, task: TaskGoals, where: str = "The goal") -> Goal:
    """One goal: a row in the project's own form or in a layout of the task, or a `Goal` that the task completes.

    Raises:
        BadInput: As `load_goals`, or the layout leaves the row out.
    """
    if isinstance(row, Goal):
        return task.completed(row, where)
    goal = _read(checked(row, "an object", where), where, task, layout_of(row, task.layouts))
    if goal is None:
        raise BadInput(f"{where} is one that the task leaves out. Take another.")
    return goal


def _read(row: Row, where: str, task: TaskGoals, layout: Layout | None) -> Goal | None:
    return layout.read(row, where) if layout else task.completed(goal_of(row, where, task.layouts), where)


def check_disjoint(splits: Mapping[str, list[Goal]]) -> None:
    """Refuse a goal that is in two splits: no goal may be both trained and tested on.

    Args:
        splits: Name of a split, for messages -> its goals.

    Raises:
        BadInput: Two splits share an id, or a goal with the same prompt and reference.
    """
    for (first, ours), (second, theirs) in combinations(splits.items(), 2):
        ids = {goal.id for goal in ours}
        texts = {(goal.prompt, goal.reference) for goal in ours}
        shared = [goal for goal in theirs if goal.id in ids or (goal.prompt, goal.reference) in texts]
        if shared:
            what = "id" if shared[0].id in ids else "prompt and reference"
            raise BadInput(
                f"{first} and {second} share {len(shared)} of their goals, the first by its {what}: '{shared[0].id}'. "
                "No goal may be in two splits. Remove it from one; goals that differ need different ids."
            )


def check_reference_lengths(goals: Iterable[Goal], count_tokens: Callable[[str], int], max_new_tokens: int) -> None:
    """Say which references are longer than a reply of the policy may be; refuse the goals if most of them are.

    Args:
        goals: Of all splits.
        count_tokens: Length of a text in policy tokens.
        max_new_tokens: `task.max_new_tokens`.

    Raises:
        BadInput: More than half of the references are longer; the message names the limit that would do for all.
    """
    lengths = sorted(((count_tokens(goal.reference), goal.id) for goal in goals), reverse=True)
    longer = [(length, name) for length, name in lengths if length > max_new_tokens]
    if not longer:
        return
    shown = ", ".join(f"'{name}' ({length} tokens)" for length, name in longer[:3])
    problem = (
        f"{len(longer)} of {len(lengths)} references are longer than task.max_new_tokens ({max_new_tokens}), so that "
        f"no reply can match them: {shown}{', ...' if len(longer) > 3 else ''}."
    )
    way = f"Set task.max_new_tokens={longer[0][0]} or more."
    if 2 * len(longer) > len(lengths):
        raise BadInput(f"{problem} {way}")
    if rank() == 0:
        print(f"note: {problem} {way}", flush=True)
