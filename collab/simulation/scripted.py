"""A user that follows a script, whatever the assistant says: no rules, no draws, no language model."""

from __future__ import annotations

from collab.config.schema import ScriptedUserConfig
from collab.conversation import Conversation
from collab.parsing.agenda_items import openings
from collab.randomness import RngKey
from collab.simulation.user import UserTurn


class ScriptedUser:
    """Says the messages of `before`, then what the goal opens with, then those of `after`, and leaves.

    Args:
        config: The messages. `collab.config.checks` sees to it that there are turns for all of them.
        max_turns: `task.max_turns`; the user does not go by it.
    """

    def __init__(self, config: ScriptedUserConfig, max_turns: int) -> None:
        self.config = config

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        script = [*self.config.before, openings(conversation.goal)[0], *self.config.after]
        said = len(conversation.turns)
        return UserTurn(script[said]) if said < len(script) else UserTurn("", end="satisfied")
