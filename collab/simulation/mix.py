"""Several users in one run: one of them plays a conversation from the first message to the last.

It is drawn by weight from the key of the first message, and the conversation keeps its name. The test may have weights
of its own, to measure a policy with users that it was not trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from collab.config.schema import MixUserConfig
from collab.conversation import Conversation
from collab.randomness import RngKey
from collab.simulation.user import UserSimulator, UserTurn


class MixUser:
    """One of several users in each conversation.

    `Conversation.user` is the name of the user that plays, with its own persona behind a slash.

    Args:
        config: The weights.
        users: Name -> user.
    """

    def __init__(self, config: MixUserConfig, users: Mapping[str, UserSimulator]) -> None:
        self.config, self.users = config, users

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        name, _, inner = conversation.user.partition("/")
        if name not in self.users:
            name = self._draw(key)
        turn = await self.users[name].respond(replace(conversation, user=inner), key)
        return replace(turn, user=f"{name}/{turn.user}" if turn.user else name)

    def _draw(self, key: RngKey) -> str:
        test = self.config.test_weights if key.split == "test" else {}
        weights = test or self.config.weights
        names = sorted(name for name, weight in weights.items() if weight > 0)
        shares = [weights[name] / sum(weights[name] for name in names) for name in names]
        draws = key.at(role="mix", turn=0, candidate=None).stream()
        return names[int(draws.choice(len(names), p=shares))]
