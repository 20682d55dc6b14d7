"""The folder of a synthesis: which run it belongs to, its finished conversations, and the data sets made of them.

Several processes may share a folder. Each plays its part of the conversations and appends to a file of its own, and all
read all files, so that a part may be played on by other processes. No torch in this file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from collab.conversation import Goal
from collab.datamodules.readers import json_lines, quiet_datasets
from collab.datamodules.rows import COMPLETION, METADATA, PROMPT
from collab.util.diff import changes
from collab.util.errors import BadInput
from collab.util.files import cut_torn_line, is_locked, naming

CLAIM = "synthesis.json"  # the config that the conversations depend on
LOCK = ".lock"  # held by the processes that play
CONVERSATIONS = "conversations.jsonl"  # a row for each finished conversation, in the order in which they finished
DATASET = "dataset"  # all conversations in the order of their goals, as `datasets` saves them
FUTURES = "futures"  # all forward conversations, as `datasets` saves them; and those of one conversation in its row
STATISTICS = "statistics.json"  # of all conversations

# The card of a data set on the hub. Its first part tells `datasets` which files there are.
_CARD = """---
configs:
- config_name: default
  default: true
  data_files: [{{split: train, path: default/train.parquet}}]
- config_name: futures
  data_files: [{{split: train, path: futures/train.parquet}}]
tags: [collabllm]
---

Conversations about the goals of the task {task}, made by `collab synthesize`: candidates for each reply of an
assistant, scored by the multiturn-aware reward of CollabLLM. `default` has a row for each conversation, with all
candidates and their scores; `futures` has the forward conversations that scored them. `synthesis.json` has the
settings.

| | |
|---|---|
{told}"""


def conversation_id(goal: Goal, number: int) -> str:
    """The `conv_id` of a goal's `number`-th conversation, from 0."""
    return f"{goal.id}/{number}"


def origin(row: Mapping[str, Any]) -> tuple[str, int]:
    """The goal's id and the number in a row's `conv_id`; the inverse of `conversation_id`."""
    goal, _, number = row["conv_id"].rpartition("/")
    return goal, int(number)


def file_of(part: int, parts: int) -> str:
    """The name of the file that the process of a part, from 0, writes."""
    return CONVERSATIONS if parts == 1 else f"conversations-{part + 1}-of-{parts}.jsonl"


def part_of(place: int, number: int, parts: int) -> int:
    """The part, from 0, that has a goal's `number`-th conversation. It depends on no other goal or conversation.

    Args:
        place: Of the goal among the goals.
        number: Of the conversation, from 0.
        parts: How many there are.
    """
    return (place + number) % parts


def conversation_files(folder: Path) -> list[Path]:
    """The files of all processes that have written or write into a folder."""
    return sorted(folder.glob("conversations*.jsonl"))


def finished(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all finished conversations."""
    for file in conversation_files(folder):
        yield from ConversationFile(file).read()


def check_no_other_division(folder: Path, parts: int) -> None:
    """Check that no process plays another division of the same conversations. Call it with the own file locked.

    Raises:
        BadInput: One does. Of two that begin at the same time, at least one sees the other.
    """
    own = {file_of(part, parts) for part in range(parts)}
    for file in conversation_files(folder):
        if file.name not in own and is_locked(file):
            raise BadInput(
                f"A process is writing into {file}, so these conversations are played in another number of parts than "
                f"{parts}: some would be played twice. Wait for it or stop it; finished conversations stay."
            )


def save_datasets(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Save the conversations of a synthesis and their futures, each as a data set in `folder`."""
    save_dataset([{name: row[name] for name in row if name != FUTURES} for row in rows], folder / DATASET)
    save_dataset([future for row in rows for future in row[FUTURES]], folder / FUTURES)


def hub_folder(folder: Path, task: str, figures: Mapping[str, str]) -> Path:
    """Make the folder `hub` of what goes to the Hugging Face hub: both data sets in Parquet, and a card that tells so.

    Args:
        folder: Of the synthesis, with its data sets.
        task: Name of the task, for the card.
        figures: What the card tells of the data.
    """
    import datasets
    import pyarrow

    made = folder / "hub"
    for name, configuration in ((DATASET, "default"), (FUTURES, FUTURES)):
        place = made / configuration
        place.mkdir(parents=True, exist_ok=True)
        with quiet_datasets():
            dataset = datasets.load_from_disk(str(folder / name))
            try:
                dataset.to_parquet(place / "train.parquet")
            except pyarrow.ArrowNotImplementedError:  # Parquet has no objects without fields: goals without metadata
                texts = [{**row, METADATA: json.dumps(row[METADATA], ensure_ascii=False)} for row in dataset]
                datasets.Dataset.from_list(texts).to_parquet(place / "train.parquet")
    for file in (CLAIM, STATISTICS):
        shutil.copy(folder / file, made / file)
    told = "".join(f"| {name} | {value} |\n" for name, value in figures.items())
    (made / "README.md").write_text(_CARD.format(task=task, told=told), encoding="utf-8")
    return made


class ConversationFile:
    """A JSONL file of finished conversations, to read and to append to. Nothing of it is kept in memory.

    The last line may be torn if a run was killed while it wrote. It counts as not written, and is cut off before the
    next conversation is appended.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each conversation; raises `BadInput` if a line before the last is broken."""
        return list(self.read())

    def read(self) -> Iterator[dict[str, Any]]:
        """As `rows`, one by one."""
        whole, _, _ = self.path.read_bytes().rpartition(b"\n") if self.path.is_file() else (b"", b"", b"")
        for _, row in json_lines(whole, self.path):
            yield row

    def append(self, row: dict[str, Any]) -> None:
        """Write one conversation; it is on disk when this returns."""
        cut_torn_line(self.path)
        with naming(self.path), self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def save_dataset(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Save rows as `datasets` does, all or nothing; an earlier data set is replaced. A row may lack columns.

    A column of `datasets` has one type. If the goals' metadata differ in type, they are saved as JSON text, which
    `rows.metadata_of` reads too.
    """
    import datasets
    import pyarrow

    columns = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name) for name in columns} for row in rows]
    with quiet_datasets():
        try:
            dataset = datasets.Dataset.from_list(rows)
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
    # Looked for before the claim: a process that begins at the same time writes its claim first.
    others = [file.name for file in conversation_files(folder)]
    others += [name for name in (DATASET, "config.yaml") if (folder / name).exists()]
    claim = folder / CLAIM
    if claim.is_file():
        there = json.loads(claim.read_bytes())
        if changed := changes(there, here):
            raise BadInput(
                f"{folder} holds conversations that were made with another config: {'; '.join(changed)}. A data set "
                "is made with one config. Set output_dir to another folder, or go back to the earlier values."
            )
    elif others:
        raise BadInput(
            f"{folder} is not the folder of a synthesis: it has {others[0]}, but no {CLAIM}, which every synthesis "
            "writes. Set output_dir to a new folder."
        )
    known = {goal.id: goal for goal in goals}
    for row in finished(folder):
        goal = known.get(origin(row)[0])
        if goal is None or (row.get(PROMPT), row.get(COMPLETION)) != (goal.prompt, goal.reference):
            what = "is not among the training goals" if goal is None else "has another prompt or reference now"
            raise BadInput(
                f"{folder} holds a conversation about goal '{origin(row)[0]}', which {what}. Goals may "
                "be added to a data set, and not changed or removed. Set output_dir to another folder, or "
                "task.train_file to the earlier goals."
            )
