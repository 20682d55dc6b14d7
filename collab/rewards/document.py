"""Metrics of the final text beside BLEU: coverage of the notes, repetition, copied and unsupported parts."""

from __future__ import annotations

import re

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import form_of, makes, notes_of, preferences_of, topic_of
from collab.parsing.agenda_state import coverage
from collab.parsing.english import content_words, sentences, words
from collab.rewards.metrics import TextMetric

_CLAUSE = re.compile(r"[;:\n]+")
_PART = re.compile(r"[,;:]|\b(?:and|but|so|because|which)\b")  # what ends a part of a sentence
_ANYWHERE = content_words(  # what a text may say whatever it is about
    "please note here see come look read write know tell ask thank welcome join enjoy everyone people day time today "
    "soon make take get go good great love hope help need want bring keep let give happy glad pleased sorry forgive "
    "hurry wait miss"
)
_NEW = 0.6  # a clause is unsupported from this share of new content words on
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


class Unsupported(_DocumentMetric):
    """Share of the final text's clauses that nothing the user knows supports, 0..1 (`unsupported`)."""

    def of(self, text: str, conversation: Conversation) -> float:
        return unsupported(conversation.goal, text)


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


def unsupported(goal: Goal, text: str) -> float:
    """Share of a text's clauses whose content words are mostly nobody's, 0..1; 0 for a text without content words.

    The user's words are those of the notes, the topic, the form and the wishes, other than the tone: a text is to have
    its tone, not to name it.
    """
    wishes = [value for name, value in preferences_of(goal).items() if name != "tone"]
    known = content_words(" ".join([*notes_of(goal), topic_of(goal), form_of(goal), *wishes])) | _ANYWHERE
    clauses = [content_words(part) for sentence in sentences(text) for part in _PART.split(sentence)]
    clauses = [clause for clause in clauses if clause]
    return sum(len(clause - known) >= _NEW * len(clause) for clause in clauses) / len(clauses) if clauses else 0.0


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
