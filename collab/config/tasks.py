"""The tasks of an evaluation: `task`, and those of `evaluation.tasks` that each policy plays beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from collab.config.schema import Config
from collab.util.errors import BadInput


def further_tasks(config: Config) -> dict[str, Config]:
    """Name in `evaluation.tasks` -> the config of an evaluation of that task alone, in a folder of its own."""
    evaluation, folder = replace(config.evaluation, tasks={}), Path(config.output_dir) / "tasks"
    return {
        name: replace(config, task=task, evaluation=evaluation, output_dir=str(folder / name))
        for name, task in config.evaluation.tasks.items()
    }


def further_task_problems(config: Config, entry: str) -> Iterator[str]:
    """What is wrong with the names of `evaluation.tasks`, or with a command that does not play them."""
    names = config.evaluation.tasks
    if names and entry != "evaluate":
        yield (
            f"evaluation.tasks ({', '.join(names)}) are played by evaluate.py alone. Set tasks=none here, and give the "
            "policy to `python evaluate.py experiment=transfer` afterwards."
        )
    for name in names:
        if name == config.task.name:
            yield f"evaluation.tasks has {name}, which is the task already. Leave it out by ~evaluation.tasks.{name}."
        if not re.fullmatch(r"\w[\w-]*", name):
            yield (
                f"evaluation.tasks.{name}: a name may have letters, digits, _ and -, since it names a folder. Take "
                "another."
            )


@contextmanager
def about_task(name: str) -> Iterator[None]:
    """Says of which further task a `BadInput` is, and how to leave it out."""
    try:
        yield
    except BadInput as error:
        raise BadInput(
            f"evaluation.tasks.{name}: {error} Fields that begin with task. stand in evaluation.tasks.{name}. here. "
            f"~evaluation.tasks.{name} leaves the task out."
        ) from error
