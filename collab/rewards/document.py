"""What the final text is measured by, beside BLEU: which notes it holds, what it repeats, what is pasted."""

from __future__ import annotations

import re

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import makes
from collab.parsing.agenda_state import coverage
from collab.parsing.english import content_words, sentences, words
from collab.rewards.metrics import Extractor, Judged, checked_flag, extract

_CLAUSE = re.compile(r"[;:\n]+")
_SAME = 0.8  # Jaccard index of content words from which on two sentences say the same
_GRAM = 6  # words in a row that count as copied
_LOOP = 3  # words in a row that count as said twice


class _TextMetric:
    """A metric of the final text.

    Args:
        finished_only: 0 for what a window cut off before there was a final text. Else its last draft counts.
        with_notes: 0 for a text that says none of the user's notes: it earns nothing anyway.

    Attributes:
        extractor: A model that extracts the text; None takes the rule of `collab.rewards.metrics.extract`.

    Raises:
        BadInput: `finished_only` or `with_notes` is not true or false.
    """

    extractor: Extractor | None = None

    def __init__(self, finished_only: bool = True, with_notes: bool = False) -> None:
        self.finished_only = checked_flag("finished_only", finished_only)
        self.with_notes = checked_flag("with_notes", with_notes)

    def applies(self, goal: Goal) -> bool:
        return makes(goal) == "text"

    async def __call__(self, conversation: Conversation) -> float | Judged:
        if self.finished_only and conversation.ended_by == "window":
            return 0.0
        if self.extractor is None:
            return self._of(extract(conversation), conversation)
        found = await self.extractor.extract(conversation, "document")
        return Judged(None if found.value is None else self._of(found.value, conversation), found.replies)

    def _of(self, text: str, conversation: Conversation) -> float:
        if self.with_notes and not coverage(conversation.goal, text):
            return 0.0
        return self._value(text, conversation)

    def _value(self, text: str, conversation: Conversation) -> float:
        raise NotImplementedError


class Coverage(_TextMetric):
    """Share of the goal's notes that are in the final text, 0..1 (`collab.simulation.agenda.covers`)."""

    def _value(self, text: str, conversation: Conversation) -> float:
        return coverage(conversation.goal, text)


class Repetition(_TextMetric):
    """Share of the final text that says again what it has said, 0..1 (`repetition`)."""

    def _value(self, text: str, conversation: Conversation) -> float:
        return repetition(text)


class Copied(_TextMetric):
    """Share of the final text's 6-grams of words that the user's messages hold, 0..1: pasted, not written."""

    def _value(self, text: str, conversation: Conversation) -> float:
        return copied(text, [turn.user for turn in conversation.turns])


def repetition(text: str) -> float:
    """The share of a text's sentences and clauses that say again what an earlier one said, or of its 3-grams of words
    that it had before, whichever is larger, 0..1."""
    parts = [content_words(clause) for sentence in sentences(text) for clause in _CLAUSE.split(sentence)]
    parts = [part for part in parts if len(part) > 1]
    again = sum(any(_same(part, earlier) for earlier in parts[:place]) for place, part in enumerate(parts))
    grams = _grams(text, _LOOP)
    looped = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return max(again / len(parts) if parts else 0.0, looped)


def copied(text: str, messages: list[str]) -> float:
    """Share of a text's 6-grams of words that one of the messages holds, 0..1; 0 for a text of fewer words."""
    theirs = set().union(*(_grams(message, _GRAM) for message in messages))
    own = _grams(text, _GRAM)
    return sum(gram in theirs for gram in own) / len(own) if own else 0.0


def _same(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= _SAME * len(one | other)


def _grams(text: str, size: int) -> list[tuple[str, ...]]:
    spoken = words(text)
    return [tuple(spoken[place : place + size]) for place in range(len(spoken) - size + 1)]
