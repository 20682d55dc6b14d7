"""Does a reply ask the user instead of acting on the request? Rules over English, no model."""

from __future__ import annotations

import re

from collab.parsing.english import sentences, words

_BESIDE = 24  # words beside the questions from which on a reply acts, whatever it asks
_REQUEST = re.compile(
    r"\b(?:please|kindly|could you|can you|you can)\b.{0,40}\b(?:provide|give|tell|share|specify|clarify|describe|send|"
    r"paste|confirm|let me know)\b"
    r"|\b(?:provide|give|tell|send|let) me\b.{0,60}\b(?:know|details?|information|what|which|when|where|who|how|text)\b"
    r"|\bI(?:'d| would|'ll| will)? (?:also )?need (?:to know|more|some|a few|the|your|a bit)\b",
    re.IGNORECASE,
)


def asks_first(reply: str) -> bool:
    """Whether a reply asks the user for something and does little else."""
    said = sentences(reply)
    asked = [sentence for sentence in said if "?" in sentence or _REQUEST.search(sentence)]
    return bool(asked) and sum(len(words(sentence)) for sentence in said if sentence not in asked) < _BESIDE
