"""How the rule-based user speaks of each kind of result: what it calls it, how it opens, what it says at the end."""

from __future__ import annotations

from dataclasses import dataclass

from collab.conversation import Artefact

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
_LEADS = ("Sure.", "Good question.", "Let me see.", "Right.", "Oh, I see.")
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


@dataclass(frozen=True)
class Manner:
    """How the user talks about the result that it wants.

    Attributes:
        form: What the user calls it if the goal does not say.
        names: Other words for it in questions.
        openings: Templates around the opening of an agenda.
        leads: What comes before an answer.
        unhappy: Answers to a result that comes too early. They name at most the kind of what is missing.
        finals: Requests for the result at the last turn.
    """

    form: str
    names: str
    openings: tuple[str, ...]
    leads: tuple[str, ...] = _LEADS
    unhappy: tuple[str, ...] = _UNHAPPY
    finals: tuple[str, ...] = _FINALS


MANNERS: dict[Artefact, Manner] = {
    "text": Manner(
        form="text",
        names="document text email letter post article note notice draft message piece introduction invitation review "
        "announcement flyer sign label",
        openings=("{opening}", "Hello! {opening}", "Hi, I could use your help. {opening}"),
        leads=(
            "Sure.",
            "Good question.",
            "Let me see.",
            "Here is what I have in mind:",
            "Right.",
            "It should say this:",
        ),
    ),
    "answer": Manner(
        form="answer",
        names="problem question exercise task answer solution calculation",
        openings=(
            "Can you help me with this? {opening}",
            "Hi! {opening} Can you work it out for me?",
            "I am stuck here. {opening}",
            "Hello, I need some help. {opening}",
        ),
        unhappy=(
            "That cannot be right. You are missing a {kind}.",
            "Hmm, no. There is a {kind} that I have not told you yet.",
            "I do not think so. You do not know every {kind} yet.",
        ),
        finals=("What is the final answer?", "Please give me the final answer now.", "So what is the answer?"),
    ),
    "program": Manner(
        form="function",
        names="function code program script method implementation solution task",
        openings=(
            "Can you help me with some Python code? {opening}",
            "Hi! {opening}",
            "Hello, I need some Python code. {opening}",
            "Please help me with a bit of Python. {opening}",
        ),
        unhappy=(
            "That is not what I need. I have not told you the {kind} yet.",
            "Hmm, no. You do not know everything yet, the {kind} for one.",
            "This does not fit. I had another {kind} in mind.",
        ),
    ),
    "reply": Manner(form="reply", names="", openings=("{opening}",), finals=()),
    "action": Manner(
        form="booking",
        names="booking reservation appointment order request",
        openings=("Hi! {opening}", "Hello, {opening}", "{opening} Can you do that for me?", "{opening}"),
        finals=("Please do it now.", "That is all, please go ahead.", "Now please see to it."),
    ),
}
