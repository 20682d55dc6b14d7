"""From a row, as it was read, to a goal: its fields and what each must hold. No torch in this file.

A row in the project's own form has the fields that the ecosystem uses:

- `single_turn_prompt`: what the user wants, in one message. Text, required.
- `single_turn_completion`: the reference: the text, answer or program that the user is after. Text, required.
- `single_turn_metadata`: preferences and descriptions. A mapping, or a JSON string of one; optional. Its `notes`, a
  list of texts, are what the user knows; `cues`, one text for each note, are words that a question can ask for it by.
- `id`: text or a whole number, unique within the split; optional. Without it, an id is derived from prompt and
  completion.

Rows of published data sets have other columns; a `Layout` turns them into goals.

Parquet has columns, so its rows come back padded with nulls. A null in the metadata therefore means "not given" and is
dropped, in JSON too: the same goals are equal whichever file holds them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collab.conversation import Goal
from collab.util.errors import BadInput

PROMPT = "single_turn_prompt"
COMPLETION = "single_turn_completion"
METADATA = "single_turn_metadata"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """How the rows of a published data set become goals.

    Attributes:
        columns: What the layout is recognised by; a row must have all of them.
        goal: (row, where it was read) -> its goal; None leaves the row out. Raises `BadInput`.
        order: row -> a sort key; None keeps the rows in file order. Splits are cut in this order.
    """

    columns: tuple[str, ...]
    goal: Callable[[Row, str], Goal | None]
    order: Callable[[Row], Any] | None = None


def layout_of(row: Any, layouts: Sequence[Layout]) -> Layout | None:
    """The layout of which the row has the largest share of columns; None for the project's own form."""
    own = Layout((PROMPT, COMPLETION), lambda row, where: None)
    columns = set(row) if isinstance(row, dict) else set()
    best = max((own, *layouts), key=lambda layout: len(columns & set(layout.columns)) / len(layout.columns))
    return None if best is own else best


def goal_in_layout(row: Any, layout: Layout, where: str) -> Goal | None:
    """The goal of a row of a published data set; None where the layout leaves the row out.

    Raises:
        BadInput: The row is no object, lacks a column, or is refused by the layout.
    """
    columns = ", ".join(layout.columns)
    if not isinstance(row, dict):
        raise BadInput(f"{where} is {kind_of(row)}; each row must be an object with {columns}.")
    if missing := [name for name in layout.columns if name not in row]:
        raise BadInput(
            f"{where}: there is no column {', '.join(missing)}. The row has: {', '.join(row)}. Rows like these need "
            f"{columns}."
        )
    return layout.goal(row, where)


def goal_of(row: Any, where: str, layouts: Sequence[Layout] = ()) -> Goal:
    """The goal of a row in the project's own form.

    Args:
        row: As it was read.
        where: File and line, for messages.
        layouts: Other forms that would be read too, for messages.

    Raises:
        BadInput: The row is no object, or a field is missing or holds something else than it must.
    """
    if not isinstance(row, dict):
        raise BadInput(
            f'{where} is {kind_of(row)}; each row must be an object: {{"{PROMPT}": ..., "{COMPLETION}": ...}}.'
        )
    also = "".join(f" Rows with {', '.join(layout.columns)} are read too." for layout in layouts)
    prompt, reference = (text_of(row, name, where, f"every goal needs it.{also}") for name in (PROMPT, COMPLETION))
    name = row.get("id")
    if name is None:
        name = derived_id(prompt, reference)
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        raise BadInput(
            f"{where}: field id is {kind_of(name)}; it must be text or a whole number. Fix it, or leave it out."
        )
    goal = Goal(str(name).strip(), prompt, reference, metadata_of(row.get(METADATA), where))
    _check_notes(goal, where)
    try:
        _ = goal.agenda
    except BadInput as error:
        raise BadInput(f"{where}: field {METADATA}: {error}") from error
    return goal


def _check_notes(goal: Goal, where: str) -> None:
    """Refuse `notes` or `cues` that are no list of texts, or not as many of one as of the other."""
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
            "cues, the words that a question can ask for it by. Write as many, or leave cues out."
        )


def text_of(row: Row, name: str, where: str, why: str = "every goal needs it.") -> str:
    """The text in a row's field, stripped; raises `BadInput` where it is missing, empty or no text."""
    value = row.get(name)
    if value is None:
        raise BadInput(f"{where}: field {name} is missing; {why} The row has: {', '.join(row) or '-'}.")
    if not isinstance(value, str):
        raise BadInput(f"{where}: field {name} is {kind_of(value)}; it must be text. Put it in quotes.")
    if not value.strip():
        raise BadInput(f"{where}: field {name} is empty; {why} Fill it in or remove the row.")
    return value.strip()


def metadata_of(value: Any, where: str) -> dict[str, Any]:
    """The field `single_turn_metadata` as a mapping without nulls; raises `BadInput` where it is no mapping."""
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


def derived_id(*texts: str) -> str:
    """An id made from texts: the same texts get the same id."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=6).hexdigest()


def scattered(row: Row) -> str:
    """A sort key by which rows that are sorted by subject come in an arbitrary order, the same every time."""
    return derived_id(json.dumps(row, default=str))


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words, with its first characters: "a number ('42')"."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return f"{names.get(type(value), type(value).__name__)} ({str(value)[:40]!r})"
