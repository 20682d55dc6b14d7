"""Files that survive killed processes and full disks: atomic writes, torn lines, locks, errors that name the file."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from collab.util.errors import BadInput


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make errors of the operating system in this context name the file; those of a failed write do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(path: Path, obj: Any) -> None:
    """Write strict JSON (no NaN) atomically, floats in full precision."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 atomically; parents are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # os.replace is atomic within one disk
    try:
        with naming(path), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or the name may reach the disk before the content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cut_torn_line(file: Path) -> None:
    """Cut off a last line without an end: the process was killed while it wrote the line."""
    if not file.is_file() or not (size := file.stat().st_size):  # an empty file cannot be mapped
        return
    with file.open("rb+") as content:
        with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            end = mapped.rfind(b"\n") + 1
        if end < size:
            content.truncate(end)


@contextmanager
def only_writer(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes from writing into a folder; the operating system frees the lock of a killed process.

    Args:
        folder: Must exist.
        name: File in the folder to lock; it is made if it is missing, and must not be replaced meanwhile.

    Raises:
        BadInput: Another process holds the lock.
    """
    import fcntl  # not on Windows

    with (folder / name).open("ab") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(
                f"Another process is writing into {folder}: both would do the same work. Wait for it or stop it, or "
                "name another folder (output_dir)."
            ) from error
        yield


def is_locked(path: Path) -> bool:
    """Whether a process is the `only_writer` of a file."""
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextmanager
def among_others(path: Path) -> Iterator[None]:
    """Mark this process as one of several that work; waits while one of them is in `if_last`.

    Args:
        path: A file for the mark; it is made if it is missing.
    """
    import fcntl

    with path.open("ab") as mark:
        fcntl.flock(mark, fcntl.LOCK_SH)
        yield


@contextmanager
def if_last(path: Path) -> Iterator[bool]:
    """Whether no process is in `among_others` with this file; then none gets in meanwhile.

    If each comes here when it has left `among_others`, at least one hears yes: the last of them.
    """
    import fcntl

    with path.open("ab") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            last = True
        except OSError:
            last = False
        yield last
