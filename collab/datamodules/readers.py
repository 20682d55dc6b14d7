"""Reads rows from files, folders of `datasets` and hub data sets; what a row has to hold is up to the caller.

No torch in this file. Parquet files, folders and hub data sets are read by `datasets`. JSONL is read line by line:
`datasets` would give every row the union of all rows' metadata keys, would refuse a key whose type differs between
rows, and could not say which line of a file is broken. JSON and CSV files are read because published data come in them.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from collab.util.errors import BadInput, first_line

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<split>[^:]+))?")
_FILE_SUFFIXES = {".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".gz"}  # never part of a hub name

PlacedRow = tuple[str, Any]  # "line 3" or "row 3", counted from 1, and the row that was read there


def read_rows(source: str | Path, split: str, what: str, key: str) -> Iterator[PlacedRow]:
    """The rows of a file or data set, unchecked, each with its place.

    Args:
        source: A file; a folder that `save_to_disk` of `datasets` wrote; or, where no such path exists, the name of a
            hub data set, `owner/name` or `owner/name:split`. A file's suffix tells its format: .parquet, .json, .csv;
            any other is read as JSONL, and decompressed if it is .gz.
        split: Which split of a data set that has several and whose name says none; `val` is also found as
            `validation`. A file is one split.
        what: What is read, for messages: "train goals".
        key: The config field that names `source`, for messages.

    Raises:
        BadInput: Nothing can be read there, or there is no such split.
    """
    path = Path(source).expanduser()
    if path.is_file():
        yield from _READERS.get(path.suffix, _jsonl_rows)(path)
    elif path.is_dir():
        yield from _saved_rows(path, split, what, key)
    else:
        hub = _HUB_NAME.fullmatch(source) if isinstance(source, str) else None
        if hub is None or Path(hub["name"]).suffix in _FILE_SUFFIXES:
            raise BadInput(f"There is no file {source} to read {what} from. Check the path ({key}).")
        yield from _hub_rows(hub["name"], hub["split"] or split, what, key)


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(
            f"{path} cannot be read ({first_line(error)}). Check its permissions, or get a new copy."
        ) from error
    # These are lines of bytes: text would also be split at a U+2028 inside a string.
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
            _check_encodable(row)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{path}, line {number} is not JSON ({error}). Each line must be one whole JSON object in UTF-8; "
                "fix it. (A Parquet file needs the ending .parquet.)"
            ) from error
        yield f"line {number}", row


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    """A file that is one list of rows, or an object whose `data` is one; any other is read as JSONL."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        _check_encodable(content)
    except (OSError, ValueError, RecursionError):
        content = None  # reading it as JSONL says what is wrong
    rows = content.get("data") if isinstance(content, dict) else content
    if isinstance(rows, list):
        yield from _numbered(rows)
    else:
        yield from _jsonl_rows(path)


def _check_encodable(content: Any) -> None:
    """Raise `ValueError` for an unpaired surrogate escape, which JSON allows and UTF-8 does not."""
    json.dumps(content, ensure_ascii=False).encode()


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    limit = csv.field_size_limit(sys.maxsize)  # by default a field may have 131072 characters
    try:
        table = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        header = next(table, [])
        for number, fields in enumerate(table, 1):
            if fields and len(fields) != len(header):
                raise BadInput(
                    f"{path}, row {number} has {len(fields)} fields and the header has {len(header)}; they must be as "
                    "many. Fix the row."
                )
            if fields:
                yield f"row {number}", dict(zip(header, fields, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as CSV in UTF-8 ({first_line(error)}). Write it again.") from error
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import datasets

    # Streamed, with a temporary cache: an edited file must not be answered from what was cached before.
    with quiet_datasets(), tempfile.TemporaryDirectory() as cache:
        try:
            rows = list(
                datasets.load_dataset(
                    "parquet",
                    data_files=glob.escape(str(path)),
                    split="train",  # what `datasets` calls files without a split
                    streaming=True,
                    cache_dir=cache,
                    batch_size=1000,  # by default the size of the first row group, which an empty file does not have
                )
            )
        except Exception as error:  # datasets, pyarrow and fsspec share no base class of errors
            raise BadInput(f"{path} cannot be read as Parquet ({first_line(error)}). Write it again.") from error
    yield from _numbered(rows)


def _saved_rows(folder: Path, split: str, what: str, key: str) -> Iterator[PlacedRow]:
    import datasets

    with quiet_datasets():
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:  # datasets, pyarrow and fsspec share no base class of errors
            raise BadInput(
                f"{folder} is a folder, and not one that `save_to_disk` of datasets wrote ({first_line(error)}). To "
                f"read {what}, name a JSONL or Parquet file or such a folder ({key})."
            ) from error
    yield from _split_rows({split: saved} if isinstance(saved, datasets.Dataset) else saved, str(folder), split, key)


def _hub_rows(name: str, split: str, what: str, key: str) -> Iterator[PlacedRow]:
    import datasets

    with quiet_datasets():
        try:
            splits = datasets.load_dataset(name)
        except Exception as error:  # datasets, huggingface_hub and the network share no base class of errors
            raise BadInput(
                f"There is no file {name} to read {what} from, and as a hub data set it cannot be read either "
                f"({first_line(error)}). Check the path ({key}); a hub name needs the network, or a copy "
                "in the cache of Hugging Face."
            ) from error
    yield from _split_rows(splits, f"The hub data set {name}", split, key)


def _split_rows(splits: Mapping[Any, Any], name: str, split: str, key: str) -> Iterator[PlacedRow]:
    names = [split, "validation"] if split == "val" else [split]
    chosen = next((candidate for candidate in names if candidate in splits), None)
    if chosen is None:
        raise BadInput(
            f"{name} has no split {' or '.join(names)}; it has {', '.join(map(str, splits))}. "
            f"Save the rows that you want as a JSONL file and set {key} to it."
        )
    yield from _numbered(splits[chosen])


def _numbered(rows: Any) -> Iterator[PlacedRow]:
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
