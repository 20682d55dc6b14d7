"""A side of a comparison that runs in a process of its own and answers in lines of JSON; `peers/wire.py` is its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class PeerFailed(Exception):
    """A peer could not be installed or started, or did not do what it was asked."""


class Peer:
    """Starts a script and waits until it has loaded what it needs.

    Args:
        python: Interpreter of the peer's environment.
        script: What to run; it calls `wire.answer`.
        arguments: For the script, as one JSON object.
        environment: Variables to set, or with None to unset, in its environment.
        log: Takes its stderr.

    Attributes:
        told: What the script said of itself when it was ready.

    Raises:
        PeerFailed: It ended or reported an error instead.
    """

    def __init__(
        self,
        python: str | Path,
        script: Path,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str | None],
        log: Path,
    ) -> None:
        self.name, self.log = script.stem, log
        variables = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [str(python), str(script), json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=variables,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # so that its own children can be ended with it
            )
        try:
            self.told = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One operation of the script; its result.

        Raises:
            PeerFailed: It reported an error, or it has ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: there will be no answer
            self._process.stdin.write(json.dumps({"do": operation, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process and whatever it started."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(f"{self.name} ended without an answer. What it said: {self.log}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise PeerFailed(f"{self.name}: {found['error']} More: {self.log}")
        return found
