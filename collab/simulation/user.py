"""What a simulated user is: a function of the goal and of the conversation so far, so chats share no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from collab.conversation import Conversation, Key


@dataclass(frozen=True)
class UserTurn:
    """The user's next message, or the reason why there is none.

    Attributes:
        text: The message; empty when the user leaves.
        end: Why the user ends the chat ("satisfied", "patience"); empty when it goes on.
    """

    text: str
    end: str = ""


class UserSimulator(Protocol):
    """Plays the user. Everything it knows of this chat is in `conversation`."""

    async def respond(self, conversation: Conversation, key: Key) -> UserTurn:
        """The message that opens turn `conversation.position`, with the randomness of `key` alone."""
        ...
