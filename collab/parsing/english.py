"""Reading English chat messages: sentences, questions, content words."""

from __future__ import annotations

import re
from functools import lru_cache

# A full stop inside a number, a time or an address (3.5, a.m., example.org) ends nothing.
_SENTENCE = re.compile(r"""(?:[^.!?\n]|\.(?=[\da-z]))*+(?:[.!?]+["')\]*”’»]*)?""")
_WORD = re.compile(r"[^\W_]+(?:'[a-z]+)?")  # letters and digits of any script

_STOPWORDS = frozenset(
    """
    a about above after again all also am an and any are as at be because been before being below between both but by
    can could did do does doing down during each else few for from further get give go had has have having he her here
    hers him his how i if in into is it its itself just know let like make may me might more most must my myself need no
    nor not now of off on once one only or other our ours out over own please same shall she should so some something
    such tell than thank thanks that the their theirs them then there these they this those through to too under until
    up us very want was we well were what when where which while who whom why will with would yes you your yours
    help write writing provide
    """.split()
)


def words(text: str) -> list[str]:
    """Lower-case words and numbers, in order."""
    return _WORD.findall(text.lower())


def stem(word: str) -> str:
    """Fold the commonest English endings: enough to match "opens" with "open", no linguistics."""
    word = word.split("'")[0]
    for ending in ("ing", "ers", "ies", "ed", "es", "er", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


@lru_cache(maxsize=16384)  # the same notes and messages are read at every turn
def content_words(text: str) -> frozenset[str]:
    """Stems of the words that carry meaning."""
    return frozenset(stem(word) for word in words(text) if word.split("'")[0] not in _STOPWORDS)


def sentences(text: str) -> list[str]:
    """Sentences and line fragments, stripped, in order; end marks stay with their sentence."""
    return [sentence for part in _SENTENCE.findall(text) if (sentence := part.strip())]


def questions(text: str) -> list[str]:
    """The sentences that ask something."""
    return [sentence for sentence in sentences(text) if "?" in sentence]


def without_questions(text: str) -> str:
    """The other sentences, joined by spaces."""
    return " ".join(sentence for sentence in sentences(text) if "?" not in sentence)


def names_and_numbers(text: str, opens: bool = False) -> frozenset[str]:
    """The words with a digit, and those with a capital inside a sentence; in lower case.

    Args:
        text: The text to search.
        opens: Whether a capital at the beginning of a sentence marks a name too.
    """
    found = set()
    for sentence in sentences(text):
        for place, match in enumerate(_WORD.finditer(sentence)):
            word = match[0].split("'")[0]
            named = word[0].isupper() and word != "I" and (place > 0 or opens)
            if named or any(character.isdigit() for character in word):
                found.add(word.lower())
    return frozenset(found)
