"""What the rule-based user has on its agenda: notes and preferences of a goal, or the items that a goal spells out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from collab.conversation import Artefact, Goal
from collab.parsing.english import content_words, sentences
from collab.parsing.manners import MANNERS, OPENINGS, OPENINGS_WITHOUT_TOPIC, Manner
from collab.parsing.questions import slots_of

CONTENT = "content"
_NOT_PREFERENCES = frozenset({"title", "form", "notes", "cues"})  # metadata that is told at once, or is no preference
_PREFERENCE_CUES = {  # preference -> words by which a question asks for it; slots are named as in questions.SLOTS
    "tone": "tone style mood voice formal informal casual friendly humorous sound feel",
    "audience": "audience reader readers recipient read aimed target addressed",
    "length": "length long short brief detailed words sentences",
    "purpose": "purpose aim reason goal why",
    "format": "format layout structure",
    "avoid": "avoid leave",
    "style": "style tone",
    "call_to_action": "action",
}

_PARTS = {  # of agendas that are spelt out: kind -> words by which a question names it
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
        kind: "content" for a note or a sentence, the metadata's key for a preference, else what the agenda says.
        text: What the user says, or the value of the preference.
        cues: Words by which it can be asked for; None where there are none but those of kind and text.
        spelt_out: Whether the goal's agenda spells it out.
    """

    kind: str
    text: str
    cues: str | None = None
    spelt_out: bool = False

    @property
    def hints(self) -> frozenset[str]:
        """Stems by which a question can ask for this item."""
        return _hints(self)

    @property
    def slots(self) -> frozenset[str]:
        """Slots that it fills: those that its cues name, else those that can be read off its text."""
        return _item_slots(self)

    @property
    def preference(self) -> bool:
        return self.kind != CONTENT and not self.spelt_out


@lru_cache(maxsize=4096)  # items are read again at every turn of every conversation
def _hints(item: Item) -> frozenset[str]:
    kind = item.kind.replace("_", " ")
    if item.kind == CONTENT:
        named = item.cues or ""
    elif item.spelt_out:
        named = f"{kind} {_PARTS.get(item.kind, '')} {item.cues or ''}"
    else:
        named = f"{kind} {_PREFERENCE_CUES.get(item.kind, '')}"
    return content_words(f"{item.text} {named}")


@lru_cache(maxsize=4096)
def _item_slots(item: Item) -> frozenset[str]:
    if item.kind == CONTENT:
        return (slots_of(item.cues) if item.cues is not None else _slots_in(item.text)) - {"tone", "length"}
    return frozenset() if item.spelt_out else slots_of(f"{item.kind} {_PREFERENCE_CUES.get(item.kind, '')}")


def notes_of(goal: Goal) -> list[str]:
    """What the user knows: the goal's notes, or the sentences of its reference where it has none."""
    return list(goal.notes) or sentences(goal.reference)


def agenda_of(goal: Goal) -> list[Item]:
    """The agenda that the goal spells out, or else the notes, then the preferences, as filed."""
    if goal.agenda is not None:
        return [Item(item.kind, item.text, item.cues, spelt_out=True) for item in goal.agenda.items]
    notes, cues = notes_of(goal), goal.metadata.get("cues") or ()
    content = [Item(CONTENT, note, cues[i] if i < len(cues) else None) for i, note in enumerate(notes)]
    preferences = [
        Item(key, str(value)) for key, value in goal.metadata.items() if key not in _NOT_PREFERENCES and value
    ]
    return content + preferences


def topic_of(goal: Goal) -> str:
    """What the opening calls the subject: the title; "" without one, since the prompt would give content away."""
    return str(goal.metadata.get("title") or "").strip()


def form_of(goal: Goal) -> str:
    return str(goal.metadata.get("form") or manner_of(goal).form)


def makes(goal: Goal) -> Artefact:
    """What the user wants to have in the end."""
    return goal.agenda.makes if goal.agenda is not None else "text"


def manner_of(goal: Goal) -> Manner:
    return MANNERS[makes(goal)]


def openings(goal: Goal) -> list[str]:
    if goal.agenda is not None:
        return [template.format(opening=goal.agenda.opening) for template in manner_of(goal).openings]
    topic = topic_of(goal)
    templates = OPENINGS if topic else OPENINGS_WITHOUT_TOPIC
    return [template.format(form=_with_article(form_of(goal)), topic=topic) for template in templates]


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


_WHEN = re.compile(
    r"\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|january|february|march|april|june|july|august|september|"
    r"october|"
    r"november|december|noon|midnight|morning|afternoon|evening|tonight|tomorrow|o'clock|a\.?m|p\.?m|weeks?|weekend|"
    r"month|daily|weekly|every|until|till|since|deadline|\d{1,2}[:.]\d{2})\b",
    re.IGNORECASE,
)
_WHERE = re.compile(
    r"\b(?:in|at|behind|near|under|beside|opposite|outside|inside|next to|on) (?:the |our |my |her |his )?[A-Za-z]+|"
    r"\b(?:street|road|hall|room|floor|square|corner)\b",
    re.IGNORECASE,
)
_IN_TEXT = (  # of a note without cues: the slots that it seems to fill
    ("when", _WHEN),
    ("where", _WHERE),
    ("how much", re.compile(r"\b(?:euros?|dollars?|pounds?|cents?|free|costs?|price|fee)\b|[€$£]", re.IGNORECASE)),
    ("how many", re.compile(r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|dozen|hundred|thousand)\b")),
    ("contact", re.compile(r"\b(?:call|phone|ring|e?mail|register|sign up|rsvp|ask)\b|@", re.IGNORECASE)),
    ("reason", re.compile(r"\b(?:because|since|so that|in order to|as)\b", re.IGNORECASE)),
    ("who", re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")),
)


def _slots_in(text: str) -> frozenset[str]:
    return frozenset(slot for slot, pattern in _IN_TEXT if pattern.search(text))
