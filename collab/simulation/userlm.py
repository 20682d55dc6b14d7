"""A simulated user that a model trained as a user plays: UserLM-8b, or a model of `experiment=user_sft`.

The prompt is the published format (`collab.lm.user_template`): what the user wants as the system message, then the
conversation with its roles. The model writes the user's next message as plain text. It knows no instructions, so there
are no personas, no JSON and no reminders. A message that a guard refuses is drawn again, a bounded number of times;
then the conversation ends as invalid and counts nowhere. The paper's guardrails (Naous et al. 2025, appendix) are the
model for that: no end too early, no message that repeats another or copies out the intent, a length limit.
"""

from __future__ import annotations

from collections import Counter

from collab.chat.base import CONTEXT_FULL, ChatModel, Sampling
from collab.chat.structured import FAILED, Unfit, ask
from collab.config.schema import UserLMConfig
from collab.conversation import Conversation, Message
from collab.parsing.intents import END, intent_of
from collab.randomness import RngKey
from collab.simulation.guards import foreign, leaks, repeats, role_confusion, stops_too_early
from collab.simulation.llm import CONFUSION, EMPTY, LANGUAGE, LEAK, REPEAT, STOP, turn_of
from collab.simulation.user import UserTurn


class UserLM:
    """The `UserSimulator` that a user model plays.

    Args:
        config: Patience, retries and how the model is sampled.
        max_turns: Maximum turns of a conversation (`task.max_turns`); the model is not told.
        model: Writes the user's messages.
        problems: Counts messages that were refused, as `user_<kind>`, and lost conversations, as `user_invalid`.
    """

    def __init__(
        self, config: UserLMConfig, max_turns: int, model: ChatModel, problems: Counter[str] | None = None
    ) -> None:
        self.config, self.model = config, model
        self.problems = Counter() if problems is None else problems
        for kind in (CONFUSION, LEAK, STOP, EMPTY, REPEAT, LANGUAGE, FAILED, CONTEXT_FULL, "invalid"):
            self.problems[f"user_{kind}"] += 0  # so that each step logs all names
        self._sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p)

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        answer = await ask(
            self.model,
            messages(intent_of(conversation.goal), conversation),
            self._sampling,
            key,
            lambda text: self.read(conversation, text),
            self.config.retries,
        )
        return turn_of(answer, self.problems)

    def read(self, conversation: Conversation, text: str) -> UserTurn:
        """The user's turn in a raw reply. What stands before the end token is not said: it may be a farewell.

        Raises:
            Unfit: A guard refuses it.
        """
        goal, heard, patience = conversation.goal, conversation.assistant_texts, self.config.patience
        message, end, _ = text.partition(END)
        message = message.strip()
        if end:  # one token for both reasons to leave
            if not stops_too_early(conversation, True, patience):
                return UserTurn("", "satisfied")
            if not stops_too_early(conversation, False, patience):
                return UserTurn("", "patience")
            raise Unfit(STOP, "")
        if not message:
            raise Unfit(EMPTY, "")
        if repeats(conversation, message):
            raise Unfit(REPEAT, "")
        if foreign(message, goal.prompt, *heard):
            raise Unfit(LANGUAGE, "")
        if role_confusion(goal, heard[-1] if heard else "", message):
            raise Unfit(CONFUSION, "")
        if not heard and leaks(goal, message):
            raise Unfit(LEAK, "")
        return UserTurn(message)


def messages(intent: str, conversation: Conversation) -> list[Message]:
    """The prompt of a user model. The assistant cannot write the end token: it is taken out of its messages."""
    found = [Message("system", intent)]
    for turn in conversation.turns:
        found += [Message("user", turn.user), Message("assistant", turn.reply.text.replace(END, ""))]
    return found
