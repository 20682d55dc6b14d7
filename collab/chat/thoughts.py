"""Tells what a model thinks from what it says: a thought stands before the reply, between two marks."""

from __future__ import annotations

import re
from functools import lru_cache

THINK = ("<think>", "</think>")

# The marks of known chat templates.
MARKS = (
    THINK,
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
)


def split_thought(text: str, marks: tuple[str, str] = THINK, opened: bool = False) -> tuple[str, str]:
    """(reply, thought) of a text that may begin with a thought, both stripped.

    A text may have the end mark alone, since the prompt may have opened the thought. If it was cut before the end mark,
    all of it is thought.

    Args:
        text: What the model wrote.
        marks: Before and behind a thought.
        opened: Whether the prompt is known to have opened one.
    """
    if match := _thought(marks).match(text):
        return text[match.end() :].strip(), match[1].strip()
    if opened or text.lstrip().startswith(marks[0]):
        return "", text.strip().removeprefix(marks[0]).strip()
    return text.strip(), ""


@lru_cache
def _thought(marks: tuple[str, str]) -> re.Pattern[str]:
    start, end = map(re.escape, marks)
    return re.compile(rf"\A\s*(?:{start})?(.*?){end}", re.DOTALL)
