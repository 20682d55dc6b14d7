"""A study's data as files: tables, statistics and pictures, and the conversations as training reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from collab.conversation import Candidate, Conversation, Goal, Reply, Score, Turn
from collab.datamodules.conversations import as_row
from collab.study.statistics import SCALES, pictures, summarise_study, table
from collab.study.store import FINAL, Record
from collab.study.study_file import StudyConfig
from collab.util.errors import BadInput
from collab.util.files import write_json

_FORMULA = tuple("=+-@\t\r")  # a cell that begins so is a formula to a spreadsheet
_USER = (
    "You are a person who talks with a writing assistant. With its help you want to write this, of which it knows "
    "nothing yet. Document: {document}. What you want: {topic}"
)
_GREETING = "What can I do for you?"


def export(records: Sequence[Record], study: StudyConfig, folder: Path) -> list[Path]:
    """Write everything into a folder.

    Args:
        records: All participants.
        study: Its arms give the order; the first is the baseline of comparisons.
        folder: Is made if it is missing.

    Returns:
        The files.

    Raises:
        BadInput: There is no participant yet.
    """
    if not records:
        raise BadInput("Nobody has taken part yet, so there is nothing to export. Wait for the first participant.")
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for name, rows in (
        ("participants", list(map(participant_row, records))),
        ("ratings", [row for record in records for row in rating_rows(record)]),
        ("messages", [row for record in records for row in message_rows(record)]),
    ):
        frame = pd.DataFrame(rows)
        paths = [folder / f"{name}.{kind}" for kind in ("csv", "jsonl", "parquet")]
        frame.map(_harmless).to_csv(paths[0], index=False)
        _write_lines(paths[1], rows)
        frame.to_parquet(paths[2], index=False)
        files += paths
    conversations = [row for record in records if (row := conversation_row(record)) is not None]
    chats = [row for record in records if (row := user_chat(record)) is not None]
    for name, rows in (("conversations", conversations), ("user_chats", chats)):
        _write_lines(folder / f"{name}.jsonl", rows)
        files.append(folder / f"{name}.jsonl")
    statistics = summarise_study(records, study)
    write_json(folder / "statistics.json", statistics)
    (folder / "statistics.md").write_text(table(statistics), encoding="utf-8")
    files += [folder / "statistics.json", folder / "statistics.md", *pictures(records, study, statistics, folder)]
    return files


def participant_row(record: Record) -> dict[str, Any]:
    """One participant: assignment, times, final ratings, final document and comments; None for what is missing."""
    minutes = waited = None
    if record.submitted_at is not None and record.started_at is not None:
        minutes, waited = (record.submitted_at - record.started_at) / 60, seconds_waited(record) / 60
    return {
        "participant": record.id,
        "external_id": record.external_id,
        "arm": record.arm,
        "document_type": record.document,
        "topic": record.topic,
        "consented_at": _iso(record.consented_at),
        "started_at": _iso(record.started_at),
        "submitted_at": _iso(record.submitted_at),
        "turns": record.answered,
        "minutes": minutes,
        "minutes_waited": waited,
        **{f"rating_{scale}": record.ratings.get((FINAL, scale)) for scale in SCALES},
        "failed_replies": sum(reply.failures for turn in record.turns for reply in turn.replies.values()),
        **{name: record.draft(name) for name in ("document", "strengths", "weaknesses")},
    }


def seconds_waited(record: Record) -> float:
    """How long the participant has waited for replies, failed attempts included."""
    replies = ((turn.sent_at, reply) for turn in record.turns for reply in turn.replies.values())
    return sum(reply.finished_at - sent_at for sent_at, reply in replies if reply.finished_at is not None)


def rating_rows(record: Record) -> Iterator[dict[str, Any]]:
    """All ratings, those after a turn and, with `final`, those at the end."""
    for (turn, scale), value in sorted(record.ratings.items()):
        final = turn == FINAL
        number = record.answered if final else turn
        yield {
            **{"participant": record.id, "arm": record.arm, "document_type": record.document},
            **{"scale": scale, "turn": number, "final": final, "rating": value},
        }


def message_rows(record: Record) -> Iterator[dict[str, Any]]:
    """All messages in order."""
    for number, turn in enumerate(record.turns, 1):
        who = {"participant": record.id, "arm": record.arm, "turn": number}
        yield {**who, "role": "user", "text": turn.text, "at": _iso(turn.sent_at), "failed": 0}
        for reply in turn.replies.values():
            said = {"text": reply.text, "at": _iso(reply.finished_at), "failed": reply.failures}
            yield {**who, "role": "assistant", **said}


def conversation_row(record: Record) -> dict[str, Any] | None:
    """The conversation in the nested layout that `algorithm.data` reads; None if it has no reply or no final ratings.

    The topic is the goal's prompt, the final document its reference. Each reply's score is the mean of the two final
    ratings, divided by 10.
    """
    turns = _turns(record)
    if not turns or record.submitted_at is None:
        return None
    parts = {scale: record.ratings[FINAL, scale] / 10 for scale in SCALES}
    reward = sum(parts.values()) / len(parts)
    goal = Goal(f"participant-{record.id}", record.topic, record.draft("document"), {"form": record.document})
    contexts = []
    for number, turn in enumerate(turns):
        context = Conversation(goal, turns=tuple(turns[:number]), pending=turn.user)
        contexts.append((context, [Candidate(turn.reply, scores=(Score(reward, parts),), mr=reward)], 0))
    return as_row(goal.id, goal, contexts, arm=record.arm)


def user_chat(record: Record) -> dict[str, Any] | None:
    """The conversation with the roles exchanged, so that SFT learns the participant's messages; None without one."""
    turns = _turns(record)
    if not turns:
        return None
    system = _USER.format(document=record.document, topic=record.topic)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": _GREETING}]
    for turn in turns:
        messages.append({"role": "assistant", "content": turn.user})
        messages.append({"role": "user", "content": turn.reply.text})
    return {"conv_id": f"participant-{record.id}", "messages": messages[:-1]}


def _turns(record: Record) -> list[Turn]:
    found = []
    for turn in record.turns:
        for reply in turn.replies.values():
            if reply.text is not None:
                ended: Any = reply.finish_reason
                found.append(Turn(turn.text, Reply(reply.text, finish_reason=ended)))
    return found


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
