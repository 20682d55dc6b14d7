"""The replies of one run on disk (policy, users, judges), so that a resumed run does not ask for them again.

A scope is a phase of the run with one state of the policy, such as the rollout of step 3. Within a scope, a request is
its key, messages and sampling. A step that is repeated after an interruption goes through the same conversations, and
asks only for the replies that are missing. Several scopes may be open at once (`rollout.max_staleness`): which one a
reply belongs to follows from the asyncio task that asks, since a task inherits the scope that it was started in.

There is a file of JSON lines for each scope and process. A process reads the files of all processes, since a goal may
move to another one when the run is resumed. Each line is handed to the operating system at once and so survives
`kill -9`. Lines are not synced one by one, so the last ones may be lost when the machine goes down.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from collab.chat.base import ChatModel, Sampling
from collab.conversation import Message, Reply
from collab.randomness import RngKey
from collab.util.files import cut_torn_line, naming

_STEP = re.compile(r"(?:train|val)-(\d+)\.")


@dataclass(frozen=True)
class _Scope:
    replies: dict[str, Reply]
    file: Any  # of this process


_open: ContextVar[_Scope] = ContextVar("open scope of the journal")


class Journal:
    """The replies of the open scopes.

    Args:
        folder: Folder of the journal's files; created with the first scope.
        rank: Global rank of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Open the scope `name`: a phase and the number of its step, or the name of its policy.

        It is open for what runs within, and for the asyncio tasks that are started there.
        """
        name = quote(name, safe="")  # people choose the names of policies
        replies: dict[str, Reply] = {}
        for path in sorted(self.folder.glob(f"{name}.rank*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                    replies[row["request"]] = Reply.of(row["reply"])
                except (ValueError, LookupError, TypeError):
                    pass  # the line was torn, or the disk damaged it: that reply is asked for again
        own = self.folder / f"{name}.rank{self.rank}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        cut_torn_line(own)
        with own.open("ab", buffering=0) as file:  # each line is one write
            before = _open.set(_Scope(replies, file))
            try:
                yield
            finally:
                _open.reset(before)

    def get(self, request: str) -> Reply | None:
        return _open.get().replies.get(request)

    def put(self, request: str, reply: Reply) -> None:
        scope = _open.get()
        scope.replies[request] = reply
        row = {"request": request, "reply": asdict(reply)}
        with naming(Path(scope.file.name)):
            scope.file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")

    def forget(self, step: int) -> None:
        """Delete what a run that resumes from `step` or later does not need. One process does it for all."""
        for file in self.folder.glob("*.jsonl"):
            scope = _STEP.match(file.name)
            if scope and int(scope[1]) <= step:
                file.unlink(missing_ok=True)


class Journalled:
    """A `ChatModel` whose replies go into the open scope of a journal.

    Args:
        model: Who speaks.
        journal: The run's journal.
    """

    def __init__(self, model: ChatModel, journal: Journal) -> None:
        self.model, self.journal = model, journal

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        """The reply in the journal. If there is none, the model is asked, and its reply is written there."""
        said = [(message.role, message.content, message.token_ids) for message in messages]
        request = hashlib.blake2b(repr((key, said, sampling)).encode(), digest_size=16).hexdigest()
        reply = self.journal.get(request)
        if reply is None:
            reply = await self.model.complete(messages, sampling, key)
            self.journal.put(request, reply)
        return reply
