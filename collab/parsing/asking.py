"""Does a reply ask the user instead of acting on the request? Rules over English, no model.

A reply asks if it has a question for the user, or a request for something, and few words beside. Offers ("How can I help
you?") and questions after a result ("Is that all right?") are none, nor is what stands in quotation marks or in code.
`python benchmarks/ask_or_act.py` measures the rule on labelled replies.
"""

from __future__ import annotations

import re

from collab.parsing.english import sentences, words
from collab.parsing.extraction import outside_code
from collab.parsing.questions import read_question

_BESIDE = 24  # words beside the questions from which on a reply acts, whatever it asks
_NOT_ASKED = ("offer", "check")  # rules of `read_question` by which a question asks for nothing that is needed
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”")
_REQUEST = re.compile(
    r"\b(?:please|kindly)\b.{0,30}\b(?:provide|give me|tell me|share|specify|clarify|describe|paste|let me know)\b"
    r"|\b(?:provide|give|tell|let) me\b.{0,60}\b(?:know|details?|information|what|which|when|where|who|how|text)\b"
    r"|\bI(?:'d| would|'ll| will)? (?:also )?need (?:to know|more|some|a few|the|your|a bit)\b",
    re.IGNORECASE,
)


def asks_first(reply: str) -> bool:
    """Whether a reply asks the user for something and does little else."""
    if "```" in reply:
        return False
    said = sentences(reply)
    asked = [sentence for sentence in said if _asks(_QUOTED.sub("", sentence))]
    return bool(asked) and sum(len(words(sentence)) for sentence in said if sentence not in asked) < _BESIDE


def _asks(sentence: str) -> bool:
    if "?" in sentence:
        return read_question(sentence).why not in _NOT_ASKED
    return bool(_REQUEST.search(sentence))
