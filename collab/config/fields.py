"""Fields of the schema that say which values they take, and the search of a config for values that break this.

`number`, `one_of` and `filled` stand where a dataclass has a default: `lr: float = number(3e-4, above=0)`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import Field, field, fields, is_dataclass
from string import Formatter
from typing import Any, TypeVar

from collab.config.docs import field_docs

T = TypeVar("T")

_RULE = "rule"  # key in a field's metadata: (whether a value is allowed, the words behind "must be")
_FILLED = "filled"  # the same: (what the prompt may have in braces, what it must have)


def number(
    default: T,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> T:
    """A field for a finite number within bounds. null passes if the field's type has it.

    A subclass that gives the field another default has to repeat the bounds.
    """
    bounds = (
        ("at least", at_least, operator.ge),
        ("above", above, operator.gt),
        ("at most", at_most, operator.le),
        ("below", below, operator.lt),
    )
    words = " and ".join(f"{words} {bound}" for words, bound, _ in bounds if bound is not None)

    def holds(value: Any) -> bool:
        return math.isfinite(value) and all(test(value, bound) for _, bound, test in bounds if bound is not None)

    return field(default=default, metadata={_RULE: (holds, words or "a finite number")})


def one_of(default: str, *others: str) -> str:
    """A field for one of several words, the first of which is the default."""
    choices = (default, *others)
    return field(default=default, metadata={_RULE: (choices.__contains__, f"one of {', '.join(choices)}")})


def filled(told: str, needed: str) -> str:
    """A field `NAME_prompt` or `prompt` for a prompt that is filled in; empty, the default, is our own words.

    Args:
        told: What may stand in braces, joined by blanks.
        needed: What of it must.
    """
    return field(default="", metadata={_FILLED: (told.split(), needed.split())})


def filled_prompts(node: Any) -> dict[str, str]:
    """What is asked -> its prompt: `NAME` -> the field `NAME_prompt`, "" where our own words are asked."""
    names = (each.name for each in fields(node) if _FILLED in each.metadata)
    return {name.removesuffix("_prompt"): getattr(node, name) for name in names}


def rule(each: Field[Any]) -> str:
    """What a value of the field must be, such as "at least 1"; empty if its type says all."""
    return each.metadata.get(_RULE, (None, ""))[1]


def nodes(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> dataclass, of a config and of everything in it; the config itself is at ""."""
    if is_dataclass(node):
        yield key, node
    if is_dataclass(node) or isinstance(node, dict):
        for name, value in (node if isinstance(node, dict) else vars(node)).items():
            yield from nodes(value, f"{key}.{name}" if key else str(name))


def range_problems(config: Any) -> Iterator[str]:
    """A message for each value that its field does not take."""
    for parent, node in nodes(config):
        for each in fields(node):
            holds, words = each.metadata.get(_RULE, (None, ""))
            value = getattr(node, each.name)
            if holds is not None and value is not None and not holds(value):
                key = f"{parent}.{each.name}" if parent else each.name
                doc = field_docs(type(node)).get(each.name)
                yield f"{key} ({value}) must be {words}{f': {doc}' if doc else ''}."


def prompt_problems(config: Any) -> Iterator[str]:
    """A message for each prompt with braces that stand for nothing, or without what the model has to see."""
    for parent, node in nodes(config):
        for each in fields(node):
            told, needed = each.metadata.get(_FILLED, ([], []))
            if not told:
                continue
            key, prompt = f"{parent}.{each.name}", getattr(node, each.name)
            try:
                prompt.format(**dict.fromkeys(told, ""))
            except (LookupError, ValueError) as error:
                *others, last = (f"{{{name}}}" for name in told)
                yield (
                    f"{key} has braces that stand for nothing ({error}): it may have {', '.join(others)} and {last}, "
                    "and other braces are written twice, {{ and }}."
                )
                continue
            there = {name for _, name, _, _ in Formatter().parse(prompt)}
            if prompt and (lacking := [f"{{{name}}}" for name in needed if name not in there]):
                yield (
                    f"{key} has no {' and no '.join(lacking)}, so the model would never see it. Write it where it is "
                    "to stand, or leave the prompt empty for our own words."
                )
