"""Whole conversations from files: what a run played, what a synthesis made, or chats of real people.

Reports read them all (`load_chats`); a user model learns from them (`chat_logs.py`). Three kinds of source are read:

- the folder of a run: its `transcripts.jsonl`, those of all processes; of a training, the test conversations alone;
- rows that are whole chats, by their columns: `conversation`, of WildChat and LMSYS-Chat-1M, a list of
  `{role, content}`; `conversations`, of ShareGPT, a list of `{from, value}`, by "human" and "gpt"; `messages`, such as
  lines of `transcripts.jsonl`. `ended_by` and `user` are read if they are there. A goal comes from the row
  (`single_turn_prompt` and so on), or from the task by the id in `goal`;
- any other source of `collab.datamodules.conversations`: of each conversation the longest path, with the best reply of
  its last turn.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from collab.conversation import Conversation, Goal
from collab.datamodules.conversations import conversation_of, load_groups, whole_chats
from collab.datamodules.readers import json_lines, path_of, read_rows
from collab.datamodules.rows import COMPLETION, PROMPT, Row, checked, derived_id, field_of, metadata_of, unwrapped
from collab.datamodules.synthesis_folder import DATASET, conversation_files
from collab.util.errors import BadInput

_COLUMNS = ("conversation", "conversations", "messages")
_SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's words


def load_chats(source: str | Path, key: str, goals: Iterable[Goal] = ()) -> list[Conversation]:
    """All conversations of a source, in order. Those without a message by the user are left out.

    Args:
        source: A run folder, or as `load_groups` takes it.
        key: The config field that names the source, for messages.
        goals: Of the task, which lines of `transcripts.jsonl` name by their ids.

    Raises:
        BadInput: Nothing can be read there, a row breaks the rules, or there is no conversation.
    """
    known = {goal.id: goal for goal in goals}
    if (rows := chat_rows(source, key)) is None:
        found = whole_chats(load_groups(source, "", key))
    else:
        found = [_chat(row, where, known) for where, row in rows]
    found = [chat for chat in found if chat.turns or chat.pending is not None]
    if not found:
        raise BadInput(
            f"{key}={source} holds no conversation in which a user says anything. Name the folder of a run, or a file "
            "with a chat in the field messages of each row."
        )
    return found


def chat_rows(source: str | Path, key: str) -> Iterator[tuple[str, Row]] | None:
    """The rows that are whole chats, each with its place; None for a source that `load_groups` reads.

    Args:
        source, key: As of `load_chats`.

    Raises:
        BadInput: Nothing can be read there.
    """
    folder = path_of(source, key)
    if files := sorted(folder.glob("transcripts*.jsonl")) if folder.is_dir() else []:
        lines = [line for file in files for line in _lines(file)]
        return iter([line for line in lines if line[1].get("phase") == "test"] or lines)
    if (folder / DATASET).is_dir() or conversation_files(folder):  # of a synthesis
        return None
    rows = ((where, unwrapped(row)) for where, row in read_rows(source, "train", key))
    if (first := next(rows, None)) is None:
        return rows
    columns = first[1].keys()
    if {"turns", "completion"} & columns or ("prompt" in columns and not columns & {*_COLUMNS}):
        return None
    return itertools.chain([first], rows)


def messages_of_row(row: Row, where: str) -> list[Any]:
    """The messages of a whole chat as dicts with `role` and `content`.

    Raises:
        BadInput: The row has none of the columns, or no list there.
    """
    name = next((name for name in _COLUMNS if name in row), _COLUMNS[-1])
    found = field_of(row, name, where, "a list", f"A chat is in one of the columns {', '.join(_COLUMNS)}.")
    return [
        {"role": _SPEAKERS.get(message["from"], message["from"]), "content": message.get("value")}
        if isinstance(message, dict) and "from" in message
        else message
        for message in found
    ]


def _lines(file: Path) -> list[tuple[str, Row]]:
    """The lines of a file of transcripts; a last line that is not finished is left out."""
    whole, _, _ = file.read_bytes().rpartition(b"\n")
    return [
        (f"{file}, {place}", checked(row, "an object", f"{file}, {place}")) for place, row in json_lines(whole, file)
    ]


def _chat(row: Row, where: str, known: Mapping[str, Goal]) -> Conversation:
    messages = messages_of_row(row, where)
    chat = conversation_of(messages, _goal(row, where, known, messages), "", lambda n: f"{where}: message {n}")
    ended, user = ("" if row.get(name) is None else field_of(row, name, where) for name in ("ended_by", "user"))
    return replace(chat, ended_by=ended, user=user)


def _goal(row: Row, where: str, known: Mapping[str, Goal], messages: object) -> Goal:
    name = str(row.get("goal") or row.get("conv_id") or derived_id(json.dumps(messages)))
    if row.get(PROMPT) is None:
        return known.get(name, Goal(name, "", ""))
    prompt, reference = (("" if row.get(n) is None else field_of(row, n, where)) for n in (PROMPT, COMPLETION))
    return Goal(name, prompt, reference, metadata_of(row, where))
