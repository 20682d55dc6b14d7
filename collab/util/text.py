"""Whether a text has anything that a reader sees."""

from __future__ import annotations

import unicodedata

# Letters and signs by their category that are drawn as nothing: Hangul fillers and the empty Braille cell.
_DRAWN_AS_NOTHING = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def is_blank(text: str) -> bool:
    """Whether a text has only spaces, control characters, zero-width characters and the like, or nothing."""
    return all(
        character in _DRAWN_AS_NOTHING
        or unicodedata.category(character) in ("Cc", "Cf", "Cn", "Cs", "Mn", "Zs", "Zl", "Zp")
        for character in text
    )
