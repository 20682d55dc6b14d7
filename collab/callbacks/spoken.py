"""One conversation at a time, printed as it is spoken (`callbacks.watch=true`)."""

from __future__ import annotations

from collections.abc import Callable

from collab.conversation import Conversation, Message
from collab.randomness import RngKey


class Spoken:
    """Prints the conversation of one goal: of each rollout for training, each validation and each row of a test.

    It is the goal that speaks first. In a rollout for training, its context, its first candidate and the first future
    of that are printed as one conversation, with the candidate's MR at the end.

    Args:
        say: Prints lines as they are.
    """

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._place: tuple[str, int, str] | None = None  # of the goal whose conversation is printed
        self._printed: list[Message] = []
        self._step = -1  # of training, from 0, whose conversation has been printed

    def said(self, conversation: Conversation, key: RngKey) -> None:
        """As `Observer.said`."""
        if key.candidate or key.sample:
            return
        place = _place(key)
        if self._place is None and not (_trains(key) and key.round == self._step):
            self._place, self._printed = place, []
            where = f"step {key.round + 1}" if _trains(key) else key.split
            self._say(f"--- {where}, goal {key.goal}")
        if place != self._place:
            return
        messages = [message for message in conversation.messages() if message.role != "system"]
        if messages[: len(self._printed)] != self._printed:
            self._say("  (the user left too early; this is another conversation about the goal)")
            self._printed = []
        for message in messages[len(self._printed) :]:
            self._say(*_lines(message))
        self._printed = messages

    def valued(self, key: RngKey, name: str, value: float | None) -> None:
        """As `Observer.valued`."""
        if _place(key) != self._place:
            return
        self._say(f"--- no {name}" if value is None else f"--- {name} {value:.3f}")
        self._place = None
        if _trains(key):
            self._step = key.round


def _trains(key: RngKey) -> bool:
    return key.split.startswith(("train/", "context/"))


def _place(key: RngKey) -> tuple[str, int, str]:
    """Of a goal; a context and the futures from it have the same."""
    return key.split.rpartition("/")[2], key.round, key.goal


def _lines(message: Message) -> list[str]:
    """A message without control characters, which a model may have written."""
    lines = message.content.expandtabs().splitlines() or [""]
    clean = ["".join(c for c in line if c.isprintable()) for line in lines]
    return [f"  {message.role}: {clean[0]}", *(f"    {line}" for line in clean[1:])]
