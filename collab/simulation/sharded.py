"""The user of a sharded instruction (Laban et al., "LLMs Get Lost in Multi-Turn Conversation", arXiv 2505.06120).

The same goal is told in three ways (`user.told`): the whole instruction in one message (full), its shards as a list in
one message (concat), or one shard in each turn, in the order of the goal (sharded). What the assistant says changes
nothing. When all is told, the user asks once for the result if the last reply has none, and leaves. The paper has no
such request; here it gives a policy that asks instead of answering one more turn, under all three conditions.

`ShardedUser` has no model. In `ShardedLLMUser` a language model reads what the assistant wrote, chooses the next shard
and says it in its own words, as in the paper.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from collab.chat.base import CONTEXT_FULL, ChatModel, Sampling
from collab.chat.structured import FAILED, SHAPE, Unfit, as_text, ask, fence, find_object, mark, schema_of
from collab.config.schema import ShardedLLMUserConfig, ShardedUserConfig
from collab.conversation import Conversation, Goal, Message
from collab.parsing.agenda_items import form_of, manner_of, shards_of
from collab.parsing.agenda_state import delivers, discloses
from collab.randomness import RngKey
from collab.simulation.guards import role_confusion
from collab.simulation.user import UserTurn

LOST, MORE, CONFUSION = "lost", "more", "role_confusion"
_SYSTEM = """\
You type the messages of a person who chats with an AI assistant. The person has something to tell in parts, one part
in each message. You choose the part that goes best with what the assistant wrote: the one that it asks for, or else the
one that a person would think of next. You say all that is in this part, with every name and number, casually and in
other words than those of the part. You say nothing of the other parts. You ask nothing and do none of the assistant's
work.

You answer with one JSON object and nothing else: {"part": <the number of the part>, "message": "<what you type>"}"""
_ASK = """\
The person has said:
{said}

The assistant wrote:
{heard}

The parts that are left:
{left}

Choose one, and type the message."""
_REMINDERS = {
    SHAPE: 'Answer with {"part": ..., "message": ...} only. The part is one of those that are left.',
    LOST: "The message leaves out something of the part. Say all of it, in the same JSON form.",
    MORE: "The message tells something of another part. Say the chosen part alone, in the same JSON form.",
    CONFUSION: "You are not the assistant. Type the message of the person, in the same JSON form.",
}


class ShardedUser:
    """Tells a goal as `config.told` says. It draws nothing at random.

    Args:
        config: How the goal is told.
        max_turns: Maximum turns of a conversation. Not used: the number of shards decides.
    """

    def __init__(self, config: ShardedUserConfig, max_turns: int) -> None:
        self.config = config

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        told = messages_of(conversation.goal, self.config.told)
        if len(conversation.turns) < len(told):
            return UserTurn(told[len(conversation.turns)])
        return last_turn(conversation, asked=len(conversation.turns) > len(told))


class ShardedLLMUser(ShardedUser):
    """Tells the first shard as it stands. Then a model chooses and words one shard a turn, until all are told.

    `Conversation.user` holds the numbers of the shards in the order in which they were told. A message has to tell its
    shard whole and no other one (`agenda_state.discloses`). After the last try, and for a shard of several lines, such
    as code or a table, the shard is said as it stands. So each shard is told once, and no conversation is lost.

    Args:
        config: How the goal is told, and how the model is sampled. With another `told` than sharded no model is asked.
        max_turns: As in `ShardedUser`.
        model: Writes the messages.
        problems: Counts replies that were not usable, as `user_<kind>`, and shards said as they stand for want of
            another message, as `user_fallback`.
    """

    config: ShardedLLMUserConfig

    def __init__(
        self, config: ShardedLLMUserConfig, max_turns: int, model: ChatModel, problems: Counter[str] | None = None
    ) -> None:
        super().__init__(config, max_turns)
        self.model = model
        self.problems = Counter() if problems is None else problems
        for kind in (*_REMINDERS, FAILED, CONTEXT_FULL, "fallback"):
            self.problems[f"user_{kind}"] += 0  # so that each step logs all names
        self._sampling = Sampling(config.max_new_tokens, config.temperature, adapter=False)

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        shards = dict(enumerate(shards_of(conversation.goal), 1))
        told = [int(number) for number in re.findall(r"\d+", conversation.user)]
        left = {number: shard for number, shard in shards.items() if number not in told}
        if self.config.told != "sharded" or not conversation.turns or not left:
            turn = await super().respond(conversation, key)
            return replace(turn, user="shards 1" if left and self.config.told == "sharded" else "")
        answer = await ask(
            self.model,
            _messages(conversation, left, key),
            replace(self._sampling, schema=schema_of(part={"enum": [*left]}, message={"type": "string"})),
            key,
            lambda text: _read(conversation, left, text),
            self.config.retries,
        )
        self.problems.update(f"user_{kind}" for kind in answer.problems)
        self.problems["user_fallback"] += answer.value is None
        number, text = answer.value or next(iter(left.items()))
        return UserTurn(text, user=f"shards {','.join(map(str, [*told, number]))}", refused=answer.refused)


def _messages(conversation: Conversation, left: dict[int, str], key: RngKey) -> list[Message]:
    """The prompt of the model that words the shards."""
    heard = conversation.assistant_texts[-1]
    parts = "\n".join(f"{number}. {shard}" for number, shard in left.items())
    said = "\n".join(turn.user for turn in conversation.turns)
    sign = mark(key.at(role="mark", turn=0, candidate=None), heard, parts, said)
    texts = {"said": fence("person", said, sign), "heard": fence("assistant", heard, sign)}
    return [Message("system", _SYSTEM), Message("user", _ASK.format(**texts, left=fence("parts", parts, sign)))]


def _read(conversation: Conversation, left: dict[int, str], text: str) -> tuple[int, str]:
    """The number of the shard in a raw reply, and the message; raises `Unfit` if a rule refuses it."""
    answer = find_object(text, "part", "message")
    number, message = (as_text(answer[name]) for name in ("part", "message")) if answer else ("", "")
    if not message or not number.isdecimal() or int(number) not in left:
        raise _unfit(SHAPE)
    chosen = int(number)
    if "\n" in left[chosen]:
        return chosen, left[chosen]
    told = discloses(conversation.goal, message)  # of the items of the agenda, which are the shards from the second on
    if not told[chosen - 2]:
        raise _unfit(LOST)
    if any(told[other - 2] for other in left if other != chosen):
        raise _unfit(MORE)
    if role_confusion(conversation.goal, conversation.assistant_texts[-1], message):
        raise _unfit(CONFUSION)
    return chosen, message


def _unfit(problem: str) -> Unfit:
    return Unfit(problem, _REMINDERS[problem])


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
