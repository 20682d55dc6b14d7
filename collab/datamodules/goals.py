"""Where goals come from: reading, checking and splitting them, before any model is loaded (no torch in this file).

A goal is one row with the fields that the ecosystem uses:

- `single_turn_prompt`: what the user wants, in one message. Text, required.
- `single_turn_completion`: the reference artefact. Text, required.
- `single_turn_metadata`: preferences and descriptions. A mapping, or a JSON string of one; optional. Its `notes`, a
  list of texts, are what the user knows; `cues`, as many texts, are words by which each note can be asked for.
- `id`: text or a whole number, unique within the split; optional, derived from prompt and completion without it.

A task (`TaskGoals`) may read the rows of published data sets too, each with its own columns (`Layout`), and may bring
goals along.

Parquet files and hub data sets are read by `datasets`. JSONL is read here, line by line: `datasets` would give every
row the union of all rows' metadata keys, refuses a key whose type differs between rows, and cannot say in which
line a file is broken. Parquet has columns, so its rows come back padded with nulls; a null in the metadata means
"not said" and is dropped from either, so that the same goals are equal whichever file holds them. JSON and CSV files
are read because published data come in them.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from collab.config.schema import TaskConfig
from collab.conversation import Goal
from collab.util.errors import BadInput
from collab.util.targets import load_target

PROMPT = "single_turn_prompt"
COMPLETION = "single_turn_completion"
METADATA = "single_turn_metadata"

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
FILE_SUFFIXES = {".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".gz"}  # never taken for a hub name
SPLITS = ("train", "val", "test")
DATA = Path(__file__).parent / "data"  # what ships

Row = Mapping[str, Any]


@dataclass(frozen=True)
class GoalSplits:
    """The goals of a task; no goal is in two of the lists."""

    train: list[Goal]
    val: list[Goal]
    test: list[Goal]


@dataclass(frozen=True)
class Layout:
    """How the rows of a published data set become goals.

    Attributes:
        columns: Those that tell the layout; a row has to have them all.
        goal: (row, where it was read) -> its goal; None leaves the row out. Raises `BadInput`.
        order: row -> a key that sorts the rows; None leaves them as they come. Splits are cut in this order.
    """

    columns: tuple[str, ...]
    goal: Callable[[Row, str], Goal | None]
    order: Callable[[Row], Any] | None = None


class TaskGoals:
    """Where the goals of a task come from; a task is a subclass, which `task.target` names.

    Attributes:
        layouts: Published data sets that are read beside goals in the project's own form.
    """

    layouts: Sequence[Layout] = ()

    def shipped(self, split: str) -> Path | list[Goal] | None:
        """The goals of a split that come with the task, or a file of them; None if there are none."""
        return None

    def located(self, source: str) -> str | Path:
        """A name that this task knows better than as a path or a hub name."""
        return source

    def completed(self, goal: Goal, where: str) -> Goal:
        """A goal from a row in the project's own form, with what the task needs; `BadInput` where it lacks that."""
        return goal


def load_splits(task: TaskConfig) -> GoalSplits:
    """The goals of a task: each split from its file, else cut from `task.data`, else what ships.

    `task.data` is cut in this order: `num_test` goals for testing, the next `num_val` for validation, the rest for
    training. `num_train`, `num_val` and `num_test` limit the other sources too; the first goals are taken.

    Raises:
        BadInput: As `load_goals` and `check_disjoint`; a split has no source, or `task.data` too few goals;
            `task.target` names no class, or one that does not take `task.options`.
    """
    reader = goals_of(task)
    needed = ("test",) if task.evaluation_only else SPLITS
    cut = [split for split in needed if task.data and not getattr(task, f"{split}_file")]
    pool = load_goals(task.data, "train", reader, "task.data") if task.data and cut else []
    wanted = {split: getattr(task, f"num_{split}") for split in SPLITS}
    if cut and (short := sum(wanted[split] or 1 for split in cut) - len(pool)) > 0:
        raise BadInput(
            f"task.data={task.data} has {len(pool)} goals, {short} too few for "
            + " and ".join(f"task.num_{split}={wanted[split]}" for split in cut)
            + ". Ask for fewer, or give more data."
        )
    loaded: dict[str, list[Goal]] = {split: [] for split in SPLITS}
    labels = {}
    for split in reversed(needed):  # the test goals are the first to be cut
        file = getattr(task, f"{split}_file")
        given: str | Path | list[Goal] | None = file or (None if split in cut else reader.shipped(split))
        if split in cut:
            count, source = wanted[split], task.data
            loaded[split], pool = pool[:count], [] if count is None else pool[count:]
        elif given is None:
            raise BadInput(
                f"task.{split}_file is not set, and no goals ship for task '{task.name}': set it, or task.data to cut "
                "all splits from."
            )
        else:
            source = None if isinstance(given, list) else str(given)
            loaded[split] = given if isinstance(given, list) else load_goals(given, split, reader)
            loaded[split] = loaded[split][: wanted[split]]
        labels[f"the {split} goals ({source or task.target})"] = loaded[split]
    check_disjoint(dict(reversed(labels.items())))
    return GoalSplits(**loaded)


