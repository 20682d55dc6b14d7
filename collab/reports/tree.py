"""Conversations as small HTML documents, for loggers that show HTML media.

A tree is a context with its candidates and their futures. Every text of a run is escaped, and a content security policy
keeps a browser from running or loading anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from collab.conversation import Conversation, Group, Message, Score

_HEAD = (
    '<!doctype html><meta charset="utf-8">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    "<style>body{font:13px/1.4 sans-serif;margin:8px;background:#fff;color:#222}p{white-space:pre-wrap;margin:2px 0}"
    "b{color:#555;font-weight:600}details{margin:2px 0 2px 14px;border-left:2px solid #ccc;padding-left:8px}"
    "summary{cursor:pointer}.good{border-color:#2a7}.bad{border-color:#c43}small{color:#555}</style>"
)


def conversation_html(record: Mapping[str, Any], goal: Mapping[str, Any]) -> str:
    """One conversation with its score and the user's hidden goal.

    Args:
        record: What `as_record` makes of a scored conversation: a line of `transcripts.jsonl`.
        goal: Its goal as plain data: a line of `goals.jsonl`.
    """
    return "".join(
        [
            _HEAD,
            _goal(goal),
            f"<p><b>R*</b> {_number(record['reward'])} <small>{_parts(record['parts'])}</small></p>",
            *(_message(message["role"], message["content"]) for message in record["messages"]),
            _end(record["ended_by"]),
        ]
    )


def group_html(group: Group) -> str:
    """A tree: the context, then each candidate with its MR, best first, and its futures with their R*."""
    best = max((candidate.mr for candidate in group.candidates if candidate.mr is not None), default=None)
    worst = min((candidate.mr for candidate in group.candidates if candidate.mr is not None), default=None)
    context = group.context.messages()
    lines = [_HEAD, _goal(asdict(group.context.goal)), *_messages(context)]
    for candidate in sorted(group.candidates, key=lambda one: _order(one.mr), reverse=True):
        mark = " class=good" if candidate.mr == best else " class=bad" if candidate.mr == worst else ""
        lines += [
            f"<details open{mark}><summary>candidate: MR {_number(candidate.mr)}</summary>",
            _message("assistant", candidate.reply.text),
            *_futures(candidate.futures, candidate.scores, len(context) + 1),
            "</details>",
        ]
    return "".join(lines)


def best_and_worst(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    """("best", group) and ("worst", group) by the mean MR of the candidates; fewer with fewer groups."""
    ordered = sorted(groups, key=mean_mr, reverse=True)
    return list(zip(("best", "worst"), [*ordered[:1], *ordered[1:][-1:]], strict=False))


def mean_mr(group: Group) -> float:
    """The mean MR of a group's candidates; minus infinity if none has one."""
    known = [candidate.mr for candidate in group.candidates if candidate.mr is not None]
    return sum(known) / len(known) if known else float("-inf")


def ends(records: Sequence[Mapping[str, Any]], count: int) -> list[tuple[str, Mapping[str, Any]]]:
    """The `count` best and the `count` worst conversations by R*, none twice; one without R* is the worst.

    Args:
        records: As of `conversation_html`.
        count: At least 1.

    Returns:
        ("best" or "worst", record), best first.
    """
    ordered = sorted(records, key=lambda record: _order(record["reward"]), reverse=True)
    best, rest = ordered[:count], ordered[count:]
    return [*(("best", record) for record in best), *(("worst", record) for record in rest[-count:])]


def _futures(futures: Sequence[Conversation], scores: Sequence[Score], start: int) -> list[str]:
    """Each future from message number `start` on."""
    lines = []
    for number, (future, score) in enumerate(zip(futures, scores, strict=True), start=1):
        lines += [
            f"<details><summary>future {number}: R* {_number(score.reward)} ",
            f"<small>{_parts(score.parts)}</small></summary>",
            *_messages(future.messages()[start:]),
            _end(future.ended_by),
            "</details>",
        ]
    return lines


def _goal(goal: Mapping[str, Any]) -> str:
    return (
        f"<details><summary>goal {escape(goal['id'])} (the policy does not see it)</summary>"
        f"<p><b>wants</b> {escape(goal['prompt'])}</p><p><b>reference</b> {escape(goal['reference'])}</p></details>"
    )


def _messages(messages: Sequence[Message]) -> list[str]:
    return [_message(message.role, message.content) for message in messages]


def _message(role: str, text: str) -> str:
    return f"<p><b>{escape(role)}</b> {escape(text)}</p>"


def _end(reason: str) -> str:
    return f"<p><small>ended by: {escape(reason or '-')}</small></p>"


def _parts(parts: Mapping[str, float | None]) -> str:
    return ", ".join(f"{escape(name)} {_number(value)}" for name, value in parts.items())


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _order(value: float | None) -> float:
    return float("-inf") if value is None else value
