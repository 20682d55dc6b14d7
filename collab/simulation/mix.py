"""Several users in one run: each conversation is played by one of them, from the first message to the last.

Which one is drawn by weight from the key of the conversation's first message, and kept in the conversation. The test
may have weights of its own: a policy is then measured with users that it was not trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from collab.config.schema import MixUserConfig
from collab.conversation import Conversation
from collab.randomness import RngKey
from collab.simulation.user import UserSimulator, UserTurn

TEST_SPLIT = "test"


class MixUser:
    """The `UserSimulator` that is one of several.

    `Conversation.user` is the name of the one, and behind a slash what that one calls itself.

    Args:
        config: The weights.
        users: Name -> user.
    """

    def __init__(self, config: MixUserConfig, users: Mapping[str, UserSimulator]) -> None:
        self.config, self.users = config, dict(users)
        self.paid = any(getattr(user, "paid", False) for user in users.values())

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        name, _, inner = conversation.user.partition("/")
        if name not in self.users:
            name = self._drawn(key)
        turn = await self.users[name].respond(replace(conversation, user=inner), key)
        return replace(turn, user=f"{name}/{turn.user}" if turn.user else name)

    def _drawn(self, key: RngKey) -> str:
        test = self.config.test_weights if key.split == TEST_SPLIT else {}
        weights = test or self.config.weights
        names = sorted(name for name, weight in weights.items() if weight > 0)
        shares = [weights[name] / sum(weights[name] for name in names) for name in names]
        draws = key.at(role="mix", turn=0, candidate=None).stream()
        return names[int(draws.choice(len(names), p=shares))]
