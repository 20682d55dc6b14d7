"""The first conversation of a run, as the terminal shows it."""

from __future__ import annotations

from collab.app.evaluate import in_lines
from collab.conversation import Conversation, Goal, Reply, Turn


def test_a_line_for_each_message() -> None:
    turns = (Turn("Hi,\ncan you help?", Reply("What is it\n\nabout?")), Turn("x " * 200, Reply("")))
    first, second, third, fourth = in_lines(Conversation(Goal("g", "p", "r"), turns=turns), "base")
    assert (first, second, fourth) == ("  user: Hi, can you help?", "  base: What is it about?", "  base: ")
    assert third.startswith("  user: x x") and third.endswith("x ...") and len(third) < 170
