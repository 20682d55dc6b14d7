"""Differences between two configs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_ABSENT = object()  # equal to no value of a config
_SHOWN = 80  # characters of a value in a message


def differences(
    one: Any, other: Any, ignored: Callable[[str], bool] = lambda key: False, key: str = ""
) -> Iterable[tuple[str, Any, Any]]:
    """Dotted name and both values of each field in which two configs differ; None for a missing value."""
    if key and ignored(key):
        return
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            inner = f"{key}.{name}" if key else str(name)
            yield from differences(one.get(name, _ABSENT), other.get(name, _ABSENT), ignored, inner)
    elif one != other:
        yield key, None if one is _ABSENT else one, None if other is _ABSENT else other


def changes(there: Any, here: Any, ignored: Callable[[str], bool] = lambda key: False) -> list[str]:
    """The differences in words; a missing field counts as null."""
    found = [(key, one, other) for key, one, other in differences(there, here, ignored) if one != other]
    return [f"{key} is {_shown(one)} there and {_shown(other)} here" for key, one, other in found]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
