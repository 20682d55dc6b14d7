"""The metric of tasks with tools: what they left behind."""

from __future__ import annotations

from collab.conversation import Conversation


class FinalState:
    """1 if the tools' state is the one that the goal's metadata has as `wanted`, else 0.

    A call in the last message has not been executed, so it does not count. A chat without a state, which no tools were
    beside, has no value.
    """

    needs = ("state", "wanted")

    async def __call__(self, conversation: Conversation) -> float | None:
        if conversation.state is None:
            return None
        return float(conversation.state == conversation.goal.metadata["wanted"])
