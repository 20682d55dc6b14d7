"""Taking up a run that was interrupted: which one, with which config, and what of it is done.

A run is a folder. `run.json` says whose it is and which phases are finished; `results.json` comes last, so a folder
that has the one and not the other is an unfinished run. No torch in this file.

What was begun and not finished is done again: training goes on from the last checkpoint
(`collab.callbacks.checkpoint`), and replies that were had since come from the journal (`collab.chat.journal`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from collab.config.endpoints import ENDPOINT_LIMITS
from collab.config.schema import Config
from collab.reports.results import PolicyScores
from collab.util.diff import changes
from collab.util.errors import BadInput, RunStopped
from collab.util.files import only_writer, write_json
from collab.util.processes import rank

STATE, CONFIG, RESULTS, JOURNAL = "run.json", "config.yaml", "results.json", "journal"
_LOCK = ".lock"

# What may be another on resume: where and how fast a run is computed, and what is told of it, never what comes out.
FREE = (
    *("output_dir", "resume", "threads", "notes", "synthesis", "checkpoint", "callbacks", "logger", "strategy"),
    *("trainer.devices", "trainer.num_nodes", "trainer.max_invalid", "engine.max_batch", "engine.cache_gib"),
    *(f"engine.{name}" for name in ("base_url", "model", "key_env", "adapters", "tolerance")),  # of a server
    *(f"engine.{name}" for name in ("connect_timeout", "read_timeout", "give_up_after")),
    *("cache", "cache_file", "budget", "dry_run"),
)


@dataclass
class RunState:
    """What `run.json` holds: everything a resumed run has to know that is in no checkpoint.

    Attributes:
        folder: Of the run.
        entry: "train" or "evaluate".
        id: Marks the checkpoints of this run and names it to W&B.
        started: When it began, as ISO 8601.
        scores: Policy -> scores, of the finished rows of the table.
        seconds: Phase -> wall time of the finished phases.
    """

    folder: Path
    entry: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    started: str = field(default_factory=lambda: datetime.now().isoformat(timespec="microseconds"))
    scores: dict[str, PolicyScores] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._earlier, self._started = sum(self.seconds.values()), time.monotonic()

    @classmethod
    def read(cls, folder: Path) -> RunState:
        """The state of the run in `folder`.

        Raises:
            BadInput: There is none, or it is broken.
        """
        try:
            found = json.loads((folder / STATE).read_bytes())
            return cls(folder, **{name: found[name] for name in ("entry", "id", "started", "scores", "seconds")})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{folder / STATE} is not as a run wrote it ({error!r}). Start a new run.") from error

    def write(self) -> None:
        """Write `run.json` in one move."""
        names = ("entry", "id", "started", "scores", "seconds")
        write_json(self.folder / STATE, {name: getattr(self, name) for name in names})

    def finish(self, phase: str, seconds: float, scores: PolicyScores | None = None) -> None:
        """A phase is finished: from now on no interruption undoes it."""
        self.seconds[phase] = seconds
        if scores is not None:
            self.scores[phase] = scores
        if rank() == 0:
            self.write()

    def elapsed(self) -> float:
        """Seconds of work so far: of this process, and of the phases that earlier ones finished."""
        return self._earlier + time.monotonic() - self._started


# --- which run -------------------------------------------------------------------------------------------------------


def find_run(composed: DictConfig, entry: str) -> Path | None:
    """The folder that `resume` asks for; None where it asks for none.

    Args:
        composed: The config of the command line.
        entry: "train" or "evaluate".

    Raises:
        BadInput: There is no such run, it is finished, or another command's.
    """
    wanted = composed.resume
    if wanted is False:
        return None
    if wanted is True:
        return _newest(composed, entry)
    if not isinstance(wanted, str) or not wanted:
        raise BadInput(f"resume ({wanted}) must be true, false, or the folder of a run. Set resume=true.")
    folder = Path(wanted).expanduser()
    if not (folder / STATE).is_file():
        what = f"has no {STATE}" if folder.is_dir() else "is not a folder"
        raise BadInput(
            f"resume={wanted} is no run to go on with: it {what}. Name the folder that a run is in, such as "
            "outputs/doc_edit/2026-01-31_12-00-00-seed1, or set resume=true for the newest unfinished one."
        )
    if (folder / RESULTS).is_file():
        raise BadInput(f"resume={wanted} is finished: it has a {RESULTS}. Leave resume out to start a new run.")
    state = RunState.read(folder)
    if state.entry != entry:
        raise BadInput(
            f"resume={wanted} is a run of the other command. Go on with it by `python {state.entry}.py "
            f"resume={wanted}`."
        )
    return folder


def _newest(composed: DictConfig, entry: str) -> Path:
    here = Path(str(composed.output_dir))  # a new folder, or the one that the command names
    beside = sorted(here.parent.iterdir()) if here.parent.is_dir() else []
    found = []
    for folder in [here] if (here / STATE).is_file() else beside:
        if not (folder / STATE).is_file() or not (folder / CONFIG).is_file() or (folder / RESULTS).is_file():
            continue
        try:
            state, config = RunState.read(folder), _saved(folder)
        except BadInput as error:
            print(f"note: {error} It is passed over.", file=sys.stderr, flush=True)
            continue
        if (state.entry, config.get("name"), config.get("seed")) == (entry, composed.name, composed.seed):
            found.append((state.started, folder))
    if not found:
        raise BadInput(
            f"resume=true finds nothing to go on with: {here.parent} has no unfinished run of {composed.name} with "
            f"seed={composed.seed}. Leave resume out to start one, or name a folder: resume=PATH."
        )
    return max(found)[1]


def resumed_overrides(folder: Path, given: Sequence[str]) -> list[str]:
    """What to type to go on: what the run in `folder` was started with, then what is typed now."""
    file = folder / ".hydra" / "overrides.yaml"
    there: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else []
    ours = ("resume=", "output_dir=", "hydra.", "hydra/", "sweep=")  # where it ran, and as what
    first = [str(text) for text in there if not str(text).lstrip("+~").startswith(ours) and text not in given]
    now = [text for text in given if not text.lstrip("+~").startswith(ours)]
    return [*first, *now]


def check_same_config(folder: Path, config: Config) -> None:
    """Hold the config of a run that goes on against that which it began with.

    Raises:
        BadInput: Fields differ on which results depend; names them.
    """
    here: Any = OmegaConf.to_container(OmegaConf.structured(config))
    if found := changes(_saved(folder), here, _free):
        raise BadInput(
            f"{folder} was begun with another config: {'; '.join(found)}. A run is finished with the config that "
            f"it began with. Take those values, or `resume={folder}` alone, which takes all of them; or leave resume "
            "out to start a new run."
        )


def _saved(folder: Path) -> dict[str, Any]:
    try:
        found = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise BadInput(f"{folder / CONFIG} cannot be read ({error}). Restore it, or start a new run.") from error
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _free(key: str) -> bool:
    """Whether a field may be another on resume, by its dotted name."""
    parent, _, name = key.rpartition(".")
    return key in FREE or (name in ENDPOINT_LIMITS and parent.endswith(("endpoint", "extractor")))


# --- the folder ------------------------------------------------------------------------------------------------------


def check_new_folder(folder: Path) -> None:
    """Whether a new run can have `folder`; makes and changes nothing.

    Raises:
        BadInput: A run is in it already, or nothing can be written there.
    """
    if (folder / STATE).is_file():
        done = (folder / RESULTS).is_file()
        raise BadInput(
            f"output_dir={folder} holds {'a finished' if done else 'an unfinished'} run, which stays as it is. Set "
            f"output_dir to another folder{'' if done else f', or go on with that run: resume={folder}'}."
        )
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Whether files can be made in `folder`, or the folder itself where it is missing; leaves nothing behind.

    Raises:
        BadInput: Names what is in the way.
    """
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    problem = "" if there.is_dir() else f"{there} is a file"
    if not problem:
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(bytes(4096))
        except OSError as error:
            problem = f"in {there}, {os.strerror(error.errno or 0)}"
    if problem:
        raise BadInput(f"The folder {folder} cannot be written: {problem}. Set output_dir to one that can be.")


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}


