"""The user that a user model plays: its prompt, its end token, its guards, and what a refused message costs."""

from __future__ import annotations

import asyncio

import pytest
from scripted import ScriptedModel, answering, chat

from collab.config.schema import UserLMConfig
from collab.conversation import Conversation, Goal, Message
from collab.parsing.intents import END, intent_of
from collab.randomness import RngKey
from collab.simulation.user import UserTurn
from collab.simulation.userlm import UserLM

GOAL = Goal(
    "kiln",
    "Please write a notice about our kiln: it fires on Tuesday, pots go onto the green shelf by Monday noon.",
    "The kiln fires on Tuesday. Pots go onto the green shelf by Monday noon. A kilo costs two euros.",
    {"title": "the kiln", "form": "notice"},
)
KEY = RngKey(7, role="user", split="train/0", goal=GOAL.id, turn=1)
TEXT = "The kiln fires on Tuesday, so bring your pots on Monday, before noon, onto the shelf. It is two euros a kilo."


ASKED = chat(GOAL, ("a notice pls", "What about?"))


def respond(model: ScriptedModel, conversation: Conversation, **options: int) -> tuple[UserTurn, UserLM]:
    user = UserLM(UserLMConfig(**options), 4, model)  # type: ignore[arg-type]
    return asyncio.run(user.respond(conversation, KEY)), user


def test_the_prompt_is_the_intent_and_the_conversation_with_its_roles() -> None:
    model = answering("the kiln, it fires tuesdays")
    turn, _ = respond(model, chat(GOAL, ("a notice pls", f"What{END} about?")))
    (messages, sampling, _) = model.asked[0]
    assert turn == UserTurn("the kiln, it fires tuesdays")
    assert messages == [
        Message("system", intent_of(GOAL)),
        Message("user", "a notice pls"),
        Message("assistant", "What about?"),  # the assistant cannot write the end token
    ]
    assert GOAL.prompt in messages[0].content and (sampling.top_p, sampling.schema) == (0.8, "")
    assert sampling.adapter  # weights of its own may be an adapter


@pytest.mark.parametrize(
    ("conversation", "end"),
    [
        (chat(GOAL, ("a notice pls", TEXT)), "satisfied"),
        (chat(GOAL, ("a notice pls", "Hm?"), ("about the kiln", "Hm."), ("hello?", "Hm!")), "patience"),
    ],
)
@pytest.mark.parametrize("said", [END, f"ok bye {END}assistant\nYou are welcome!"])
def test_the_end_token_ends_the_chat_where_there_is_a_reason(conversation: Conversation, end: str, said: str) -> None:
    turn, user = respond(answering(said), conversation)
    assert turn == UserTurn("", end) and not user.problems["user_stop"]


@pytest.mark.parametrize(
    ("kind", "said", "conversation"),
    [
        ("stop", END, Conversation(GOAL)),
        ("stop", END, ASKED),
        ("empty", "\n", ASKED),
        ("repeat", "A notice, pls!", ASKED),
        ("repeat", "What about?", ASKED),
        ("language", "Напиши объявление про печь", ASKED),
        ("language", "窯についての告知", ASKED),
        ("role_confusion", "How can I help you with the kiln today?", ASKED),
        ("leak", "it fires on Tuesday, pots go onto the green shelf by Monday", Conversation(GOAL)),
    ],
)
def test_a_refused_message_is_drawn_again_without_a_word(kind: str, said: str, conversation: Conversation) -> None:
    model = answering(said, "about the kiln")
    turn, user = respond(model, conversation)
    assert turn == UserTurn("about the kiln", refused=((kind, said),))
    assert {name: count for name, count in user.problems.items() if count} == {f"user_{kind}": 1}
    assert model.asked[0][0] == model.asked[1][0] and model.requests[0] != model.requests[1]
    turn, user = respond(answering(said), conversation, retries=1)
    assert turn == UserTurn("", f"invalid: {kind}", refused=((kind, said),) * 2) and user.problems["user_invalid"] == 1


def test_later_messages_may_tell_what_was_asked() -> None:
    fact = "it fires on Tuesday, pots go onto the green shelf by Monday"
    assert respond(answering(fact), ASKED)[0] == UserTurn(fact)


def test_a_model_that_fails_costs_the_conversation() -> None:
    turn, user = respond(answering(None), ASKED)
    assert turn == UserTurn("", "invalid: failed", refused=(("failed", ""),)) and user.problems["user_failed"] == 1


def test_a_foreign_word_within_a_message_is_none() -> None:
    assert respond(answering("put Привет on top of the notice"), ASKED)[0].text
