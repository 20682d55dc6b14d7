"""Reads rows from files, folders of `datasets` and hub data sets; the caller checks what a row must hold.

No torch in this file. JSONL is read line by line: `datasets` would give each row the metadata keys of all rows, would
refuse a key whose type differs between rows, and could not say which line of a file is broken. JSON and CSV files are
read because published data come in them.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from collab.datamodules.rows import METADATA, Row, checked
from collab.util.errors import BadInput, first_line
from collab.util.hub import look_for

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<split>[^:]+))?")
_FILE_SUFFIXES = {".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".gz"}  # never part of a hub name

_Placed = Iterator[tuple[str, Any]]  # "line 3" or "row 3", counted from 1, and what stands there


def read_rows(source: str | Path, split: str, key: str) -> Iterator[tuple[str, Row]]:
    """The rows of a file or data set, each with its place for messages: "goals.jsonl, line 3".

    Args:
        source: A file; a folder that `save_to_disk` of `datasets` wrote; or, where no such path exists, the name of a
            hub data set, `owner/name` or `owner/name:split`. A file's suffix tells its format: .parquet, .json, .csv;
            any other is read as JSONL, and decompressed if it is .gz.
        split: Which split of a data set that has several, if its name says none; `validation` stands for `val` too.
            A file is one split.
        key: The config field that names `source`, for messages.

    Raises:
        BadInput: Nothing can be read there, there is no such split, or a row is no object.
    """
    path = path_of(source, key)
    if path.is_file():
        placed = _READERS.get(path.suffix, _jsonl_rows)(path)
    elif path.is_dir():
        placed = _saved_rows(path, split, key)
    else:
        hub = _HUB_NAME.fullmatch(source) if isinstance(source, str) else None
        if hub is None or Path(hub["name"]).suffix in _FILE_SUFFIXES:
            raise BadInput(f"There is no file {source}. Check the path ({key}).")
        placed = _hub_rows(hub["name"], hub["split"] or split, key)
    for place, row in placed:
        yield f"{source}, {place}", checked(row, "an object", f"{source}, {place}")


def path_of(source: str | Path, key: str) -> Path:
    """The path that `source` is if it is one; raises `BadInput` if the system cannot even look for it."""
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a folder without permission, an unknown ~user
        raise BadInput(
            f"{str(source)[:80]!r} cannot be looked for ({first_line(error)[:120]}). Check the path ({key})."
        ) from error
    return path


def json_lines(content: bytes, path: Path) -> _Placed:
    """The values of JSONL, each with its line; blank lines are left out. `path` is for messages.

    Raises:
        BadInput: A line is not JSON in UTF-8.
    """
    # The lines are bytes: text would also be split at a U+2028 inside a string.
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _parsed(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{path}, line {number} is not JSON ({_said(error)}). Each line must be one whole JSON object in "
                "UTF-8. Fix or remove it. (The ending says what a file is: .csv, .parquet, .json for one list.)"
            ) from error
        yield f"line {number}", row


def _said(error: Exception) -> str:
    """What is wrong with one line; the error itself counts lines within it, so that each is line 1."""
    return f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _parsed(content: bytes) -> Any:
    value = json.loads(content.decode("utf-8-sig"))
    json.dumps(
        value, ensure_ascii=False
    ).encode()  # refuses an unpaired surrogate, which JSON allows and UTF-8 does not
    return value


def _jsonl_rows(path: Path) -> _Placed:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(
            f"{path} cannot be read ({first_line(error)}). Check its permissions, or get a new copy."
        ) from error
    return json_lines(content, path)


def _json_rows(path: Path) -> _Placed:
    """A file that is one list of rows, or an object whose `data` is one; any other is read as JSONL."""
    try:
        content = _parsed(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None  # reading it as JSONL says what is wrong
    rows = content.get("data") if isinstance(content, dict) else content
    if isinstance(rows, list):
        return _numbered(rows)
    if isinstance(content, dict) and b"\n" in path.read_bytes().strip():
        raise BadInput(
            f"{path} is one object over several lines, with: {', '.join(content)}. A .json file must be a list of "
            'rows, or have one under "data". Write it so.'
        )
    return _jsonl_rows(path)


def _csv_rows(path: Path) -> _Placed:
    csv.field_size_limit(sys.maxsize)  # by default a field may have 131072 characters
    try:
        table = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as CSV in UTF-8 ({first_line(error)}). Write it again.") from error
    header = list(table.fieldnames or ())
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise BadInput(
            f"{path} has {other!r} between the fields of its header: {header[0]!r}. CSV must have commas. Save it with "
            "commas, and with quotation marks around texts that have commas in them."
        )
    for place, row in _numbered(rows):
        if None in row or None in row.values():  # how DictReader marks fields that are too many or too few
            raise BadInput(f"{path}, {place} must have as many fields as the header: {', '.join(header)}.")
        # CSV has no null: of what may be left out, an empty field is left out.
        yield place, {name: value for name, value in row.items() if value.strip() or name not in ("id", METADATA)}


def _parquet_rows(path: Path) -> _Placed:
    from pyarrow import ArrowException, parquet

    try:
        return _numbered(parquet.ParquetFile(path).read().to_pylist())
    except (OSError, ArrowException, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as Parquet ({first_line(error)}). Write it again.") from error


def _saved_rows(folder: Path, split: str, key: str) -> _Placed:
    import datasets

    with quiet_datasets():
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:  # datasets, pyarrow and fsspec share no base class of errors
            raise BadInput(
                f"{folder} is a folder, and not one that `save_to_disk` of datasets wrote ({first_line(error)}). Name "
                f"a JSONL or Parquet file or such a folder ({key})."
            ) from error
    return _split_rows({split: saved} if isinstance(saved, datasets.Dataset) else saved, str(folder), split, key)


def _hub_rows(name: str, split: str, key: str) -> _Placed:
    look_for(name)
    import datasets

    with quiet_datasets():
        try:
            splits = datasets.load_dataset(name)
        except Exception as error:  # datasets, huggingface_hub and the network share no base class of errors
            raise BadInput(
                f"There is no file {name}, and as a hub data set it cannot be read either ({first_line(error)}). Check "
                f"the path ({key}); a hub name needs the network, or a copy in the cache of Hugging Face."
            ) from error
    return _split_rows(splits, f"The hub data set {name}", split, key)


def _split_rows(splits: Mapping[Any, Any], name: str, split: str, key: str) -> _Placed:
    names = [split, "validation"] if split == "val" else [split]
    chosen = next((candidate for candidate in names if candidate in splits), None)
    if chosen is None:
        raise BadInput(
            f"{name} has no split {' or '.join(names)}; it has {', '.join(map(str, splits))}. "
            f"Save the rows that you want as a JSONL file and set {key} to it."
        )
    return _numbered(splits[chosen])


def _numbered(rows: Any) -> _Placed:
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars or log lines from `datasets`; the settings are restored afterwards."""
    import datasets

    bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


_READERS = {".parquet": _parquet_rows, ".json": _json_rows, ".csv": _csv_rows}
