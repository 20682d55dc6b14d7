"""Commands that build on each other, each one that could be typed, run into one folder.

A step's command is recorded in `<folder>/<step>.json` when it starts and what it prints is in `<folder>/<step>.log`, so
the same call goes on where it was stopped: what is finished is skipped, what was cut off is begun again, and a step
that was made with another command is refused. Independent steps run beside each other, each on its share of the cores:
decoding a small model is bound by the calls of its kernels as much as by arithmetic, so two processes of one thread get
more done than one of two.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collab.util.errors import BadInput
from collab.util.files import only_writer, write_json

ROOT = Path(__file__).parents[1]
POLL = 0.2  # seconds between two looks at what runs
_TAIL = 15  # lines of the log of a step that failed


@dataclass(frozen=True)
class Step:
    """One command, and what it has to wait for.

    Attributes:
        name: Its folder in that of all steps, and the name of its log and record.
        command: What follows `python`; it writes into that folder.
        needs: Steps that have to be finished before.
        resumes: The command itself goes on where it was interrupted; else what is there is deleted before.
        sweep: (key, values) of a Hydra sweep: a job for each value, in a folder of that name; the command is given the
            values whose folder has no results.json.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    resumes: bool = False
    sweep: tuple[str, tuple[int, ...]] | None = None

    def typed(self, folder: Path | None = None) -> tuple[str, ...]:
        """The command with its sweep: all of it, or the jobs that a folder of steps lacks."""
        if self.sweep is None:
            return self.command
        key, values = self.sweep
        if folder is not None:
            values = tuple(v for v in values if not (folder / self.name / str(v) / "results.json").is_file())
        return (*self.command, f"{key}={','.join(map(str, values))}")

    def shown(self) -> str:
        """As one would type it."""
        return shlex.join(("python", *self.typed()))


class StepFailed(Exception):
    """A command ended with an error; says which, and the end of its log."""


# --- what is there ---------------------------------------------------------------------------------------------------


def output_folder(given: Path) -> Path:
    """The folder of all steps as the commands have it: relative to the repository where it is inside.

    Raises:
        BadInput: Its name would need quotes in an override.
    """
    folder = given.expanduser().resolve()
    folder = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    if not re.fullmatch(r"[\w./-]+", str(folder)):
        raise BadInput(
            f"--output ({folder}) must have nothing but letters, digits and . _ - / in its name: it becomes a part of "
            "overrides. Name another folder."
        )
    return folder


def records(steps: Sequence[Step], folder: Path) -> dict[str, dict[str, Any]]:
    """Step -> its record, of those that were ever started in the folder.

    Raises:
        BadInput: A step was made with another command, or its folder without a record.
    """
    found = {}
    for step in steps:
        file, made = ROOT / folder / f"{step.name}.json", (ROOT / folder / step.name).exists()
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if record is None and made:
            raise BadInput(
                f"{folder / step.name} is there, and {step.name}.json, which says what made it, is not. Name another "
                "folder by --output, or delete it."
            )
        if record and made:  # else it was refused before it made anything
            there, here = shlex.split(record["command"]), shlex.split(step.shown())
            if there != here:
                old, new = [w for w in there if w not in here], [w for w in here if w not in there]
                raise BadInput(
                    f"{folder / step.name} was made with another command: '{shlex.join(old)}' there, "
                    f"'{shlex.join(new)}' here. Name another folder by --output, take the options that this one was "
                    f"made with, or delete {folder / step.name} and its .json."
                )
            found[step.name] = record
    return found