def goals_of(task: TaskConfig) -> TaskGoals:
    """The object that `task.target` and `task.options` describe.

    Raises:
        BadInput: There is no such class, it is none of goals, or it does not take the options or their values.
    """
    found = load_target(task.target, "task.target")
    if not issubclass(found, TaskGoals):
        raise BadInput(
            f"task.target={task.target} must be a subclass of collab.datamodules.goals.TaskGoals: it says where goals "
            "come from. Name one."
        )
    try:
        return found(**task.options)
    except TypeError as error:
        raise BadInput(
            f"task.options ({task.options}) do not fit {task.target}: {error}. Set them to what the class takes."
        ) from error


def load_goals(source: str | Path, split: str, reader: TaskGoals | None = None, key: str | None = None) -> list[Goal]:
    """All goals of a file or a hub data set, in their order or in that of the data set's layout.

    Args:
        source: A path, or the name of a hub data set where no such file exists; `owner/name:split` names its split.
        split: Which split of a hub data set; `val` is also found as `validation`. A file is one split.
        reader: The task, which may know more layouts than the project's own.
        key: The config field that names `source`, for messages; `task.{split}_file` if it is not given.

    Raises:
        BadInput: Nothing can be read there, it has no rows, or a row breaks the rules of this module or of the task.
    """
    reader, key = reader or TaskGoals(), key or f"task.{split}_file"
    found: list[tuple[Any, Goal]] = []
    places: dict[str, tuple[str, Goal]] = {}
    layout: Layout | None = None
    where_to_read, named = _named_split(reader.located(str(source)) if isinstance(source, str) else source, split)
    for place, row in read_rows(where_to_read, named, f"{split} goals", key):
        where = f"{source}, {place}"
        if not found:  # the first goal tells the layout of all
            layout = _layout_of(row, reader.layouts)
        goal = _published(row, layout, where) if layout else reader.completed(_goal(row, where, reader.layouts), where)
        if goal is None:
            continue
        if goal.id in places:
            before, earlier = places[goal.id]
            if layout and (earlier.prompt, earlier.reference) == (goal.prompt, goal.reference):
                continue  # nobody can remove a row that was published twice
            raise BadInput(
                f"{source}: {before} and {place} have the same id '{goal.id}', which must be unique in its "
                f"file (without an id, it is derived from {PROMPT} and {COMPLETION}). Remove one or give it another id."
            )
        places[goal.id] = place, goal
        found.append((layout.order(row) if layout and layout.order else None, goal))
    if not found:
        raise BadInput(f"{source} holds no goals; at least one row is needed. Write one JSON object a line.")
    if layout and layout.order:
        found.sort(key=lambda ranked: ranked[0])
    return [goal for _, goal in found]


def check_option(name: str, value: Any, least: int = 1) -> None:
    """Refuse an entry of `task.options` that is no whole number of at least `least`; raises `BadInput`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadInput(f"task.options.{name} ({value!r}) must be a whole number of at least {least}. Set it to one.")


def derived_id(*texts: str) -> str:
    """An id for what has none: the same texts get the same id."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=6).hexdigest()


def scattered(row: Row) -> str:
    """An order of rows that has nothing to do with theirs, for data that are sorted by subject; the same every time."""
    return derived_id(json.dumps(row, default=str))


def check_disjoint(splits: Mapping[str, list[Goal]]) -> None:
    """Refuse a goal that is in two splits: what was trained on must not be tested on.

    Args:
        splits: The goals of each split, by the name that a message should call it.

    Raises:
        BadInput: Two splits share an id, or a goal with the same prompt and reference.
    """
    for (first, ours), (second, theirs) in combinations(splits.items(), 2):
        ids = {goal.id for goal in ours}
        texts = {(goal.prompt, goal.reference) for goal in ours}
        shared = [goal for goal in theirs if goal.id in ids or (goal.prompt, goal.reference) in texts]
        if shared:
            what = "id" if shared[0].id in ids else "prompt and reference"
            raise BadInput(
                f"{first} and {second} share {len(shared)} of their goals, the first by its {what}: '{shared[0].id}'. "
                "No goal may be in two splits. Remove it from one; goals that differ need different ids."
            )


