"""A user beside whom tools answer: calls in the assistant's message are executed, and all else is for the user.

The state of the tools is JSON in `Conversation.state`. A call runs in the sandbox on that state and gives a new one, so
conversations share nothing, and neither do two futures of one context.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from collab.config.schema import ToolsConfig
from collab.conversation import Conversation, Turn
from collab.parsing.tool_calls import calls_in, response
from collab.randomness import RngKey
from collab.sandbox.tools import run_tools
from collab.simulation.user import UserSimulator, UserTurn


class ToolUser:
    """Any user, with the task's tools. The user sees no calls and no results.

    A goal's metadata hold the `state` that the tools begin with and the state that is `wanted`. Once it is there, the
    user leaves at the assistant's next message to it.

    Args:
        user: Answers all messages without calls.
        config: The tools.
        strict: `sandbox=strict`.
    """

    def __init__(self, user: UserSimulator, config: ToolsConfig, strict: bool = False) -> None:
        self.user, self.config, self.strict = user, config, strict

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        state = await self._state(conversation)
        if conversation.turns and calls_in(conversation.turns[-1].reply.text):
            state, results = await self._run(state, conversation.turns[-1].reply.text)
            return UserTurn(response(results), state=state)
        if conversation.turns and state == conversation.goal.metadata["wanted"]:
            return UserTurn("", "satisfied", state=state)
        turn = await self.user.respond(heard(conversation), key)
        return replace(turn, state=state)

    async def _state(self, conversation: Conversation) -> Any:
        """The state behind the user's last message; a stored conversation has none, so its calls are run again."""
        if conversation.state is not None:
            return conversation.state
        state = conversation.goal.metadata["state"]
        for turn in conversation.turns[:-1]:
            state, _ = await self._run(state, turn.reply.text)
        return state

    async def _run(self, state: Any, text: str) -> tuple[Any, list[Any]]:
        tools = list(self.config.functions)
        return await run_tools(self.config.code, tools, state, calls_in(text), strict=self.strict)


def heard(conversation: Conversation) -> Conversation:
    """The conversation as the user sees it: without messages that call tools, and without results.

    Its `turn` stays what it is, so that the user knows its last turn.
    """
    turns: list[Turn] = []
    said: str | None = None  # by the user, before the first of several calls
    for turn in conversation.turns:
        said = turn.user if said is None else said
        if not calls_in(turn.reply.text):
            turns.append(replace(turn, user=said))
            said = None
    return replace(conversation, turns=tuple(turns), hidden=len(conversation.turns) - len(turns))
