"""What the parts of the GPU check share: where they run, processes that can be ended, and figures."""

from __future__ import annotations

import math
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.steps import ROOT

Figures = Iterator["Figure"]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: A number or a word; None if it could not be measured. NaN and infinity go to the note: JSON has neither.
        unit: Of a number.
        ok: Whether a check holds; None if nothing is checked.
        note: What is checked, or why there is no value.
    """

    name: str
    value: float | str | None
    unit: str = ""
    ok: bool | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.value, float) and not math.isfinite(self.value):
            object.__setattr__(self, "note", f"{self.value}; {self.note}" if self.note else str(self.value))
            object.__setattr__(self, "value", None)

    def text(self) -> str:
        value = "-" if self.value is None else f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{value} {self.unit}".strip()


@dataclass(frozen=True)
class Check:
    """Where and how the parts run.

    Attributes:
        device: cpu or cuda. On a CPU all models are tiny, and so is all else: a rehearsal.
        scratch: A folder for all that the check writes; its `weights.txt` says which weights the default model has.
        fork: Processes are forks, which saves a rehearsal their imports.
        tokenizer: Folder with SmolLM2's config and tokenizer, if `--site` has it.
    """

    device: str
    scratch: str
    fork: bool = False
    tokenizer: str | None = None

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    @property
    def folder(self) -> Path:
        return Path(self.scratch)

    @property
    def dtype(self) -> Any:
        import torch

        return torch.float32 if self.tiny else torch.bfloat16

    def size(self, name: str) -> str:
        """The key of `models.SIZES` to use for a size."""
        return "tiny" if self.tiny else name

    def random_weights(self) -> bool:
        return "random" in (self.folder / "weights.txt").read_text(encoding="utf-8")


class Child:
    """`python` in a process of its own, whose output goes to the end of a file.

    Args:
        command: A script or `-m` and a module, and their arguments.
        log: That file.
        variables: Environment variables to set.
        fork: Run the command in a fork of this process, with the modules that this one has imported.
        group: Give the process a group of its own, which `kill` ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        variables: Mapping[str, str] | None = None,
        fork: bool = False,
        group: bool = False,
    ) -> None:
        self._group = group
        self._code: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        environment = {**os.environ, **(variables or {})}
        if fork:
            self.pid = os.fork()
            if not self.pid:
                _forked(command, log, environment, group)
            return
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=group,
            )
        self.pid = self._popen.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self._popen is not None:
            return self._popen.poll()
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, seconds: float = 3600) -> int | None:
        """The exit status; None if it still runs after that time."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        return self.poll()

    def kill(self) -> None:
        """End it at once, with its group if it has one; what it has started elsewhere stays."""
        kill = os.killpg if self._group else os.kill
        if self._group or self.poll() is None:
            try:
                kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.wait(30)


def _forked(command: Sequence[str], log: Path, environment: Mapping[str, str], group: bool) -> None:
    """The life of a forked process."""
    code = 1
    try:
        if group:
            os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        os.chdir(ROOT)
        module = command[1] if command[0] == "-m" else None
        sys.argv = list(command[1:] if module else command)
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def last_lines(log: Path, count: int = 1) -> str:
    """The end of what a process printed."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-count:])


def tried(name: str, figures: Callable[[], Iterable[Figure]]) -> Figures:
    """The figures of one step; an exception becomes a failed figure, and the steps after it go on."""
    try:
        yield from figures()
    except Exception as error:
        traceback.print_exc()
        yield Figure(name, None, ok=False, note=what(error))


def what(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
