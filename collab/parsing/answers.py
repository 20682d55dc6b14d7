"""Are two mathematical answers the same? math-verify says so, in a process of its own.

It is kept out of this process for two reasons. It guards itself with alarms, which Python allows in the main thread
alone and which would hold up every conversation that is being played; and a policy may write `9^{9^{9^9}}`, which is
computed in C, where no alarm is heard. The other process is ended by the kernel when an answer takes more than its
share of CPU time (not of wall time, which a busy machine would make a matter of luck), and the next answer starts a new
one.

This file is also the program of that process, and imports nothing of the package.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import threading
from typing import Any

MEMORY = 4 * 2**30  # bytes of address space

_PERCENT = re.compile(r"\\?%")
_NO_PROSE = re.compile(r"\\(?:text\w*|mathrm|mbox|begin|end|operatorname)\{[^}]*\}")
# Four letters, or three beside another word or number; "3xyz" and "abc + d" are products.
_PROSE = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{4}|[A-Za-z]{3}(?=\s+\w)|(?<=[\w)}\]$]\s)[A-Za-z]{3}(?![A-Za-z]))")
_WORD = re.compile(r"[A-Za-z]{3,}")
_AMOUNT = re.compile(r"([-+$\d.,/ ]*\d)\s*[A-Za-z ]+\.?")  # a number and its unit


class AnswerChecker:
    """Compares answers, one at a time; safe to share between threads. The process starts with the first answer.

    Args:
        cpu_seconds: CPU time that one answer may take; one that takes more is wrong.
    """

    def __init__(self, cpu_seconds: float = 5.0) -> None:
        self.cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def same(self, reference: str, answer: str) -> bool:
        """Whether the answer that ends a text equals the reference; an answer that is too costly to read does not."""
        return bool(self._ask(reference, answer))

    def decide(self, reference: str, answer: str) -> bool | None:
        """As `same`; None where that cannot be told: one of them has no mathematics in it, or too costly ones."""
        found = self._ask(reference, answer)
        if found or found is None:
            return found
        return False if self.readable(reference) else None

    def readable(self, reference: str) -> bool:
        """Whether the reference is an answer that others can be compared with."""
        return bool(self._ask(reference, None))

    def _ask(self, *request: str | None) -> Any:
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                self._process = process = self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                found = process.stdout.readline()
            except BrokenPipeError:
                found = ""
            if found.endswith("\n"):
                return json.loads(found)
            process.communicate()
            self._process, code = None, process.returncode
            if code > 0:  # it says what is wrong with it; a signal is the answer's doing
                raise RuntimeError(f"math-verify's process ended with status {code}.")
            return None

    def close(self) -> None:
        """End the process; another answer would start a new one."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.communicate()
                self._process = None

    def _start(self) -> subprocess.Popen[str]:
        # -P: the folder of this file must not become a place to import from
        command = [sys.executable, "-P", __file__, str(self.cpu_seconds)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


CHECKER = AnswerChecker()  # one process for all metrics and data
atexit.register(CHECKER.close)


def serve(cpu_seconds: float) -> None:
    """Answer the requests of standard input, a JSON list `[reference, text]` a line, until it ends."""
    import logging
    import os
    import resource
    import signal

    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of standard input tells when to stop
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # nobody handles its signal, so it ends the process
        reference, text = json.loads(line)
        found: bool | None
        try:
            wanted = parse(boxed(reference), parsing_timeout=None)
            if text is None:
                # What was not understood is a text; a repeating decimal is compared as such.
                found = any(not isinstance(one, str) for one in wanted) or "\\overline" in reference
            else:
                given = parse(_PERCENT.sub("", text), parsing_timeout=None)
                found = verify(wanted, given, timeout_seconds=None) if given else None
        except (MemoryError, RecursionError):
            found = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(found) + "\n")
        replies.flush()


def boxed(reference: str) -> str:
    """A reference as math-verify reads all of it, not only its last number: in a box, without percent signs or a unit.

    Words have to be in `\\text{}`, since letters side by side are factors; a single word is put there. With others than
    a unit, the box is empty.
    """
    answer = _PERCENT.sub("", reference).strip()
    if _WORD.fullmatch(answer):
        answer = f"\\text{{{answer}}}"
    elif _PROSE.search(_NO_PROSE.sub("", answer)):
        answer = amount[1] if (amount := _AMOUNT.fullmatch(answer)) else ""
    return f"\\boxed{{{answer}}}"


if __name__ == "__main__":
    serve(float(sys.argv[1]))
