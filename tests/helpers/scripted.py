"""Policies and users that follow a script: what they say is a function of the conversation that they see."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cheats import Heard
from collab.chat.base import ChatFailed, ChatModel, Sampling
from collab.conversation import Conversation, Goal, Message, Reply
from collab.parsing.english import content_words, sentences
from collab.randomness import RngKey
from collab.simulation.user import UserTurn

Script = Callable[[Sequence[Message], RngKey], str | None]


def spoken(text: str, max_new_tokens: int = 10**6) -> Reply:
    """A reply whose tokens are its words, cut at the limit."""
    tokens = text.split()
    cut = len(tokens) > max_new_tokens
    return Reply(
        text=" ".join(tokens[:max_new_tokens]) if cut else text,
        token_ids=tuple(range(min(len(tokens), max_new_tokens))),
        finish_reason="length" if cut else "stop",
    )


def chat(goal: Goal, *turns: tuple[str, str]) -> Conversation:
    """A conversation of these messages: what the user says, then the assistant's reply."""
    conversation = Conversation(goal)
    for said, reply in turns:
        conversation = conversation.with_user(said).with_reply(spoken(reply))
    return conversation


class ScriptedModel:
    """A `ChatModel` that says what its script returns; it can stand where a rollout expects a `LocalEngine`.

    Args:
        script: (messages, key) -> text; None fails.
        lm: The model that a rollout would decode with.
        hurry: (key) -> how many times the event loop goes round before the reply is there.
        cuts: Whether a reply ends at the limit of its tokens.

    Attributes:
        asked: Messages, sampling and RngKey of every request, in the order in which they came.
    """

    def __init__(
        self, script: Script, lm: Any = None, hurry: Callable[[RngKey], int] = lambda key: 0, cuts: bool = True
    ) -> None:
        self.script, self.lm, self.hurry, self.cuts = script, lm, hurry, cuts
        self.asked: list[tuple[list[Message], Sampling, RngKey]] = []
        self.new_tokens = 0

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        self.asked.append((list(messages), sampling, key))
        for _ in range(self.hurry(key)):
            await asyncio.sleep(0)
        text = self.script(messages, key)
        if text is None:
            raise ChatFailed("gone")
        reply = spoken(text, sampling.max_new_tokens) if self.cuts else spoken(text)
        self.new_tokens += len(reply.token_ids)
        return reply

    @property
    def requests(self) -> list[RngKey]:
        return [key for _, _, key in self.asked]

    def clear_cache(self) -> None:
        pass


def answering(*answers: str | Script | None) -> ScriptedModel:
    """A model that gives these answers in turn, whoever asks, and the last one for ever."""

    def script(messages: Sequence[Message], key: RngKey) -> str | None:
        answer = answers[min(len(model.asked), len(answers)) - 1]
        return answer(messages, key) if callable(answer) else answer

    model = ScriptedModel(script, cuts=False)
    return model


class ScriptedUser:
    """A user that says what `script(conversation, key)` returns; a string, or a `UserTurn` to leave."""

    def __init__(self, script: Callable[[Conversation, RngKey], str | UserTurn]) -> None:
        self.script = script
        self.requests: list[RngKey] = []

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        self.requests.append(key)
        turn = self.script(conversation, key)
        return UserTurn(turn) if isinstance(turn, str) else turn


class ModelUser:
    """A user that says whatever a chat model answers when it is asked to want the goal's prompt."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        asked = Message("user", f"Ask for help with this in one short sentence: {conversation.goal.prompt}")
        return UserTurn((await self.model.complete([asked], Sampling(16), key)).text)


def says(*texts: str) -> Script:
    """Says these texts turn by turn, the last one for ever."""
    return lambda messages, key: texts[min(len(heard(messages)), len(texts)) - 1]


def heard(messages: Sequence[Message]) -> list[str]:
    """What the user said so far."""
    return [message.content for message in messages if message.role == "user"]


# --- a good collaborator, and cheap tricks ---------------------------------------------------------------------------

QUESTIONS = ("What should it say? When is it?", "Who should people contact? What is the reason for it?")


_SMALL_TALK = re.compile("not help me much|not sure what you mean|not really the point")  # no notes of the user's


def good_collaborator(messages: Sequence[Message], key: RngKey) -> str:
    """Asks for four different things in two turns, then writes what it was told and no more.

    Of a shipped goal it has what somebody wrote from the notes, less the sentences with a note that was not told. What
    was told and is not in there follows, turned round; of another goal everything.
    """
    said = Heard([message for message in messages if message.role == "user"])
    if said.turn <= len(QUESTIONS) and not said.last:
        return QUESTIONS[said.turn - 1]
    try:
        written = [sentence for sentence in sentences(said.written) if said.says_what_was_told(sentence)]
    except KeyError:  # no shipped goal has this topic
        written = [f"This {said.form} is about {said.topic}."]
    have = content_words(" ".join(written))
    told = [note for note in said.told if not _SMALL_TALK.search(note)]
    missing = [note.split() for note in told if 2 * len(content_words(note) & have) < len(content_words(note))]
    return " ".join([*written, *(" ".join(note[len(note) // 2 :] + note[: len(note) // 2]) + "." for note in missing)])


def asks_the_same(messages: Sequence[Message], key: RngKey) -> str:
    return QUESTIONS[0]


def asks_and_never_writes(messages: Sequence[Message], key: RngKey) -> str:
    more = (*QUESTIONS, "Which tone do you have in mind?", "How long should the text be?")
    return more[(len(heard(messages)) - 1) % len(more)]


def dumps_text(messages: Sequence[Message], key: RngKey) -> str:
    """A long text about whatever the user opened with."""
    opening = heard(messages)[0].replace("?", ".")
    return (
        f"{opening} Dear friends and neighbours, we are happy to tell you all about it. Come to the town hall at noon "
        "on the second Saturday of June. It costs five euros, children are free, and there is room for everyone. "
        "Please bring your own cup and a warm coat, and ask us if there is anything that you would like to know. "
    ) * 7


def says_nothing(messages: Sequence[Message], key: RngKey) -> str:
    return ""


def echoes(messages: Sequence[Message], key: RngKey) -> str:
    return heard(messages)[-1]


OFFERS = (  # and checks: questions that learn nothing
    "Would you like me to write the text?",
    "Is this text okay for you?",
    "Do you like this draft so far?",
    "How can I help you with {topic}?",
)


def offers(messages: Sequence[Message], key: RngKey) -> str:
    """An offer or a check at each turn, all of them different."""
    return OFFERS[(len(heard(messages)) - 1) % len(OFFERS)].format(topic="the text")


TRICKS = (asks_the_same, asks_and_never_writes, dumps_text, says_nothing, echoes, offers)
