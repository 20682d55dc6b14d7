"""What a simulated user is: a function of the goal and of the conversation so far, so chats share no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from collab.conversation import INVALID, Conversation
from collab.randomness import RngKey


@dataclass(frozen=True)
class UserTurn:
    """The user's next message, or the reason why there is none.

    Attributes:
        text: The message; empty when the user leaves.
        end: Why the user ends the chat ("satisfied", "patience", or `invalid(...)`); empty when it goes on.
        user: Who plays, where there are several users or personas; the conversation keeps it for the next turn.
    """

    text: str
    end: str = ""
    user: str = ""


def invalid(reason: str) -> str:
    """`Conversation.ended_by` of a conversation that is not what it should be, and counts nowhere."""
    return f"{INVALID}: {reason}"


class UserSimulator(Protocol):
    """Plays the user. Everything it knows of this chat is in `conversation`.

    One that has `paid = True` speaks by calls that cost something: a conversation that was begun is then not abandoned.
    """

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        """The message that opens turn `conversation.turn`, with the randomness of `key` alone."""
        ...
