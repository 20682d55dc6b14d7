"""Are two mathematical answers the same? math-verify decides, in a process of its own.

There are two reasons for the process. math-verify limits its time by alarms, which Python allows in the main thread
only and which would hold up all conversations. And a policy may write `9^{9^{9^9}}`, whose power is computed in C,
where alarms do not arrive. The kernel ends the process when an answer takes too much CPU time, and the next answer
starts a new process. Wall time would depend on the load of the machine.

This file is also the program of that process, so it imports nothing of the package.
"""

from __future__ import annotations

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
    """Compares answers, one at a time; threads may share it. The process starts with the first answer and ends with us.

    Args:
        cpu_seconds: CPU time for one answer. One that takes more is wrong.
    """

    def __init__(self, cpu_seconds: float = 5.0) -> None:
        self.cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def same(self, reference: str, answer: str) -> bool:
        """Whether the answer at the end of a text equals the reference. False if it is too costly to read."""
        return bool(self._ask(reference, answer))

    def decide(self, reference: str, answer: str) -> bool | None:
        """As `same`, but None if math-verify cannot tell: one of them is not mathematics, or is too costly."""
        equal = self._ask(reference, answer)
        if equal is False and not self.readable(reference):
            return None
        return equal

    def readable(self, reference: str) -> bool:
        """Whether answers can be compared with this reference."""
        return bool(self._ask(reference, None))

    def _ask(self, *request: str | None) -> Any:
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                # -P: do not import from the folder of this file
                command = [sys.executable, "-P", __file__, str(self.cpu_seconds)]
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
                self._process = process
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if reply.endswith("\n"):
                return json.loads(reply)
            process.communicate()
            self._process, code = None, process.returncode
            if code > 0:  # the process itself is broken, and has printed why; a costly answer ends it by a signal
                raise RuntimeError(f"math-verify's process ended with status {code}.")
            return None


CHECKER = AnswerChecker()  # one process for all metrics and data


def serve(cpu_seconds: float) -> None:
    """Answer the requests of standard input until it ends. A request is a line with a JSON list `[reference, text]`."""
    import logging
    import os
    import resource
    import signal

    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that nothing a library prints counts as a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of standard input ends the process
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # its signal ends the process
        reference, text = json.loads(line)
        result: bool | None
        try:
            wanted = parse(boxed(reference), parsing_timeout=None)
            if text is None:
                # What math-verify does not understand stays a text. Repeating decimals are compared as texts.
                result = any(not isinstance(one, str) for one in wanted) or "\\overline" in reference
            else:
                given = parse(_PERCENT.sub("", text), parsing_timeout=None)
                result = verify(wanted, given, timeout_seconds=None) if given else None
        except (MemoryError, RecursionError):
            result = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(result) + "\n")
        replies.flush()


def boxed(reference: str) -> str:
    """Put a reference into a box, so that math-verify reads all of it, without percent signs or a unit.

    Letters side by side would be factors, so a single word goes into `\\text{}`. Other prose gives an empty box.
    """
    answer = _PERCENT.sub("", reference).strip()
    if _WORD.fullmatch(answer):
        answer = f"\\text{{{answer}}}"
    elif _PROSE.search(_NO_PROSE.sub("", answer)):
        answer = amount[1] if (amount := _AMOUNT.fullmatch(answer)) else ""
    return f"\\boxed{{{answer}}}"


if __name__ == "__main__":
    serve(float(sys.argv[1]))
