"""Does a first reply ask the user instead of acting on the request? Rules over English, no model.

A reply asks if it has a question for the user, or a request for something, and few words beside. These are no questions
for the user: offers ("How can I help you?"), checks ("Is that all right?"), what stands in quotation marks, what is not
English, and what mostly repeats a text that the user quoted, since the result may itself be a question. A letter ("Dear
Ann, ...") acts, and so does a block of code. `python benchmarks/ask_or_act.py` measures the rules on labelled replies.
"""

from __future__ import annotations

import re

from collab.parsing.english import content_words, sentences, words
from collab.parsing.questions import read_question

_BESIDE = 24  # words beside the questions from which on a reply acts, whatever it asks
_REPEATED = 0.5  # share of a question's content words that are quoted in the request, from which on it is a result
_NOT_ASKED = ("offer", "check")  # rules of `read_question` by which a question asks for nothing that is needed
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|(?<!\w)'[^\n]*'(?!\w)")
_RESULT = re.compile(r"\W*(?:Dear|Hi|Hello|Hey|Subject:) [A-Z\[]|.*```", re.DOTALL)
_ENGLISH = re.compile(
    r"\b(?:what|which|who|whom|whose|when|where|why|how|you|your|is|are|do|does|did|can|could|would|should|shall|any)\b",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"\b(?:please|kindly)\b.{0,30}\b(?:provide|give me|tell me|share|specify|clarify|describe|paste|let me know)\b"
    r"|\b(?:provide|give|tell|let) me\b.{0,60}\b(?:know|details?|information|what|which|when|where|who|how|text)\b"
    r"|\bI(?:'d| would|'ll| will)? (?:also )?need (?:to know|more|some|a few|the|your|a bit)\b",
    re.IGNORECASE,
)
_OFFER = re.compile(
    r"\b(?:how|what) (?:can|may|could) I\b|\b(?:happy|glad|ready|here|able|love|can|can't|could|will|'ll) (?:to |be )?"
    r"(?:\w+ )?(?:help|assist)\w*|\bhelpful assistant\b|\b(?:I'm|I am) (?:ready|here)\b"
    r"|\b(?:please|feel free to|just) ask\b|\bif you (?:have|need)\b|\b(?:AI|language model)\b",
    re.IGNORECASE,
)


def asks_first(reply: str, request: str) -> bool:
    """Whether a reply to a request asks the user for something and does little else."""
    if _RESULT.match(reply):
        return False
    quoted = content_words(" ".join(_QUOTED.findall(request)))
    said = sentences(reply)
    asked = [sentence for sentence in said if _asks(_QUOTED.sub("", sentence), quoted)]
    return bool(asked) and sum(len(words(sentence)) for sentence in said if sentence not in asked) < _BESIDE


def only_offers(reply: str) -> bool:
    """Whether a reply offers help, in each of its sentences, or is empty."""
    return all(map(_OFFER.search, sentences(reply)))


def _asks(sentence: str, quoted: frozenset[str]) -> bool:
    if "?" not in sentence:
        return bool(_REQUEST.search(sentence))
    meaning = content_words(sentence)
    repeats = bool(meaning) and len(meaning & quoted) >= _REPEATED * len(meaning)
    return bool(_ENGLISH.search(sentence)) and not repeats and read_question(sentence).why not in _NOT_ASKED
