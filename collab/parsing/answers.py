"""Whether two answers are the same. Plain ones are compared exactly; for others math-verify decides, in a process.

There are two reasons for the process. math-verify limits its time by alarms, which Python allows in the main thread
only and which would hold up all conversations. And a policy may write `9^{9^{9^9}}`, whose power is computed in C,
where alarms do not arrive. The kernel ends the process when an answer takes too much CPU time, and the next answer
starts a new process. Wall time would depend on the load of the machine.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from collab.parsing.plain_values import Value, boxed_content, stated_value, tidy, value_of, word_of

_PERCENT = re.compile(r"\\?%")
_NO_PROSE = re.compile(r"\\(?:text\w*|mathrm|mbox|begin|end|operatorname)\{[^}]*\}")
# Four letters, or three beside another word or number; "3xyz" and "abc + d" are products.
_PROSE = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{4}|[A-Za-z]{3}(?=\s+\w)|(?<=[\w)}\]$]\s)[A-Za-z]{3}(?![A-Za-z]))")
_WORD = re.compile(r"[A-Za-z]{3,}")
_AMOUNT = re.compile(r"([-+$\d.,/ ]*\d)\s*[A-Za-z ]+\.?")  # a number and its unit
# Dates, ranges, amounts in two units, ratios of three, lists in words: math-verify would take them for a calculation.
_MISREAD = re.compile(r"\d\s*([-/:])\s*\d+\s*\1\s*\d|\d\s*[\u2010-\u2015]\s*\d|\d\s*(?!\bx\b)[A-Za-z]{2,}\.?,?\s+\d")


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
        return bool(self._compare(reference, answer))

    def decide(self, reference: str, answer: str) -> bool | None:
        """As `same`, but None if no rule can tell: one of them is not mathematics, or is too costly."""
        equal = self._compare(reference, answer)
        if equal is False and not self.readable(reference):
            return None
        return equal

    def readable(self, reference: str) -> bool:
        """Whether answers can be compared with this reference."""
        if plain_reference(reference) is not None:
            return True
        if "\\" not in reference and _MISREAD.search(tidy(reference)):
            return False
        return bool(self._ask(boxed(reference), None))

    def _compare(self, reference: str, answer: str) -> bool | None:
        wanted = plain_reference(reference)
        if wanted is None:
            return self._ask(boxed(reference), _without_marks(answer))
        stated = stated_value(answer, wanted.kind)
        if stated is not None and wanted.equals(stated):
            return True
        if stated is not None and (wanted.kind != "word" or boxed_content(answer) is not None):
            return False
        if wanted.kind == "time":  # math-verify would divide the hours by the minutes
            return None
        return self._ask(boxed(wanted.latex if wanted.kind == "number" else reference), _without_marks(answer))

    def _ask(self, *request: str | None) -> Any:
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                # -P: do not import from the folder of this file
                command = [sys.executable, "-P", str(_PROCESS), str(self.cpu_seconds)]
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


_PROCESS = Path(__file__).with_name("math_verify_process.py")
CHECKER = AnswerChecker()  # one process for all metrics and data


def plain_reference(reference: str) -> Value | None:
    """The reference as a plain value; None if it is mathematics, or cannot be read."""
    return value_of(reference) or word_of(reference)


def _without_marks(text: str) -> str:
    return _PERCENT.sub("", tidy(text)).replace("\\$", "")


def boxed(reference: str) -> str:
    """Put a reference into a box, so that math-verify reads all of it, without percent signs or a unit.

    Letters side by side would be factors, so a single word goes into `\\text{}`. Other prose gives an empty box.
    """
    answer = _without_marks(reference).strip()
    if _WORD.fullmatch(answer):
        answer = f"\\text{{{answer}}}"
    elif _PROSE.search(_NO_PROSE.sub("", answer)):
        answer = amount[1] if (amount := _AMOUNT.fullmatch(answer)) else ""
    return f"\\boxed{{{answer}}}"
