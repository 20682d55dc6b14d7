"""Answers of a required shape: asked for, parsed leniently, and asked for again if they are malformed.

Models that play a user or a judge answer in JSON. The local engine and many servers hold them to a schema
(`Sampling.schema`). Others put the object among prose or in a code fence, or write what is not quite JSON. The prompt
also has text of others (a policy, a user), which may come back in the answer. Two things keep such text from being read
as an answer or an instruction: `fence` puts it between lines that it cannot contain, and the fields that a judge fills
in are named by the same mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import json_repair

from collab.chat.base import CONTEXT_FULL, ChatFailed, ChatModel, ContextFull, Sampling
from collab.conversation import Message
from collab.randomness import RngKey

T = TypeVar("T")

FAILED = "failed"  # the model gave no reply at all
SHAPE = "shape"  # the reply did not have the required shape
_MOST_STARTS = 8  # opening braces that are tried as the start of an object
LONGEST = 4000  # characters that are read: repairing endless repetition takes minutes


class Unfit(Exception):
    """A reply that is rejected.

    Attributes:
        kind: What is wrong; problems are counted by it.
        reminder: What the model is told; "" if it is not told, and only draws again.
    """

    def __init__(self, kind: str, reminder: str) -> None:
        super().__init__(f"{kind}: {reminder}")
        self.kind, self.reminder = kind, reminder


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The outcome of `ask`.

    Attributes:
        value: What `read` made of the accepted reply; None if all were rejected.
        replies: All raw replies, in order.
        problems: The kind of problem of each rejected reply, in order; `FAILED` if there was no reply,
            `CONTEXT_FULL` if the prompt was too long for one.
    """

    value: T | None
    replies: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def refused(self) -> tuple[tuple[str, str], ...]:
        """(problem, raw reply) of each rejected reply; "" where there was no reply."""
        return tuple(zip(self.problems, (*self.replies, ""), strict=False))


async def ask(
    model: ChatModel,
    messages: Sequence[Message],
    sampling: Sampling,
    key: RngKey,
    read: Callable[[str], T],
    retries: int,
) -> Answer[T]:
    """Ask until a reply is accepted, at most `1 + retries` times; a retry says what was wrong.

    Args:
        model: Who is asked.
        messages: The question.
        sampling: How the reply is drawn.
        key: Randomness of the first try; retries derive their own.
        read: Makes a value of a raw reply, or raises `Unfit`.
        retries: Maximum number of retries.
    """
    replies: list[str] = []
    problems: list[str] = []
    asked = list(messages)
    for number in range(1 + retries):
        try:
            reply = await model.complete(asked, sampling, key if not number else key.at(role=f"{key.role}/{number}"))
        except ChatFailed as error:  # the model has retried already
            problems.append(CONTEXT_FULL if isinstance(error, ContextFull) else FAILED)
            break
        replies.append(reply.text)
        try:
            return Answer(read(reply.text), tuple(replies), tuple(problems))
        except Unfit as problem:
            problems.append(problem.kind)
            # Only the latest rejected reply is shown, which bounds the prompt.
            if problem.reminder:
                asked = [*messages, Message("assistant", reply.text or "..."), Message("user", problem.reminder)]
    return Answer(None, tuple(replies), tuple(problems))


def find_object(text: str, *names: str) -> dict[str, Any] | None:
    """The first JSON object in `text` that has all of `names`, repaired if need be; None if there is none.

    Only the first `LONGEST` characters are read.
    """
    text = text[:LONGEST]
    starts = [match.start() for match in re.finditer(r"\{(?!\s*\{)", text)]  # the last one of adjacent braces
    for start in starts[:_MOST_STARTS]:
        try:
            value = json_repair.loads(text[start:])
        except (ValueError, RecursionError):  # nested too deeply to be repaired
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and all(name in item for name in names):
                return item
    return None


def schema_of(**fields: dict[str, Any]) -> str:
    """The schema of an object with these fields, all required, in this order, and no others."""
    return json.dumps(
        {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False},
        ensure_ascii=False,
    )


def as_text(value: Any) -> str:
    """The text of an entry; a model may write numbers and booleans without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, str | int | float) else ""


def mark(key: RngKey, *texts: str) -> str:
    """Eight hexadecimal digits that are in none of `texts`, and that cannot be guessed without `key`.

    They depend on `key` alone unless a text contains them, so the beginning of a growing prompt stays the same.
    """
    number = 0
    while True:
        digits = key.digest(4, f" {number}").hex()
        if not any(digits in text for text in texts):
            return digits
        number += 1


def fence(name: str, text: str, mark: str) -> str:
    """`text` between two lines that it cannot contain, since it does not contain `mark`."""
    return f"<{name} {mark}>\n{text}\n</{name} {mark}>"
