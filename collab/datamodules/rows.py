"""From a row, as it was read, to a goal: its fields and what each must hold. No torch in this file.

A row in the project's own form has the fields that the ecosystem uses:

- `single_turn_prompt`: what the user wants, in one message. Text, required.
- `single_turn_completion`: the reference: the text, answer or program that the user is after. Text, required.
- `single_turn_metadata`: a mapping, or a JSON string of one; optional. Its `notes`, a list of texts, are what the user
  knows; `cues`, one text for each note, are words that a question can ask for it by; `preferences`, an object, is what
  the user prefers. The user tells nothing else of it, apart from `title` and `form`.
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
from collab.util.text import is_blank

PROMPT = "single_turn_prompt"
COMPLETION = "single_turn_completion"
METADATA = "single_turn_metadata"

Row = Mapping[str, Any]

_TOLD = ("notes", "cues", "preferences", "agenda")  # entries of the metadata that say what the user tells

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Layout:
    """How the rows of a published data set become goals.

    Attributes:
        columns: The layout is recognised by these; a row must have all of them.
        goal: (row, where it was read) -> its goal; None leaves the row out. Raises `BadInput`.
        order: row -> a sort key; None keeps the rows in file order. Splits are cut in this order.
    """

    columns: tuple[str, ...]
    goal: Callable[[Row, str], Goal | None]
    order: Callable[[Row], Any] | None = None

    def share(self, row: Row) -> float:
        """The share of the columns that a row has, 0..1."""
        return len(row.keys() & set(self.columns)) / len(self.columns)

    def read(self, row: Row, where: str) -> Goal | None:
        """The goal of a row; None where the layout leaves it out. Raises `BadInput` if a column is missing too."""
        if missing := [name for name in self.columns if name not in row]:
            raise BadInput(
                f"{where}: there is no column {', '.join(missing)}. The row has: {', '.join(row)}. Rows like these "
                f"need {', '.join(self.columns)}."
            )
        return self.goal(row, where)


def layout_of(row: Row, layouts: Sequence[Layout]) -> Layout | None:
    """The layout with the largest share of its columns in the row, half at least; None for the project's own form."""
    own = Layout((PROMPT, COMPLETION), lambda row, where: None)
    best = max((own, *layouts), key=lambda layout: layout.share(row))
    return None if best is own or best.share(row) < 0.5 else best


def goal_of(row: Row, where: str, layouts: Sequence[Layout] = ()) -> Goal:
    """The goal of a row in the project's own form.

    Args:
        row: As it was read.
        where: File and line, for messages.
        layouts: Other forms that would be read too, for messages.

    Raises:
        BadInput: A field is missing or does not hold what it must.
    """
    also = "".join(f" Rows with {', '.join(layout.columns)} are read too." for layout in layouts)
    prompt, reference = (text_of(row, name, where, f"Every goal needs it.{also}") for name in (PROMPT, COMPLETION))
    name = derived_id(prompt, reference) if row.get("id") is None else id_of(row, "id", where)
    _check_beside(row, where)
    goal = Goal(name, prompt, reference, metadata_of(row, where))
    _check_notes(goal, where)
    _check_title(goal, where)
    _check_preferences(goal, where)
    _check_agenda(goal, where)
    return goal


def _check_beside(row: Row, where: str) -> None:
    """Refuse columns that are read only as a part of the metadata: the user would tell nothing of them."""
    beside = [name for name in ("title", "form", *_TOLD) if row.get(name) is not None]
    if set(beside) & set(_TOLD):
        example = json.dumps({"title": "the picnic", "notes": ["it starts at six"]})
        raise BadInput(
            f"{where}: {', '.join(beside)} would not be read beside {METADATA}, only within it. Write an object there "
            f"(in CSV a JSON string of one), e.g. {example}. Rename what is not meant for the user."
        )


def _check_title(goal: Goal, where: str) -> None:
    for name in ("title", "form"):
        value = goal.metadata.get(name, "")
        if not isinstance(value, str) or (value.strip() and is_blank(value)):
            raise BadInput(
                f"{where}: field {METADATA}: {name} is {kind_of(value)}; it must be text that can be read. Fix it, or "
                "leave it out."
            )


def _check_preferences(goal: Goal, where: str) -> None:
    place = f"{where}: field {METADATA}: preferences"
    for name, value in checked(goal.metadata.get("preferences", {}), "an object", place).items():
        if not all(isinstance(entry, str | int | float) for entry in (value if isinstance(value, list) else [value])):
            raise BadInput(
                f"{place}: {name} is {kind_of(value)}; it must be text, a number, or a list of these, since the user "
                "tells it. Fix it, or leave it out."
            )


