"""Replies that are being written. They are written to their end and stored, whether or not anybody reads along."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Literal

from starlette.concurrency import run_in_threadpool

from collab.chat.base import ContextFull
from collab.chat.budget import BudgetExhausted
from collab.study.assistants import Assistant
from collab.study.store import Record, Store


class Writing:
    """A reply that is being written.

    Attributes:
        text: So far.
        state: Whether it has ended, and how; full: the conversation is too long for the model.
    """

    def __init__(self) -> None:
        self.text = ""
        self.state: Literal["writing", "done", "failed", "full"] = "writing"
        self._changed = asyncio.Event()

    def tell(self, text: str) -> None:
        if self.state == "writing" and text != self.text:
            self.text = text
            self._wake()

    def end(self, state: Literal["done", "failed", "full"], text: str = "") -> None:
        self.state, self.text = state, text
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def texts(self) -> AsyncIterator[str]:
        """The text so far, after each change, until the end."""
        while True:
            changed = self._changed
            yield self.text
            if self.state != "writing":
                return
            await changed.wait()


class Writers:
    """All replies that are being written.

    Args:
        store: Gets whole replies, and failures.
        assistants: Name of the arm -> who speaks.

    Attributes:
        spent: Arms that do not answer any more, since a reply could cost more than is left of the budget.
    """

    def __init__(self, store: Store, assistants: dict[str, Assistant]) -> None:
        self._store, self.assistants = store, assistants
        self.spent: set[str] = set()
        self._writing: dict[tuple[int, str], Writing] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, participant: int, arm: str) -> Writing | None:
        """What an arm is writing for a participant."""
        return self._writing.get((participant, arm))

    def start(self, record: Record, arm: str) -> Writing:
        """Answer the last message of a participant."""
        if (there := self.of(record.id, arm)) is not None:
            return there
        writing = self._writing[record.id, arm] = Writing()
        task = asyncio.create_task(self._write(record, arm, writing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return writing

    async def _write(self, record: Record, arm: str, writing: Writing) -> None:
        *earlier, last = record.turns
        history = [(turn.text, text) for turn in earlier if (text := turn.replies[arm].text) is not None]
        turn, attempt = len(record.turns), last.replies[arm].failures
        end: tuple[Literal["done", "failed", "full"], str] = "failed", ""
        try:
            reply = await self.assistants[arm].reply(history, last.text, record.id, writing.tell, attempt)
            text, reason = clean(reply.text), reply.finish_reason
            stored = await run_in_threadpool(self._store.add_reply, record.id, turn, arm, last.text, text, reason)
            if stored is not None:
                end = "done", stored
        except Exception as error:  # whatever it is, the participant is told and goes on
            # Not the error's text: a server may repeat there what the participant wrote.
            status = re.search(r"\bHTTP \d{3}\b", str(error))
            said = type(error).__name__ + (f", {status[0]}" if status else "")
            if isinstance(error, BudgetExhausted):
                self.spent.add(arm)
                said = "the budget is used up; raise it in the study file, and start the server again"
            print(f"{arm}: a reply failed ({said})", file=sys.stderr, flush=True)
            if isinstance(error, ContextFull):
                end = "full", ""
            with suppress(Exception):  # a database that is away: whoever waits for the reply is told all the same
                await run_in_threadpool(self._store.add_failure, record.id, turn, arm)
        finally:
            del self._writing[record.id, arm]
            writing.end(*end)


def clean(text: str) -> str:
    """A text that any database can store: without null characters and halves of surrogate pairs."""
    return text.replace("\0", "").encode(errors="replace").decode()
