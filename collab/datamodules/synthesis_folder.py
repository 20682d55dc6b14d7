"""The folder of a synthesis: its finished conversations, whom it belongs to, and the data set that comes of it.

No torch in this file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collab.conversation import Goal
from collab.datamodules.readers import quiet_datasets
from collab.datamodules.rows import COMPLETION, METADATA, PROMPT
from collab.util.diff import changes
from collab.util.errors import BadInput
from collab.util.files import naming

CLAIM = "synthesis.json"  # what its conversations depend on
CONVERSATIONS = "conversations.jsonl"  # a row for each finished conversation, in the order in which they finished
DATASET = "dataset"  # all of them in the order of their goals, as `datasets` saves them
STATISTICS = "statistics.json"  # of them


def conversation_id(goal: Goal, number: int) -> str:
    """The `conv_id` of a goal's conversation of this number, from 0."""
    return f"{goal.id}/{number}"


def origin(row: Mapping[str, Any]) -> tuple[str, int]:
    """The goal's id and the number that a row's `conv_id` was made of."""
    goal, _, number = row["conv_id"].rpartition("/")
    return goal, int(number)


class ConversationFile:
    """The finished conversations: those that are on disk, and more as they come.

    The last line may be torn: that is where a run was killed while it wrote. Its conversation is not finished, and what
    there is of it is cut off before another one is written.

    Args:
        path: Of the JSONL file; it need not be there.

    Attributes:
        rows: One for each conversation.

    Raises:
        BadInput: A line before the last is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        *lines, torn = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                origin(row)
                self.rows.append(row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadInput(
                    f"{path}, line {number} is not a conversation as it was written ({error!r}). Remove the line: its "
                    "conversation is then played again."
                ) from error
        self._torn = len(torn)

    def append(self, row: dict[str, Any]) -> None:
        """Write one conversation; when this returns, it is on disk."""
        if self._torn:
            os.truncate(self.path, self.path.stat().st_size - self._torn)
            self._torn = 0
        with naming(self.path), self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


def save_dataset(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Save nested rows as `datasets` does, all or nothing; what was there is replaced.

    A column of `datasets` has one type: where the goals' metadata do not agree on one, they are saved as JSON text,
    which the readers of goals and of conversations take too.
    """
    import datasets
    import pyarrow

    with quiet_datasets():
        try:
            found = datasets.Dataset.from_list(list(rows))
        except pyarrow.ArrowException:
            texts = [{**row, METADATA: json.dumps(row[METADATA], ensure_ascii=False)} for row in rows]
            found = datasets.Dataset.from_list(texts)
        new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("new", "old"))
        try:
            found.save_to_disk(str(new))
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def check_folder(folder: Path, here: Mapping[str, Any], goals: Sequence[Goal]) -> None:
    """Hold a folder against the synthesis that wants to write into it.

    Args:
        folder: It need not be there.
        here: What the conversations of that synthesis depend on, as JSON holds it.
        goals: What they are made from. More goals than last time are welcome.

    Raises:
        BadInput: The folder belongs to something else, or its conversations were made with another config or from other
            goals. Names what differs.
    """
    claim = folder / CLAIM
    if claim.is_file():
        try:
            there = json.loads(claim.read_bytes())
        except ValueError as error:
            raise BadInput(
                f"{claim} is not JSON ({error}). Restore it, or set output_dir to another folder."
            ) from error
        if found := changes(there, here):
            raise BadInput(
                f"{folder} holds conversations that were made with another config: {'; '.join(found)}. A data "
                "set is made with one. Set output_dir to another folder, or take the values that this one was made "
                "with."
            )
    elif taken := [name for name in (CONVERSATIONS, DATASET, "config.yaml") if (folder / name).exists()]:
        raise BadInput(
            f"{folder} is not the folder of a synthesis: it has {taken[0]}, but no {CLAIM}, which says what "
            "conversations were made with. Set output_dir to a new folder."
        )
    known = {goal.id: goal for goal in goals}
    for row in ConversationFile(folder / CONVERSATIONS).rows:
        goal = known.get(origin(row)[0])
        if goal is None or (row.get(PROMPT), row.get(COMPLETION)) != (goal.prompt, goal.reference):
            what = "is not among the training goals" if goal is None else "has another prompt or reference now"
            raise BadInput(
                f"{folder / CONVERSATIONS} holds a conversation about goal '{origin(row)[0]}', which {what}. A data "
                "set is made from one set of goals, to which others may be added. Set output_dir to another folder, or "
                "task.train_file to the goals that this one was made from."
            )
