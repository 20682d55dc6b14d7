"""Whole conversations from files, for reports: what a run played, what a synthesis made, or chats of real people.

Three kinds of source are read:

- the folder of a run: its `transcripts.jsonl`, those of all processes; of a training, the test conversations alone;
- rows with `messages`: whole chats, the lines of `transcripts.jsonl` among them. `ended_by` and `user` are read if they
  are there. A goal comes from the row (`single_turn_prompt` and so on), or from the task by the id in `goal`;
- any other source of `collab.datamodules.conversations`: of each conversation the longest path, with the best reply of
  its last turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from collab.conversation import Conversation, Goal
from collab.datamodules.conversations import conversation_of, load_groups, whole_chats
from collab.datamodules.readers import json_lines, path_of, read_rows
from collab.datamodules.rows import COMPLETION, PROMPT, Row, checked, derived_id, field_of, metadata_of, unwrapped
from collab.util.errors import BadInput

_MESSAGES = "messages"


def load_chats(source: str | Path, key: str, goals: Iterable[Goal] = ()) -> list[Conversation]:
    """All conversations of a source, in order. Those without a message by the user are left out.

    Args:
        source: A run folder, or as `load_groups` takes it.
        key: The config field that names the source, for messages.
        goals: Of the task, which lines of `transcripts.jsonl` name by their ids.

    Raises:
        BadInput: Nothing can be read there, a row breaks the rules, or there is no conversation.
    """
    folder, known = path_of(source, key), {goal.id: goal for goal in goals}
    if files := sorted(folder.glob("transcripts*.jsonl")) if folder.is_dir() else []:
        rows = [row for file in files for row in _lines(file)]
        rows = [row for row in rows if row[1].get("phase") == "test"] or rows
        found = [_chat(row, where, known) for where, row in rows]
    else:
        found = _of_rows(source, key, known)
    found = [chat for chat in found if chat.turns or chat.pending is not None]
    if not found:
        raise BadInput(
            f"{key}={source} holds no conversation in which a user says anything. Name the folder of a run, or a file "
            "with a chat in the field messages of each row."
        )
    return found


def _of_rows(source: str | Path, key: str, known: Mapping[str, Goal]) -> list[Conversation]:
    folder = path_of(source, key)
    if not folder.is_dir():
        first = next(iter(read_rows(source, "train", key)), None)
        if first is not None and _MESSAGES in unwrapped(first[1]):
            return [_chat(unwrapped(row), where, known) for where, row in read_rows(source, "train", key)]
    return whole_chats(load_groups(source, "", key))


def _lines(file: Path) -> list[tuple[str, Row]]:
    """The lines of a file of transcripts; a last line that is not finished is left out."""
    whole, _, _ = file.read_bytes().rpartition(b"\n")
    return [
        (f"{file}, {place}", checked(row, "an object", f"{file}, {place}")) for place, row in json_lines(whole, file)
    ]


def _chat(row: Row, where: str, known: Mapping[str, Goal]) -> Conversation:
    messages = field_of(row, _MESSAGES, where, "a list", "Each row must be a whole chat, as the first one is.")
    chat = conversation_of(messages, _goal(row, where, known, messages), "", lambda n: f"{where}: message {n}")
    ended, user = ("" if row.get(name) is None else field_of(row, name, where) for name in ("ended_by", "user"))
    return replace(chat, ended_by=ended, user=user)


def _goal(row: Row, where: str, known: Mapping[str, Goal], messages: object) -> Goal:
    name = str(row.get("goal") or row.get("conv_id") or derived_id(json.dumps(messages)))
    if row.get(PROMPT) is None:
        return known.get(name, Goal(name, "", ""))
    prompt, reference = (("" if row.get(n) is None else field_of(row, n, where)) for n in (PROMPT, COMPLETION))
    return Goal(name, prompt, reference, metadata_of(row, where))
