"""The agenda of the rule-based user: the notes and preferences of a goal, or the items that the goal spells out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from collab.conversation import Artefact, Goal
from collab.parsing.english import content_words, sentences
from collab.parsing.manners import MANNERS, OPENINGS, OPENINGS_WITHOUT_TOPIC, Manner
from collab.parsing.questions import slots_of

CONTENT = "content"
_PREFERENCE_CUES = {  # preference -> words by which a question asks for it, slots among them (`questions.SLOTS`)
    "tone": "tone style mood voice formal informal casual friendly humorous sound feel",
    "audience": "audience reader readers recipient read aimed target addressed",
    "length": "length long short brief detailed words sentences",
    "purpose": "purpose aim reason goal why",
    "format": "format layout structure",
    "avoid": "avoid leave",
    "style": "style tone",
    "call_to_action": "action",
}
_PARTS = {  # kind of an item that is spelt out -> words by which a question names it
    "quantity": "quantity number amount value many figure",
    "condition": "condition given known restriction constraint assume",
    "signature": "signature name named called argument arguments parameter parameters input inputs take accept header",
    "edge case": "edge case cases empty invalid error errors exception exceptions raise corner special negative",
    "library": "library libraries package packages module modules import imports dependency dependencies",
    "output": "output outputs return returns result results type format",
    "example": "example examples sample expected",
    "behaviour": "behaviour behavior requirement requirements rule rules exactly detail details",
}


@dataclass(frozen=True)
class Item:
    """One thing on the agenda.

    Attributes:
        kind: "content" for a note or a sentence, the name of a preference, or the kind that the agenda gives.
        text: What the user says, or the value of the preference.
        cues: Words by which a question asks for it, besides those of `text`; None for a note without cues.
        spelt_out: Whether the goal's agenda spells it out.
        slotted: Whether it fills the slots that its cues name, although it is spelt out: "When?" asks for a day.
    """

    kind: str
    text: str
    cues: str | None = None
    spelt_out: bool = False
    slotted: bool = False

    @property
    def preference(self) -> bool:
        return self.kind != CONTENT and not self.spelt_out

    @property
    def hints(self) -> frozenset[str]:
        """Stems by which a question can ask for this item."""
        return content_words(f"{self.text} {self.cues or ''}")

    @property
    def slots(self) -> frozenset[str]:
        """The slots that it fills: those that its cues name, or those that its text seems to fill if it has no cues."""
        if self.spelt_out:
            return slots_of(self.cues or "") if self.slotted else frozenset()
        slots = _slots_in(self.text) if self.cues is None else slots_of(self.cues)
        return slots if self.preference else slots - {"tone", "length"}


def notes_of(goal: Goal) -> list[str]:
    """What the user knows: the goal's notes. A goal without notes has the sentences of its reference instead."""
    return list(goal.notes) or sentences(goal.reference)


def agenda_of(goal: Goal) -> list[Item]:
    """The agenda that the goal spells out. Without one: the notes, then the preferences, in the order of the file."""
    if goal.agenda is not None:
        slotted = goal.agenda.makes == "action"
        return [
            Item(item.kind, item.text, f"{item.kind} {_PARTS.get(item.kind, '')} {item.cues}", True, slotted)
            for item in goal.agenda.items
        ]
    cues = goal.metadata.get("cues") or ()
    content = [Item(CONTENT, note, cues[i] if i < len(cues) else None) for i, note in enumerate(notes_of(goal))]
    preferences = [
        Item(name, value, f"{name} {_PREFERENCE_CUES.get(name, '')}") for name, value in preferences_of(goal).items()
    ]
    return content + preferences


def shards_of(goal: Goal) -> list[str]:
    """The goal as a sharded instruction: first what is wanted, then one part for each item of its agenda."""
    first = goal.agenda.opening if goal.agenda is not None else f"Please write {wanted_of(goal)}."
    parts = (
        f"The {item.kind.replace('_', ' ')} should be {item.text}." if item.preference else item.text
        for item in agenda_of(goal)
    )
    return [first, *parts]


def preferences_of(goal: Goal) -> dict[str, str]:
    """What the user prefers: the entry `preferences` of the metadata, name -> value in words.

    The user tells nothing of the other metadata, which may hold a key for scoring, say.
    """
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in (goal.metadata.get("preferences") or {}).items()
        if value or isinstance(value, int | float)  # 0 is one
    }


def topic_of(goal: Goal) -> str:
    """What the opening calls the subject: the title, or "" without one, because the prompt would give content away."""
    return str(goal.metadata.get("title") or "").strip()


def makes(goal: Goal) -> Artefact:
    """What the user wants to have in the end."""
    return goal.agenda.makes if goal.agenda is not None else "text"


def manner_of(goal: Goal) -> Manner:
    return MANNERS[makes(goal)]


def form_of(goal: Goal) -> str:
    """What the user calls the thing that it wants, such as "notice"."""
    return str(goal.metadata.get("form") or manner_of(goal).form)


def openings(goal: Goal, topic: bool = True) -> list[str]:
    """The first messages that the user chooses from; without `topic` they only name the kind of text."""
    if goal.agenda is not None:
        return [template.format(opening=goal.agenda.opening) for template in manner_of(goal).openings]
    about, form = topic_of(goal) if topic else "", _a(form_of(goal))
    templates = OPENINGS if about else OPENINGS_WITHOUT_TOPIC
    return [template.format(form=form, topic=about) for template in templates]


def wanted_of(goal: Goal, topic: bool = True) -> str:
    """What the user wants, in a few words: "a notice about the shared kiln", or the opening of an agenda.

    Without `topic`: "a notice".
    """
    if goal.agenda is not None:
        return goal.agenda.opening
    about = topic_of(goal) if topic else ""
    return f"{_a(form_of(goal))} about {about}" if about else _a(form_of(goal))


def _a(form: str) -> str:
    return f"{'an' if form[:1].lower() in 'aeiou' else 'a'} {form}"


_IN_TEXT = {  # slot -> pattern of the notes without cues that seem to fill it
    "when": re.compile(
        r"\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|january|february|march|april|june|july|august|september|"
        r"october|november|december|noon|midnight|morning|afternoon|evening|tonight|tomorrow|o'clock|a\.?m|p\.?m|"
        r"weeks?|weekend|month|daily|weekly|every|until|till|since|deadline|\d{1,2}[:.]\d{2})\b",
        re.IGNORECASE,
    ),
    "where": re.compile(
        r"\b(?:in|at|behind|near|under|beside|opposite|outside|inside|next to|on) (?:the |our |my |her |his )?[A-Za-z]+"
        r"|\b(?:street|road|hall|room|floor|square|corner)\b",
        re.IGNORECASE,
    ),
    "how much": re.compile(r"\b(?:euros?|dollars?|pounds?|cents?|free|costs?|price|fee)\b|[€$£]", re.IGNORECASE),
    "how many": re.compile(r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|dozen|hundred|thousand)\b"),
    "contact": re.compile(r"\b(?:call|phone|ring|e?mail|register|sign up|rsvp|ask)\b|@", re.IGNORECASE),
    "reason": re.compile(r"\b(?:because|since|so that|in order to|as)\b", re.IGNORECASE),
    "who": re.compile(r"(?<=[a-z,] )[A-Z][a-z]+"),
}


@lru_cache(maxsize=4096)  # read at every turn of every conversation
def _slots_in(text: str) -> frozenset[str]:
    return frozenset(slot for slot, pattern in _IN_TEXT.items() if pattern.search(text))
