"""Answers that have to have a shape: asked for, read with care, and asked for again where they do not fit.

Models that play a user or a judge answer in JSON. Some servers hold them to it (`Sampling.response_format`); most do
not, and then the object stands among prose, in a fence, or is not quite JSON. What others wrote (a policy, a user)
stands in the prompt as well and may come back in the answer, so two things keep it from being taken for something
else: `fence` puts it between lines that it cannot contain, and what a judge is to fill in is named after the same mark.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import json_repair

from collab.chat.base import ChatFailed, ChatModel, Sampling
from collab.conversation import Message
from collab.randomness import RngKey

T = TypeVar("T")

FAILED = "failed"  # the model gave no reply at all
SHAPE = "shape"  # the reply was not of the shape that was asked for
_MOST_STARTS = 8  # braces at which the beginning of an object is looked for
_LONGEST = 4000  # characters that are looked at: mending what a model repeats without end takes minutes


class Unfit(Exception):
    """A reply that cannot be taken.

    Attributes:
        kind: What is wrong, as it is counted.
        reminder: What the model is told about it.
    """

    def __init__(self, kind: str, reminder: str) -> None:
        super().__init__(f"{kind}: {reminder}")
        self.kind, self.reminder = kind, reminder


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What came of asking.

    Attributes:
        value: As the reader made it; None if no reply was fit.
        replies: All raw replies, in order.
        problems: What was wrong with each that was not taken, in order; `FAILED` where there was no reply.
    """

    value: T | None
    replies: tuple[str, ...]
    problems: tuple[str, ...]


async def ask(
    model: ChatModel,
    messages: Sequence[Message],
    sampling: Sampling,
    key: RngKey,
    read: Callable[[str], T],
    retries: int,
) -> Answer[T]:
    """Ask until a reply is fit, `1 + retries` times at most; each time with a reminder of what was wrong.

    Args:
        model: Whom to ask.
        messages: The question.
        sampling: How the reply is drawn.
        key: Randomness of the first try; each further one has its own.
        read: Makes a value of a raw reply, or raises `Unfit`.
        retries: Further tries at most.
    """
    replies: list[str] = []
    problems: list[str] = []
    asked = list(messages)
    for number in range(1 + retries):
        try:
            reply = await model.complete(asked, sampling, key if not number else key.at(role=f"{key.role}/{number}"))
        except ChatFailed:  # it has been tried again where that is of use
            problems.append(FAILED)
            break
        replies.append(reply.text)
        try:
            return Answer(read(reply.text), tuple(replies), tuple(problems))
        except Unfit as problem:
            problems.append(problem.kind)
            # The first question stays in front, and only the latest failure is shown: the prompt stays bounded.
            asked = [*messages, Message("assistant", reply.text or "..."), Message("user", problem.reminder)]
    return Answer(None, tuple(replies), tuple(problems))


def find_object(text: str, *names: str) -> dict[str, Any] | None:
    """The first JSON object in `text` that has all of `names`, as well as it can be made out; None if there is none."""
    text = text[:_LONGEST]
    starts = [match.start() for match in re.finditer(r"\{(?!\s*\{)", text)]  # of a run of braces the last
    for start in starts[:_MOST_STARTS]:
        try:
            found = json_repair.loads(text[start:])
        except (ValueError, RecursionError):  # nested too deeply to be mended
            continue
        for one in found if isinstance(found, list) else [found]:
            if isinstance(one, dict) and all(name in one for name in names):
                return one
    return None


def as_text(value: Any) -> str:
    """An entry that should be a text: what looks like a number or a word of JSON was one."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value.strip() if isinstance(value, str) else str(value) if isinstance(value, int | float) else ""


def mark(key: RngKey, *texts: str) -> str:
    """Eight hexadecimal digits that none of `texts` contains, and that nobody who does not know `key` can guess.

    The same for the same key and, but for texts that contain it, whatever the texts: a prompt that grows keeps its
    beginning.
    """
    number = 0
    while True:
        found = hashlib.blake2b(f"{key!r} {number}".encode(), digest_size=4).hexdigest()
        if not any(found in text for text in texts):
            return found
        number += 1


def fence(name: str, text: str, mark: str) -> str:
    """`text` between two lines that it cannot contain, since it does not contain `mark`."""
    return f"<{name} {mark}>\n{text}\n</{name} {mark}>"
