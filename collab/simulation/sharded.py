"""The user of a sharded instruction (Laban et al., "LLMs Get Lost in Multi-Turn Conversation", arXiv 2505.06120).

The same goal is told in three ways (`user.told`): the whole instruction in one message (full), its shards as a list in
one message (concat), or one shard in each turn, in the order of the goal (sharded). What the assistant says changes
nothing. When all is told, the user asks once for the result if the last reply has none, and leaves. The paper has no
such request; here it gives a policy that asks instead of answering one more turn, under all three conditions.
"""

from __future__ import annotations

from collab.config.schema import ShardedUserConfig
from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import form_of, manner_of, shards_of
from collab.parsing.agenda_state import delivers
from collab.randomness import RngKey
from collab.simulation.user import UserTurn


class ShardedUser:
    """Tells a goal as `config.told` says. It draws nothing at random.

    Args:
        config: How the goal is told.
        max_turns: Maximum turns of a conversation. Not used: the number of shards decides.
    """

    def __init__(self, config: ShardedUserConfig, max_turns: int) -> None:
        self.config = config

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        goal, told = conversation.goal, messages_of(conversation.goal, self.config.told)
        if len(conversation.turns) < len(told):
            return UserTurn(told[len(conversation.turns)])
        return last_turn(conversation, asked=len(conversation.turns) > len(told))


def last_turn(conversation: Conversation, asked: bool) -> UserTurn:
    """What the user does when all is told: it leaves, or asks for the result if it has not `asked` before."""
    if delivers(conversation):
        return UserTurn("", "satisfied")
    if asked:
        return UserTurn("", "patience")
    goal = conversation.goal
    return UserTurn(manner_of(goal).finals[0].format(form=form_of(goal)))


def messages_of(goal: Goal, told: str) -> list[str]:
    """The messages in which a goal is told: one for full and concat, one for each shard for sharded."""
    first, *others = shards_of(goal)
    if told == "full":
        return [goal.prompt]
    return ["\n".join([first, *(f"- {shard}" for shard in others)])] if told == "concat" else [first, *others]
