"""The interface of a simulated user: a function of the conversation so far, so that chats share no state."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from collab.conversation import INVALID, Conversation
from collab.randomness import RngKey


@dataclass(frozen=True)
class UserTurn:
    """The user's next message, or why there is none.

    Attributes:
        text: The message; "" if the user leaves.
        end: Why the chat ends: "satisfied", "patience", "environment" or `invalid(...)`; "" if it goes on.
        user: Name of the user or persona that plays, if there are several. The conversation keeps it for the next turn.
        refused: (kind, raw reply) of each reply of the user's model that could not be used, for the transcript.
        state: The new `Conversation.state`; None leaves it as it is.
    """

    text: str
    end: str = ""
    user: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    state: Any = field(default=None, compare=False, repr=False)


def invalid(reason: str) -> str:
    """`Conversation.ended_by` of a conversation that failed and counts nowhere."""
    return f"{INVALID}: {reason}"


class UserSimulator(Protocol):
    """Plays the user. All that it knows about a chat is in `conversation`."""

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        """The message that opens turn `conversation.turn`. All random draws come from `key`."""
        ...


def draw_persona(personas: Collection[str], key: RngKey) -> str:
    """The name of a persona for a whole conversation, "" if there are none.

    Candidates of a context get the same one even if it was not stored.
    """
    draws, names = key.at(role="persona", turn=0, candidate=None).stream(), sorted(personas)
    return names[int(draws.integers(len(names)))] if names else ""