def _check_agenda(goal: Goal, where: str) -> None:
    if isinstance(goal.metadata.get("agenda", {}), Mapping):
        try:
            agenda = goal.agenda
        except BadInput as error:
            raise BadInput(f"{where}: field {METADATA}: {error}") from error
        if agenda is None or not any(map(is_blank, (agenda.opening, *(item.text for item in agenda.items)))):
            return
    raise BadInput(
        f"{where}: field {METADATA}: agenda is {kind_of(goal.metadata['agenda'])}; it must be an object, and its texts "
        "must not be empty. Fix it, or leave it out."
    )


def _check_notes(goal: Goal, where: str) -> None:
    for name in ("notes", "cues"):
        value = goal.metadata.get(name, [])
        if not isinstance(value, list) or not all(isinstance(text, str) and not is_blank(text) for text in value):
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


def unwrapped(row: Row) -> Row:
    """A row of verl's CollabLLM recipe as the row that it was made from; any other row as it is.

    verl keeps the columns of the published data in `extra_info`, and the goal's prompt in its `interaction_kwargs`.
    """
    inner = row.get("extra_info")
    told = inner.get("interaction_kwargs") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(told, Mapping):
        return row
    reference = inner.get(COMPLETION) or row.get("ground_truth")
    return {**inner, "prompt": row.get("prompt"), PROMPT: told.get(PROMPT), COMPLETION: reference}


# --- fields ----------------------------------------------------------------------------------------------------------


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words, with its first characters: "a number ('42')"."""
    return f"{_KINDS.get(type(value), type(value).__name__)} ({str(value)[:40]!r})"


def checked(value: Any, kind: str, what: str) -> Any:
    """`value`, if it is "text", "a number", "true or false", "a list" or "an object"; otherwise raises `BadInput`."""
    if _KINDS.get(type(value)) != kind:
        raise BadInput(f"{what} is {kind_of(value)}; it must be {kind}. Fix it or remove the row.")
    return value


def missing(row: Row, name: str, where: str, why: str = "") -> BadInput:
    """The error of a row without a field; `why` says why the field is needed."""
    return BadInput(f"{where}: field {name} is missing. It has: {', '.join(row) or '-'}. {why}".rstrip())


def field_of(row: Row, name: str, where: str, kind: str = "text", why: str = "") -> Any:
    """What a row's field holds; raises `BadInput` if it is missing, null or not of this `kind` (see `checked`)."""
    if row.get(name) is None:
        raise missing(row, name, where, why)
    return checked(row[name], kind, f"{where}: field {name}")


def text_of(row: Row, name: str, where: str, why: str = "Every goal needs it.") -> str:
    """The text in a row's field, stripped; raises `BadInput` if it is missing, empty or no text."""
    text = field_of(row, name, where, why=why).strip()
    if is_blank(text):
        raise BadInput(f"{where}: field {name} is empty. {why} Fill it in or remove the row.")
    return text


def id_of(row: Row, name: str, where: str) -> str:
    """The id in a row's field; raises `BadInput` unless it is a whole number or text that is not empty."""
    value = row.get(name)
    if value is None:
        raise missing(row, name, where)
    if type(value) not in (str, int) or is_blank(str(value)):
        raise BadInput(f"{where}: field {name} is {kind_of(value)}; it must be text or a whole number. Fix it.")
    return str(value).strip()


def metadata_of(row: Row, where: str) -> dict[str, Any]:
    """The field `single_turn_metadata` without nulls; raises `BadInput` unless a JSON object can hold it."""
    value = row.get(METADATA)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{where}: field {METADATA} is text that is not JSON ({error}); it must be an object, or a JSON string "
                'of one, e.g. {"title": "the picnic"}.'
            ) from error
    if value is None:
        return {}
    found = _without_nulls(checked(value, "an object", f"{where}: field {METADATA}"))
    for name, entry in found.items():
        _check_storable(entry, f"{where}: field {METADATA}: {name}")
    return found


def _check_storable(value: Any, what: str) -> None:
    """Refuse what strict JSON cannot hold: numbers that are not finite, and text with half of a character."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False, default=str).encode()
    except ValueError as error:
        raise BadInput(
            f"{what} is {kind_of(value)}; it must have finite numbers and whole characters only. Fix it, or leave it "
            "out."
        ) from error


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
