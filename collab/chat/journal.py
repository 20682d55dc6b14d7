"""The replies of one run on disk (policy, users, judges), so that a resumed run does not ask for them again.

A scope is a phase of the run with one state of the policy, such as the rollout of step 3. Within a scope, a request is
its key, messages and sampling. A step that is repeated after an interruption goes through the same conversations, and
asks only for the replies that are missing.

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
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from collab.chat.base import ChatModel, Sampling
from collab.conversation import Message, Reply
from collab.randomness import RngKey
from collab.util.files import cut_torn_line, naming

_STEP = re.compile(r"(?:train|val)-(\d+)\.")


class Journal:
    """The replies of the open scope.

    Args:
        folder: Folder of the journal's files; created with the first scope.
        rank: Global rank of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self._replies: dict[str, Reply] = {}
        self._file: Any = None

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Open the scope `name`: a phase and the number of its step, or the name of its policy."""
        name = quote(name, safe="")  # people choose the names of policies
        self._replies = {}
        for file in sorted(self.folder.glob(f"{name}.rank*.jsonl")):
            for line in file.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                    self._replies[row["request"]] = Reply.of(row["reply"])
                except (ValueError, LookupError, TypeError):
                    pass  # the line was torn, or the disk damaged it: that reply is asked for again
        own = self.folder / f"{name}.rank{self.rank}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        cut_torn_line(own)
        with own.open("ab", buffering=0) as self._file:  # each line is one write
            try:
                yield
            finally:
                self._replies = {}

    def get(self, request: str) -> Reply | None:
        return self._replies.get(request)

    def put(self, request: str, reply: Reply) -> None:
        self._replies[request] = reply
        row = {"request": request, "reply": asdict(reply)}
        with naming(Path(self._file.name)):
            self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")

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
