"""Files that a killed process or a full disk must not spoil: whole or not there, named in errors, of one writer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from collab.util.errors import BadInput


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system within it name the file, which those of a failed write alone do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(path: Path, obj: Any) -> None:
    """Write strict JSON (no NaN) atomically, floats in full precision."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: os.replace is atomic within one disk
    try:
        with naming(path), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else the name may reach the disk before the content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cut_torn_line(file: Path) -> None:
    """Cut off a last line that has no end: a process was killed while it wrote it."""
    if not file.is_file() or not (size := file.stat().st_size):
        return
    with file.open("rb+") as content:
        whole = size
        while whole:
            start = max(0, whole - 2**16)
            content.seek(start)
            if (end := content.read(whole - start).rfind(b"\n")) >= 0:
                whole = start + end + 1
                break
            whole = start
        if whole < size:
            content.truncate(whole)


@contextmanager
def only_writer(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes from writing into a folder; the lock goes with the process, however that ends.

    Args:
        folder: It has to be there.
        name: Of the file in it that is locked, and made where it is missing. It may not be replaced meanwhile.

    Raises:
        BadInput: Another one is writing there.
    """
    import fcntl

    with (folder / name).open("ab") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(
                f"Another process is writing into {folder}: both would do the same work. Wait for it or stop it, or "
                "name another folder (output_dir)."
            ) from error
        yield
