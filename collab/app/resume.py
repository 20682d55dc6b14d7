"""Resuming a run that was interrupted: which one, with which config, and which phases of it are finished.

A run is a folder. `run.json` names its command and its finished phases; `results.json` is written last. A folder that
has only the first is an unfinished run. No torch in this file.

A phase that was not finished is done again. Training goes on from the last checkpoint (`collab.callbacks.checkpoint`),
and the journal has the replies since then (`collab.chat.journal`).
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
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from collab.config.endpoints import CONNECTION_FIELDS
from collab.config.schema import Config
from collab.util.diff import changes
from collab.util.errors import BadInput, RunStopped
from collab.util.files import only_writer, write_json
from collab.util.processes import rank

if TYPE_CHECKING:
    from collab.reports.results import PolicyScores

STATE, CONFIG, RESULTS, JOURNAL = "run.json", "config.yaml", "results.json", "journal"
_LOCK = ".lock"

# Fields that may change on resume: they say where and how fast a run is computed and what is printed, and do not change
# its results. Those in CONNECTION_FIELDS belong to them.
FREE = (
    *("output_dir", "resume", "threads", "notes", "synthesis", "checkpoint", "callbacks", "logger", "strategy"),
    *("trainer.devices", "trainer.num_nodes", "trainer.max_invalid", "cache", "cache_file", "budget", "dry_run"),
    *("push_to_hub", "hub_private", "cluster"),
    *("engine.max_batch", "engine.cache_gib", "engine.model", "engine.adapters", "engine.tolerance"),
)


@dataclass
class RunState:
    """What `run.json` holds: all that a resumed run needs and no checkpoint has.

    Attributes:
        folder: Of the run.
        entry: "train" or "evaluate".
        id: Marks the checkpoints of this run and names it to W&B.
        started: When it began, as ISO 8601.
        scores: Policy -> its scores, for the finished rows of the table.
        seconds: Phase -> its wall time, for the finished phases.
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
            return cls(folder, **json.loads((folder / STATE).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(f"{folder / STATE} is damaged ({error!r}). Start a new run.") from error

    def write(self) -> None:
        """Write `run.json` atomically."""
        write_json(self.folder / STATE, {name: value for name, value in asdict(self).items() if name != "folder"})

    def finish(self, phase: str, seconds: float, scores: PolicyScores | None = None) -> None:
        """Write down that a phase is finished, so that no resumed run repeats it."""
        self.seconds[phase] = seconds
        if scores is not None:
            self.scores[phase] = scores
        if rank() == 0:
            self.write()

    def elapsed(self) -> float:
        """Seconds of work so far: those of this process, and those of the phases that earlier processes finished."""
        return self._earlier + time.monotonic() - self._started


# --- which run -------------------------------------------------------------------------------------------------------


def find_run(composed: DictConfig, entry: str) -> Path | None:
    """The folder of the run that `resume` names; None for `resume=false`.

    Args:
        composed: The config of the command line.
        entry: "train" or "evaluate".

    Raises:
        BadInput: There is no such run, it is finished, or another command began it.
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
            f"resume={wanted} is not the folder of a run: it {what}. Name the folder that a run is in, such as "
            "outputs/doc_edit/2026-01-31_12-00-00-seed1, or set resume=true for the newest unfinished one."
        )
    if (folder / RESULTS).is_file():
        raise BadInput(f"resume={wanted} is finished: it has a {RESULTS}. Leave resume out to start a new run.")
    state = RunState.read(folder)
    if state.entry != entry:
        raise BadInput(
            f"resume={wanted} is a run of another command. Resume it by `python {state.entry}.py resume={wanted}`."
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
            print(f"note: {error} It is skipped.", file=sys.stderr, flush=True)
            continue
        if (state.entry, config.get("name"), config.get("seed")) == (entry, composed.name, composed.seed):
            found.append((state.started, folder))
    if not found:
        raise BadInput(
            f"resume=true: {here.parent} has no unfinished run of {composed.name} with seed={composed.seed}. "
            "Leave resume out to start one, or name a folder: resume=PATH."
        )
    return max(found)[1]


def resumed_overrides(folder: Path, given: Sequence[str]) -> list[str]:
    """The overrides that the run in `folder` was started with, then those that are typed now."""
    file = folder / ".hydra" / "overrides.yaml"
    there: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else []
    place = ("resume=", "output_dir=", "hydra.", "hydra/", "sweep=")  # these say where a run is, and how it is launched
    texts = [*(str(text) for text in there if text not in given), *given]
    return [text for text in texts if not text.lstrip("+~").startswith(place)]


def check_same_config(folder: Path, config: Config) -> None:
    """Compare the config of a resumed run with the one that it was started with.

    Raises:
        BadInput: Fields differ on which results depend; names them.
    """
    here: Any = OmegaConf.to_container(OmegaConf.structured(config))
    if different := changes(_saved(folder), here, _is_free):
        raise BadInput(
            f"{folder} was started with another config: {'; '.join(different)}. Results depend on these fields. Type "
            f"the values from there, or `resume={folder}` alone, which takes all of them; or leave resume out to start "
            "a new run."
        )


def _saved(folder: Path) -> dict[str, Any]:
    try:
        saved = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise BadInput(f"{folder / CONFIG} cannot be read ({error}). Restore it, or start a new run.") from error
    return {str(key): value for key, value in saved.items()} if isinstance(saved, dict) else {}


def _is_free(key: str) -> bool:
    parent, _, name = key.rpartition(".")
    return key in FREE or (name in CONNECTION_FIELDS and parent.endswith(("endpoint", "extractor", "engine")))


# --- the folder ------------------------------------------------------------------------------------------------------


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that has a run, or that cannot be written; changes nothing.

    Raises:
        BadInput: As said.
    """
    if (folder / STATE).is_file():
        done = (folder / RESULTS).is_file()
        raise BadInput(
            f"output_dir={folder} has {'a finished' if done else 'an unfinished'} run, which is not overwritten. Set "
            f"output_dir to another folder{'' if done else f', or resume that run: resume={folder}'}."
        )
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be written, or which cannot be made; leaves nothing behind.

    Raises:
        BadInput: Says why.
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
    """The failed write that caused `error`, for a message; "" if there was none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return f"{error.filename or 'a file'}: {os.strerror(error.errno)}"
        for number in _DISK:  # the wording of libraries in Rust
            if f"(os error {number})" in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def at_work(config: Config, entry: str) -> Iterator[RunState]:
    """Begin the run in `config.output_dir`, or resume the one that is there. Locks the folder.

    Raises:
        SystemExit: Interrupted; the status is 128 + the signal.
        BadInput: Another process works on this run, or a file could not be written.
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
    """Stop at once at Ctrl-C, SIGTERM or a failed write, and say how to go on.

    Nothing is saved at the end: the last checkpoint and the journal are always on disk, as `kill -9` needs them.

    Args:
        way: The command that goes on.

    Raises:
        SystemExit: Interrupted; the status is 128 + the signal.
        BadInput: A file could not be written.
        RunStopped: The one raised within, with the command that goes on.
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
            raise RunStopped(f"{error} Finished conversations are kept. Go on with: {way}", error.everywhere) from error
        if problem := disk_problem(error):
            raise BadInput(
                f"Writing failed: {problem}. Earlier files are intact. Solve the problem, then go on with: {way}"
            ) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
