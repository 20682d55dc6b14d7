"""The doc line of each field of the schema, for `--help` and messages: the comment behind the field, or above it."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass

_FIELD = re.compile(r"    (\w+): [^#\n]*(?:#\s*(.*))?")
_COMMENT = re.compile(r"    #\s*(.*)")


def field_docs(schema: type) -> dict[str, str]:
    """Field name -> its doc line, inherited fields too. A comment above a field may have several lines.

    Empty where Python has no source at hand.
    """
    docs: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        try:
            lines = inspect.getsource(cls).splitlines() if is_dataclass(cls) else []
        except OSError:
            lines = []
        above: list[str] = []
        for line in lines:
            if found := _FIELD.fullmatch(line):
                if doc := found[2] or " ".join(above):
                    docs[found[1]] = doc
            comment = _COMMENT.fullmatch(line)
            above = [*above, comment[1]] if comment else []
    return docs
