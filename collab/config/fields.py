"""Fields of the schema that say which values they take, and the search of a config for values that break this.

`number` and `one_of` stand where a dataclass has a default: `lr: float = number(3e-4, above=0)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from collab.config.docs import field_docs

T = TypeVar("T")

_RULE = "rule"  # its key in the metadata of a field


@dataclass(frozen=True)
class _Rule:
    """Which values a field takes.

    Attributes:
        holds: Whether a value is one of them.
        words: What stands behind "must be".
        way_out: What stands behind "Set KEY".
        explained: The doc line goes into the message; where it only repeats the choices, it does not.
    """

    holds: Callable[[Any], bool]
    words: str
    way_out: str
    explained: bool = True


def number(
    default: T,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> T:
    """A field for a finite number within bounds. null passes, where the field's type has it.

    A subclass that gives the field another default has to repeat the bounds.
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    given = {words: bound for words, bound in bounds.items() if bound is not None}
    words = " and ".join(f"{words} {bound}" for words, bound in given.items())
    if given.keys() == {"at least", "at most"}:
        words = f"from {at_least} to {at_most}"
    way_out = f"={at_least} or more" if given.keys() == {"at least"} else " to such a number"

    def holds(value: Any) -> bool:
        return (
            math.isfinite(value)
            and (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (below is None or value < below)
        )

    rule = _Rule(holds, words or "a finite number", way_out)
    return field(default=default, metadata={_RULE: rule})


def one_of(default: str, *others: str) -> str:
    """A field for one of several words, the first of which is the default."""
    choices = (default, *others)
    rule = _Rule(choices.__contains__, f"one of {', '.join(choices)}", " to one of them", explained=False)
    return field(default=default, metadata={_RULE: rule})


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
        for one in fields(node):
            rule, value = one.metadata.get(_RULE), getattr(node, one.name)
            if rule is None or value is None or rule.holds(value):
                continue
            key = f"{parent}.{one.name}" if parent else one.name
            doc = field_docs(type(node)).get(one.name) if rule.explained else None
            yield f"{key} ({value}) must be {rule.words}{f': {doc}' if doc else ''}. Set {key}{rule.way_out}."