def check_reference_lengths(goals: Iterable[Goal], count_tokens: Callable[[str], int], max_new_tokens: int) -> None:
    """Refuse references that the policy could not write within its length limit.

    Args:
        count_tokens: Length of a text in policy tokens.
        max_new_tokens: `task.max_new_tokens`.

    Raises:
        BadInput: A reference is longer; names the longest one and the limit that would do.
    """
    length, longest = max(((count_tokens(goal.reference), goal.id) for goal in goals), default=(0, ""))
    if length > max_new_tokens:
        raise BadInput(
            f"The reference of goal '{longest}' has {length} tokens, but task.max_new_tokens ({max_new_tokens}) must "
            f"be at least the longest reference: no reply could match it. Set task.max_new_tokens={length} or more."
        )


def read_rows(source: str | Path, split: str, what: str, key: str) -> Iterator[tuple[str, Any]]:
    """Rows as they were read, each with its place, counted from 1: "line 3" or "row 3".

    Args:
        source: A JSONL or Parquet file, a folder that `save_to_disk` of `datasets` wrote, or, where no such path
            exists, the name of a hub data set.
        split: Which split of a data set that has several; `val` is also found as `validation`. A file is one split.
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
    elif isinstance(source, str) and HUB_NAME.fullmatch(source) and path.suffix not in FILE_SUFFIXES:
        yield from _hub_rows(source, split, what, key)
    else:
        raise BadInput(f"There is no file {source} to read {what} from. Check the path ({key}).")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(
            f"{path} cannot be read ({_first_line(error)}). Check its permissions, or get it anew."
        ) from error
    # of bytes: text would also be split at U+2028 inside a string
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
            json.dumps(row, ensure_ascii=False).encode()  # an unpaired surrogate escape is JSON, but no text
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{path}, line {number} is not JSON ({error}). Each line must be one whole JSON object in UTF-8; "
                "fix it. (A Parquet file needs the ending .parquet.)"
            ) from error
        yield f"line {number}", row


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """A file that is one list of rows, or an object whose `data` is one; else it has an object a line."""
    try:
        whole = json.loads(path.read_bytes().decode("utf-8-sig"))
        json.dumps(whole, ensure_ascii=False).encode()  # as in a JSONL file
    except (OSError, ValueError, RecursionError):
        whole = None  # whatever is wrong, the other reading tells it
    rows = whole.get("data") if isinstance(whole, dict) else whole
    if isinstance(rows, list):
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
    else:
        yield from _jsonl_rows(path)


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    limit = csv.field_size_limit(sys.maxsize)  # by default a field may have 131072 characters
    try:
        table = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        header = next(table, [])
        for number, fields in enumerate(table, 1):
            if fields and len(fields) != len(header):
                raise BadInput(f"{path}, row {number} has {len(fields)} fields, and the header {len(header)}. Fix it.")
            if fields:
                yield f"row {number}", dict(zip(header, fields, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as CSV in UTF-8 ({_first_line(error)}). Write it again.") from error
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import datasets

    # Streaming, with a cache that goes away: a file that was edited must never be answered from an earlier reading.
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
        except Exception as error:  # of `datasets`, pyarrow or fsspec, without a common class
            raise BadInput(f"{path} cannot be read as Parquet ({_first_line(error)}). Write it again.") from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _saved_rows(folder: Path, split: str, what: str, key: str) -> Iterator[tuple[str, Any]]:
    import datasets

    with quiet_datasets():
        try:
            found = datasets.load_from_disk(str(folder))
        except Exception as error:  # of `datasets`, pyarrow or fsspec, without a common class
            raise BadInput(
                f"{folder} is a folder, and not one that `save_to_disk` of datasets wrote ({_first_line(error)}). To "
                f"read {what}, name a JSONL or Parquet file or such a folder ({key})."
            ) from error
    yield from _split_rows({split: found} if isinstance(found, datasets.Dataset) else found, str(folder), split, key)


def _hub_rows(name: str, split: str, what: str, key: str) -> Iterator[tuple[str, Any]]:
    import datasets

    with quiet_datasets():
        try:
            found = datasets.load_dataset(name)
        except Exception as error:  # of `datasets`, huggingface_hub or the network, without a common class
            raise BadInput(
                f"There is no file {name} to read {what} from, and as a hub data set it cannot be read either "
                f"({_first_line(error)}). Check the path ({key}); a hub name needs the network, or a copy "
                "in the cache of Hugging Face."
            ) from error
    yield from _split_rows(found, f"The hub data set {name}", split, key)


def _split_rows(found: Mapping[Any, Any], name: str, split: str, key: str) -> Iterator[tuple[str, Any]]:
    names = [split, "validation"] if split == "val" else [split]
    chosen = next((candidate for candidate in names if candidate in found), None)
    if chosen is None:
        raise BadInput(
            f"{name} has no split {' or '.join(names)}; it has {', '.join(map(str, found))}. "
            f"Save the rows that you want as a JSONL file and set {key} to it."
        )
    for number, row in enumerate(found[chosen], 1):
        yield f"row {number}", row


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars or log lines from `datasets`; the settings are put back afterwards."""
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


