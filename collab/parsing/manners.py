"""How the rule-based user speaks of each kind of result: what it calls it, how it opens, what it says at the end."""

from __future__ import annotations

from dataclasses import dataclass

from collab.conversation import Artefact
from collab.parsing.english import stem


@dataclass(frozen=True)
class Manner:
    """How the user talks about what is to be made.

    Attributes:
        form: What it is called where the goal does not say.
        names: Stems of what else a question may call it.
        openings: What comes around the opening of an agenda.
        leads: What comes before an answer.
        unhappy: Answers to a result that comes too early; at most the kind of what is missing is named.
        finals: What the user asks for at the last turn.
    """

    form: str
    names: frozenset[str]
    openings: tuple[str, ...]
    leads: tuple[str, ...]
    unhappy: tuple[str, ...]
    finals: tuple[str, ...]


OPENINGS = (
    "Hi, can you help me write {form} about {topic}?",
    "I need {form} about {topic}. Can you help?",
    "Hello! I want to write {form} about {topic}.",
    "Could you help me with {form}? It is about {topic}.",
)
OPENINGS_WITHOUT_TOPIC = (
    "Hi, can you help me write {form}?",
    "I need {form}. Can you help?",
    "Hello! I want to write {form}.",
)
_LEADS = ("Sure.", "Good question.", "Let me see.", "Here is what I have in mind:", "Right.", "It should say this:")
_UNHAPPY = (
    "That is not what I had in mind. The {kind} is not right yet.",
    "Hmm, no. You are missing things, the {kind} for one.",
    "This does not fit. I had another {kind} in mind.",
)
_FINALS = (
    "Please write the final {form} now.",
    "That is all, please give me the finished {form}.",
    "Now write the final {form}, please.",
)

_STATED = ("{opening}", "Hello! {opening}", "Hi, I could use your help. {opening}")
_PROBLEM = (
    "Can you help me with this? {opening}",
    "Hi! {opening} Can you work it out for me?",
    "I am stuck here. {opening}",
    "Hello, I need some help. {opening}",
)
_FUNCTION = (
    "Can you help me with some Python code? {opening}",
    "Hi! {opening}",
    "Hello, I need some Python code. {opening}",
    "Please help me with a bit of Python. {opening}",
)
_FACTS = ("Sure.", "Good question.", "Let me see.", "Right.", "Oh, I see.")
_INCOMPLETE = (
    "That cannot be right. You are missing a {kind}.",
    "Hmm, no. There is a {kind} that I have not told you yet.",
    "I do not think so. You do not know every {kind} yet.",
)
_UNLIKE = (
    "That is not what I need. I have not told you the {kind} yet.",
    "Hmm, no. You do not know everything yet, the {kind} for one.",
    "This does not fit. I had another {kind} in mind.",
)


def _names(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in text.split())


MANNERS: dict[Artefact, Manner] = {
    "text": Manner(
        form="text",
        names=_names(
            "document text email letter post article note notice draft message piece introduction invitation review "
            "announcement flyer sign label"
        ),
        openings=_STATED,
        leads=_LEADS,
        unhappy=_UNHAPPY,
        finals=_FINALS,
    ),
    "answer": Manner(
        form="answer",
        names=_names("problem question exercise task answer solution calculation"),
        openings=_PROBLEM,
        leads=_FACTS,
        unhappy=_INCOMPLETE,
        finals=("What is the final answer?", "Please give me the final answer now.", "So what is the answer?"),
    ),
    "program": Manner(
        form="function",
        names=_names("function code program script method implementation solution task"),
        openings=_FUNCTION,
        leads=_FACTS,
        unhappy=_UNLIKE,
        finals=_FINALS,
    ),
    "reply": Manner("reply", frozenset(), ("{opening}",), _FACTS, _UNHAPPY, ()),
}
