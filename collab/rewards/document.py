"""Metrics of the final text beside BLEU: coverage of the notes, repetition, copied parts."""

from __future__ import annotations

import re

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import makes
from collab.parsing.agenda_state import coverage
from collab.parsing.english import content_words, sentences, words
from collab.rewards.metrics import TextMetric

_CLAUSE = re.compile(r"[;:\n]+")
_SAME = 0.8  # two sentences say the same from this Jaccard index of their content words on
_GRAM = 6  # words in a row that count as copied
_LOOP = 3  # words in a row that count as repeated


class _DocumentMetric(TextMetric):
    """Applies to goals that end in a text."""

    def applies(self, goal: Goal) -> bool:
        return makes(goal) == "text"


class Coverage(_DocumentMetric):
    """Share of the goal's notes that are in the final text, 0..1 (`collab.parsing.agenda_state.coverage`)."""

    def of(self, text: str, conversation: Conversation) -> float:
        return coverage(conversation.goal, text)


class Repetition(_DocumentMetric):
    """Share of the final text that repeats something, 0..1 (`repetition`)."""

    def of(self, text: str, conversation: Conversation) -> float:
        return repetition(text)


class Copied(_DocumentMetric):
    """Share of the final text's 6-grams of words that the user's messages hold, 0..1 (`copied`)."""

    def of(self, text: str, conversation: Conversation) -> float:
        return copied(text, [turn.user for turn in conversation.turns])


def repetition(text: str) -> float:
    """The larger of two shares, 0..1.

    One is the share of sentences and clauses that say the same as an earlier one; the other is the share of 3-grams of
    words that occurred before.
    """
    parts = [content_words(clause) for sentence in sentences(text) for clause in _CLAUSE.split(sentence)]
    parts = [part for part in parts if len(part) > 1]
    again = sum(any(_same(part, earlier) for earlier in parts[:place]) for place, part in enumerate(parts))
    grams = _grams(text, _LOOP)
    looped = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return max(again / len(parts) if parts else 0.0, looped)


def copied(text: str, messages: list[str]) -> float:
    """Share of a text's 6-grams of words that are in one of the messages, 0..1; 0 for a text of fewer words."""
    theirs = set().union(*(_grams(message, _GRAM) for message in messages))
    own = _grams(text, _GRAM)
    return sum(gram in theirs for gram in own) / len(own) if own else 0.0


def _same(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= _SAME * len(one | other)


def _grams(text: str, size: int) -> list[tuple[str, ...]]:
    spoken = words(text)
    return [tuple(spoken[place : place + size]) for place in range(len(spoken) - size + 1)]