def _named_split(source: str | Path, split: str) -> tuple[str | Path, str]:
    """`owner/name:split` taken apart."""
    if isinstance(source, str) and not Path(source).expanduser().exists():
        name, _, named = source.rpartition(":")
        if HUB_NAME.fullmatch(name) and named:
            return name, named
    return source, split


def _layout_of(row: Any, layouts: Sequence[Layout]) -> Layout | None:
    """The layout that most of the row's columns belong to; None for the project's own."""
    own = Layout((PROMPT, COMPLETION), lambda row, where: None)
    there = set(row) if isinstance(row, dict) else set()
    best = max((own, *layouts), key=lambda layout: len(there & set(layout.columns)) / len(layout.columns))
    return None if best is own else best


def _published(row: Any, layout: Layout, where: str) -> Goal | None:
    columns = ", ".join(layout.columns)
    if not isinstance(row, dict):
        raise BadInput(f"{where} is {kind_of(row)}; each row must be an object with {columns}.")
    if missing := [name for name in layout.columns if name not in row]:
        raise BadInput(
            f"{where}: there is no column {', '.join(missing)}. The row has: {', '.join(row)}. Rows like these need "
            f"{columns}."
        )
    return layout.goal(row, where)


def _goal(row: Any, where: str, layouts: Sequence[Layout] = ()) -> Goal:
    if not isinstance(row, dict):
        raise BadInput(
            f'{where} is {kind_of(row)}; each row must be an object: {{"{PROMPT}": ..., "{COMPLETION}": ...}}.'
        )
    also = "".join(f" Rows with {', '.join(layout.columns)} are read too." for layout in layouts)
    prompt, reference = (text_of(row, name, where, f"every goal needs it.{also}") for name in (PROMPT, COMPLETION))
    given = row.get("id")
    if given is None:
        given = derived_id(prompt, reference)
    if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        raise BadInput(
            f"{where}: field id is {kind_of(given)}; it must be text or a whole number. Fix it, or leave it out."
        )
    goal = Goal(str(given).strip(), prompt, reference, metadata_of(row.get(METADATA), where))
    _check_notes(goal, where)
    try:
        _ = goal.agenda
    except BadInput as error:
        raise BadInput(f"{where}: field {METADATA}: {error}") from error
    return goal


def _check_notes(goal: Goal, where: str) -> None:
    """Refuse notes, or words to ask for them by, that are no texts; raises `BadInput`."""
    for name in ("notes", "cues"):
        value = goal.metadata.get(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text.strip() for text in value):
            raise BadInput(
                f"{where}: field {METADATA}: {name} is {kind_of(value)}; it must be a list of texts, none empty, e.g. "
                '["doors open at six"]. Fix it, or leave it out.'
            )
    notes, cues = goal.metadata.get("notes", []), goal.metadata.get("cues", [])
    if cues and len(cues) != len(notes):
        raise BadInput(
            f"{where}: field {METADATA}: there are {len(cues)} cues for {len(notes)} notes; each note has one text of "
            "cues, the words by which it can be asked for. Write as many, or leave cues out."
        )


def text_of(row: Row, name: str, where: str, why: str = "every goal needs it.") -> str:
    """The text in a row's column, stripped; `BadInput` where it is missing, empty or no text."""
    value = row.get(name)
    if value is None:
        raise BadInput(f"{where}: field {name} is missing; {why} The row has: {', '.join(row) or '-'}.")
    if not isinstance(value, str):
        raise BadInput(f"{where}: field {name} is {kind_of(value)}; it must be text. Put it in quotes.")
    if not value.strip():
        raise BadInput(f"{where}: field {name} is empty; {why} Fill it in or remove the row.")
    return value.strip()


def metadata_of(value: Any, where: str) -> dict[str, Any]:
    """What a row holds as `single_turn_metadata`; raises `BadInput` where that is no mapping."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{where}: field {METADATA} is text that is not JSON ({error}); it must be an object, or a JSON string "
                'of one, e.g. {"tone": "friendly"}.'
            ) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInput(
            f'{where}: field {METADATA} is {kind_of(value)}; it must be an object, e.g. {{"tone": "friendly"}}.'
        )
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words, with its beginning."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return f"{names.get(type(value), type(value).__name__)} ({str(value)[:40]!r})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_READERS = {".parquet": _parquet_rows, ".json": _json_rows, ".csv": _csv_rows}  # by suffix; any other is JSONL
