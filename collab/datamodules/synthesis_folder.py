"""The folder of a synthesis: which run it belongs to, its finished conversations, and the data set made of them.

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
from collab.datamodules.readers import json_lines, quiet_datasets
from collab.datamodules.rows import COMPLETION, METADATA, PROMPT
from collab.util.diff import changes
from collab.util.errors import BadInput
from collab.util.files import cut_torn_line, naming

CLAIM = "synthesis.json"  # the config that the conversations depend on
CONVERSATIONS = "conversations.jsonl"  # a row for each finished conversation, in the order in which they finished
DATASET = "dataset"  # all conversations in the order of their goals, as `datasets` saves them
STATISTICS = "statistics.json"  # of all conversations


def conversation_id(goal: Goal, number: int) -> str:
    """The `conv_id` of a goal's `number`-th conversation, from 0."""
    return f"{goal.id}/{number}"


def origin(row: Mapping[str, Any]) -> tuple[str, int]:
    """The goal's id and the number in a row's `conv_id`; the inverse of `conversation_id`."""
    goal, _, number = row["conv_id"].rpartition("/")
    return goal, int(number)


class ConversationFile:
    """A JSONL file of finished conversations, to read and to append to.

    The last line may be torn if a run was killed while it wrote. It counts as not written, and is cut off before the
    next conversation is appended.

    Args:
        path: The file; it need not exist.

    Attributes:
        rows: One row for each conversation.

    Raises:
        BadInput: A line before the last is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole, _, _ = path.read_bytes().rpartition(b"\n") if path.is_file() else (b"", b"", b"")
        self.rows = [row for _, row in json_lines(whole, path)]

    def append(self, row: dict[str, Any]) -> None:
        """Write one conversation; it is on disk when this returns."""
        cut_torn_line(self.path)
        with naming(self.path), self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


def save_dataset(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Save nested rows as `datasets` does, all or nothing; an earlier data set is replaced.

    A column of `datasets` has one type. If the goals' metadata differ in type, they are saved as JSON text, which
    `rows.metadata_of` reads too.
    """
    import datasets
    import pyarrow

    with quiet_datasets():
        try:
            dataset = datasets.Dataset.from_list(list(rows))
        except pyarrow.ArrowException:
            texts = [{**row, METADATA: json.dumps(row[METADATA], ensure_ascii=False)} for row in rows]
            dataset = datasets.Dataset.from_list(texts)
        new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("new", "old"))
        try:
            dataset.save_to_disk(str(new))
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def check_folder(folder: Path, here: Mapping[str, Any], goals: Sequence[Goal]) -> None:
    """Check that a folder belongs to the synthesis that is about to write into it.

    Args:
        folder: It need not exist.
        here: The part of the config that the conversations of this synthesis depend on, in JSON types.
        goals: Its goals. They may have been added to since the last run.

    Raises:
        BadInput: The folder belongs to another kind of run, or its conversations were made with another config or from
            other goals. The message names the difference.
    """
    claim = folder / CLAIM
    if claim.is_file():
        there = json.loads(claim.read_bytes())
        if changed := changes(there, here):
            raise BadInput(
                f"{folder} holds conversations that were made with another config: {'; '.join(changed)}. A data set "
                "is made with one config. Set output_dir to another folder, or go back to the earlier values."
            )
    elif others := [name for name in (CONVERSATIONS, DATASET, "config.yaml") if (folder / name).exists()]:
        raise BadInput(
            f"{folder} is not the folder of a synthesis: it has {others[0]}, but no {CLAIM}, which every synthesis "
            "writes. Set output_dir to a new folder."
        )
    known = {goal.id: goal for goal in goals}
    for row in ConversationFile(folder / CONVERSATIONS).rows:
        goal = known.get(origin(row)[0])
        if goal is None or (row.get(PROMPT), row.get(COMPLETION)) != (goal.prompt, goal.reference):
            what = "is not among the training goals" if goal is None else "has another prompt or reference now"
            raise BadInput(
                f"{folder / CONVERSATIONS} holds a conversation about goal '{origin(row)[0]}', which {what}. Goals may "
                "be added to a data set, and not changed or removed. Set output_dir to another folder, or "
                "task.train_file to the earlier goals."
            )
