"""Replies of hosted models on disk: no run of this machine pays twice for the same request.

One table in SQLite from the standard library, values as JSON. The usual cache library, diskcache, is no longer
maintained and reads files with pickle (CVE-2025-69872, unfixed).

The journal (`collab.chat.journal`) is another store. The cache outlives runs and may be large, so replies are read one
by one, and a run goes on without it when the disk is full. The journal belongs to one run, and the run stops when it
cannot be written. Its folder may be on a network, where SQLite must not be used.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collab.conversation import Reply
from collab.randomness import RngKey
from collab.util.errors import BadInput

_BUSY = 60.0  # seconds to wait for another process that is writing


class ReplyCache:
    """A table of replies in one file, which several processes of one machine may use at the same time.

    Args:
        path: The file; it and its folders are created if missing.
        write: False only reads.
        tell: Gets a line when replies can no longer be stored (a full disk). The run goes on.

    Raises:
        BadInput: The file is no table of replies, or cannot be opened.
    """

    def __init__(self, path: Path, write: bool = True, tell: Callable[[str], None] = lambda text: None) -> None:
        self.path, self.write, self._tell = path.expanduser(), write, tell
        self._table: sqlite3.Connection | None = None
        if not write and not self.path.exists():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Opened in one thread and used in another.
            self._table = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            if write:
                self._table.execute("PRAGMA journal_mode=WAL")  # readers and a writer do not wait for each other
                self._table.execute("PRAGMA synchronous=NORMAL")
                self._table.execute("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT)")
            self.get("")
        except (sqlite3.Error, OSError) as error:
            raise BadInput(
                f"cache_file={path} cannot be used for replies: {error}. Name another file, or set cache=off."
            ) from error

    def get(self, request: str) -> Reply | None:
        """The stored reply to the request of this name."""
        if self._table is None:
            return None
        row = self._table.execute("SELECT reply FROM replies WHERE request = ?", (request,)).fetchone()
        return Reply.of(json.loads(row[0])) if row else None

    def put(self, request: str, reply: Reply) -> None:
        """Store a reply, unless the request has one already."""
        if self._table is None or not self.write:
            return
        try:
            self._table.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (request, json.dumps(asdict(reply))))
        except sqlite3.Error as error:
            self.write = False
            self._tell(f"{self.path}: {error}. Replies are no longer stored.")

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None


def name_of(url: str, body: Mapping[str, Any], key: RngKey) -> str:
    """The name of a request: a hash of address, body and sample. The API key has no part in it."""
    whole = json.dumps({"url": url, "body": body, "key": asdict(key)}, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()