def disk_problem(error: BaseException | None) -> str:
    """What a failed write says, for a message; "" if that is not what `error` is about."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return f"{error.filename or 'a file'}: {os.strerror(error.errno)}"
        for number in _DISK:  # as libraries in Rust tell it
            if f"(os error {number})" in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def at_work(config: Config, entry: str) -> Iterator[RunState]:
    """Begin the run in `config.output_dir`, or go on with the one that is there; alone, and ready to be interrupted.

    Raises:
        SystemExit: Interrupted, 128 + the signal.
        BadInput: Another process is at it, or something could not be written.
    """
    folder = Path(config.output_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruptible(f"python {entry}.py resume={folder}"))
        if rank() == 0:
            stack.enter_context(only_writer(folder, _LOCK))
        there = (folder / STATE).is_file()
        state = RunState.read(folder) if there else RunState(folder, entry)
        if rank() == 0 and not there:
            state.write()
        yield state


@contextmanager
def interruptible(way: str) -> Iterator[None]:
    """While a run is at work, leave it at once at Ctrl-C or SIGTERM, and say how to go on; so too where a disk fails.

    Args:
        way: How to go on, a command.

    Nothing is saved on the way out: the last checkpoint and the journal are on disk at any moment, as they have to be
    for `kill -9`.

    Raises:
        SystemExit: 128 + the signal.
        BadInput: Something could not be written.
        RunStopped: As it was raised within, with how to go on.
    """
    got: list[int] = []

    def leave(number: int, frame: Any) -> None:
        got.append(number)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException as error:
        if got:
            print(f"\nInterrupted. Go on with: {way}", file=sys.stderr, flush=True)
            raise SystemExit(128 + got[0]) from None
        if isinstance(error, RunStopped):
            raise RunStopped(f"{error} What was played is kept; go on with: {way}", error.everywhere) from error
        if problem := disk_problem(error):
            raise BadInput(
                f"Writing failed: {problem}. What was written before is whole. Mend that, then go on with: {way}"
            ) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
