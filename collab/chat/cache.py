"""Replies of hosted models on disk: a request that was answered once is not paid for again.

SQLite from the standard library, values as JSON. The cache library that most would take, diskcache, is no longer
looked after, and reads what lies on disk with pickle (CVE-2025-69872, unfixed); all that is needed of it is a table.
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

_BUSY = 60.0  # seconds that a process waits for another one that is writing


class ReplyCache:
    """A table of replies in one file, which several processes of one machine may use at a time.

    Args:
        path: The file; made where it is not there, with its folders.
        write: False only reads.
        tell: Gets a line when replies can no longer be kept (a full disk); the run goes on without.

    Raises:
        BadInput: The file is no such table, or cannot be opened.
    """

    def __init__(self, path: Path, write: bool = True, tell: Callable[[str], None] = lambda text: None) -> None:
        self.path, self.write, self._tell = path.expanduser(), write, tell
        self._table: sqlite3.Connection | None = None
        if not write and not self.path.exists():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One thread at a time uses it, though not the one that opens it.
            self._table = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            if write:
                self._table.execute("PRAGMA journal_mode=WAL")  # readers and a writer do not wait for each other
                self._table.execute("PRAGMA synchronous=NORMAL")
                self._table.execute("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT)")
            self._table.execute("SELECT reply FROM replies WHERE request = ''").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise BadInput(
                f"cache_file={path} cannot be used for replies: {error}. Name another file, or set cache=off."
            ) from error

    def get(self, request: str) -> Reply | None:
        """The reply to the request of this name, if there is one."""
        if self._table is None:
            return None
        found = self._table.execute("SELECT reply FROM replies WHERE request = ?", (request,)).fetchone()
        if found is None:
            return None
        return Reply.of(json.loads(found[0]))

    def put(self, request: str, reply: Reply) -> None:
        """Keep a reply; where another process was faster, its reply stays."""
        if self._table is None or not self.write:
            return
        try:
            kept = json.dumps(asdict(reply))
            self._table.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (request, kept))
        except sqlite3.Error as error:
            self.write = False
            self._tell(f"{self.path}: {error}. Replies are no longer kept.")

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None


def name_of(url: str, body: Mapping[str, Any], key: RngKey) -> str:
    """Names a request: all of what is sent and where, and the sample that it is for. The API key is no part of it."""
    whole = json.dumps({"url": url, "body": body, "key": asdict(key)}, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()
