"""Typing errors of a simulated user."""

from __future__ import annotations

import re
from collections.abc import Collection

from numpy.random import Generator

# A word that may be mistyped: lower-case letters, four or more. A name, a number or a short word would be lost.
_WORD = re.compile(r"(?<![\w'])[a-z]{4,}(?![\w'])")


def mistyped(text: str, share: float, draws: Generator, spared: Collection[str] = ()) -> str:
    """`text` with about this share of its words mistyped.

    In a mistyped word two neighbouring letters change places, or a letter is left out or typed twice. The first and the
    last letter stay. Words with a capital, a digit or fewer than four letters are typed right.

    Args:
        text: A message.
        share: Of the words that may be mistyped, 0..1.
        draws: Where the errors come from.
        spared: Further words that are typed right.
    """

    def typed(match: re.Match[str]) -> str:
        word = match[0]
        chance, place, kind = draws.random(), int(draws.integers(1, len(word) - 2)), int(draws.integers(3))
        if chance >= share or word in spared:
            return word
        before, one, two, after = word[:place], word[place], word[place + 1], word[place + 2 :]
        return before + (two + one, two, one + one + two)[kind] + after

    return _WORD.sub(typed, text)
