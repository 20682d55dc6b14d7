"""The user of task=verifiers: says what an environment of the package verifiers says."""

from __future__ import annotations

from dataclasses import replace

from collab.config.schema import VerifiersUserConfig
from collab.conversation import Conversation
from collab.randomness import RngKey
from collab.rewards.verifiers_env import ENTRY, Waiting, environment_of, text_of
from collab.simulation.user import UserTurn, invalid


class VerifiersUser:
    """Opens with a row's prompt, then answers by `env_response`, and leaves where the environment ends the rollout.

    A system message of the row stands in front of the first message, as chat templates without system messages have it,
    unless it is `task.system_prompt` already.
    The environment draws its randomness by itself, not from the keys of the run.

    Args:
        config: It has no fields.
        max_turns: `task.max_turns`; the environment may end a conversation earlier.
    """

    needs = (ENTRY,)

    def __init__(self, config: VerifiersUserConfig, max_turns: int) -> None:
        pass

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        rollouts = environment_of(conversation.goal)
        if not conversation.turns:
            now = await rollouts.opened(conversation.goal)
            if now.prompt and text_of(now.prompt[:1]) == conversation.system_prompt:
                now = replace(now, text=text_of(now.prompt[1:]))
        else:
            before = conversation.state
            if not isinstance(before, Waiting):
                before = await rollouts.replayed(conversation)
            now = before if before.prompt is None else await rollouts.answered(before, conversation.turns[-1].reply)
        if now.prompt is not None:
            return UserTurn(now.text, state=now)
        return UserTurn("", invalid("environment") if now.failed else "environment", state=now)