def finished(steps: Sequence[Step], there: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Names of the steps that are finished and whose needs are, so that none is left over from an earlier input."""
    done: set[str] = set()
    for step in steps:  # needs come first
        if there.get(step.name, {}).get("finished") and done.issuperset(step.needs):
            done.add(step.name)
    return done


def wall_seconds(there: Mapping[str, Mapping[str, Any]]) -> float:
    """Seconds in which at least one step ran."""
    total, until = 0.0, 0.0
    for start, end in sorted(tuple(span) for record in there.values() for span in record["spans"]):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def step_seconds(record: Mapping[str, Any]) -> float:
    """Seconds in which a step ran."""
    return sum(end - start for start, end in record["spans"])


def account(there: Mapping[str, Mapping[str, Any]], place: str) -> str:
    """By what commit, where and in what time the steps were made, and each one's command, in Markdown."""
    steps = (
        f"| `{name}` | {record['commit'] or 'unknown'} | {in_words(step_seconds(record))} | {record['threads']} "
        f"| `{record['command']}` |"
        for name, record in there.items()
    )
    head = f"{place}; {in_words(wall_seconds(there))} of wall time."
    return "\n".join([head, "", "| step | commit | time | threads | command |", "|---|---|---:|---:|---|", *steps, ""])


def publish(folder: Path, files: Sequence[str], into: str = "") -> None:
    """Copy pages and their data from a folder, as `output_folder` gives it, into docs/results/, or a folder there."""
    results = Path("docs") / "results" / into
    (ROOT / results).mkdir(exist_ok=True)
    for file in files:
        shutil.copyfile(ROOT / folder / file, ROOT / results / file)
        print(results / file)


def in_words(seconds: float) -> str:
    """1 h 2 min, 2 min 3 s, 4 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def commit() -> str:
    """Of the repository, with -dirty where files differ from it; "" outside a clone."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine() -> str:
    """Cores that we may use, what they can, and the versions that figures depend on."""
    import torch
    import transformers

    return (
        f"CPU with {cores()} cores ({torch.backends.cpu.get_cpu_capability()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


# --- running ---------------------------------------------------------------------------------------------------------


def run_steps(steps: Sequence[Step], folder: Path, jobs: int) -> dict[str, dict[str, Any]]:
    """Run what is not finished, `jobs` at a time, those named first first.

    Args:
        steps: Each after those that it needs.
        folder: As `output_folder` gives it.
        jobs: Commands at a time. The last step alone has all cores, the others share them out.

    Returns:
        Step -> its record: `command`, `commit`, `threads`, `spans` ([[start, end], ..], seconds since the epoch).

    Raises:
        BadInput: As `records`; or another process is at it.
        StepFailed: A command failed. What ran beside it is finished first, nothing else is started.
    """
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    with only_writer(ROOT / folder, ".lock"), ended_by_sigterm():
        there = records(steps, folder)
        done = finished(steps, there)
        for name in sorted(done):
            _say(f"{name}: finished before")
        waiting = [step for step in steps if step.name not in done]
        running: dict[str, _Running] = {}
        failed: list[str] = []
        try:
            while running or (waiting and not failed):
                for step in list(waiting):
                    if len(running) < jobs and not failed and done.issuperset(step.needs):
                        waiting.remove(step)
                        alone = not running and not waiting
                        running[step.name] = _Running(step, folder, cores() if alone else max(1, cores() // jobs))
                time.sleep(POLL)
                for name in [name for name, one in running.items() if one.process.poll() is not None]:
                    one = running.pop(name)
                    if one.close():
                        done.add(name)
                        _say(f"{name}: done in {in_words(step_seconds(one.record))}")
                    else:
                        failed.append(one.complaint())
                        _say(f"{name}: FAILED")
        finally:
            for one in running.values():
                one.stop()
        if failed:
            raise StepFailed("\n".join(failed))
        return records(steps, folder)


class _Running:
    """A step while it runs."""

    def __init__(self, step: Step, folder: Path, threads: int) -> None:
        self.step, self.folder = step, folder
        file = ROOT / folder / f"{step.name}.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"spans": []}
        goes_on = step.resumes or step.sweep
        self.record: dict[str, Any] = {
            "command": step.shown(),
            "commit": commit(),
            "threads": threads,
            "finished": False,
            "spans": before["spans"] if goes_on else [],
        }
        if not goes_on and (ROOT / folder / step.name).exists():
            shutil.rmtree(ROOT / folder / step.name)
        for value in step.sweep[1] if step.sweep else ():
            if not (ROOT / folder / step.name / str(value) / "results.json").is_file():
                shutil.rmtree(ROOT / folder / step.name / str(value), ignore_errors=True)
        self._file, self._started = file, time.time()
        write_json(file, self.record)
        self.log = ROOT / folder / f"{step.name}.log"
        command = step.typed(ROOT / folder)
        _say(f"{step.name}: {shlex.join(('python', *command))}")
        with self.log.open("ab" if goes_on else "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a sweep's jobs are processes of their own: they are stopped with it
            )

    def close(self) -> bool:
        """Write down how it ended; whether it is finished."""
        self.record["spans"].append([self._started, time.time()])
        self.record["finished"] = self.process.returncode == 0
        write_json(self._file, self.record)
        return self.record["finished"]

    def stop(self) -> None:
        """End it and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.close()

    def complaint(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        end = "\n".join(f"  {line}" for line in lines)
        return (
            f"{self.step.name} ended with exit status {self.process.returncode}:\n{end}\n"
            f"All that it said: {self.folder / self.log.name}. The same call goes on from here."
        )


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that what runs is stopped too."""

    def leave(*_: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def listing(steps: Sequence[Step], folder: Path) -> str:
    """What a call would do, for `--dry-run`."""
    done = finished(steps, records(steps, folder))
    lines = []
    for step in steps:
        after = f", after {' and '.join(step.needs)}" if step.needs else ""
        lines.append(f"# {step.name}: {'finished' if step.name in done else f'to be run{after}'}\n{step.shown()}")
    return "\n".join(lines)
