"""The user with an agenda and a voice: what it says is the agenda's, however the voice behaves."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter

import pytest
from scripted import ScriptedModel, answering

from collab.config.schema import AgendaUserConfig, EndpointConfig, HybridUserConfig
from collab.conversation import Conversation, Goal, Reply
from collab.parsing.agenda_items import wanted_of
from collab.randomness import RngKey
from collab.simulation.agenda import AgendaUser
from collab.simulation.hybrid import HybridUser, filled
from collab.simulation.user import UserTurn
from collab.simulation.voice import KINDS, loose_pattern_of, pattern_of

GOAL = Goal(
    "kiln",
    "Please write a notice.",
    "The kiln is lit at 7.",
    {
        "title": "the shared kiln",
        "form": "notice",
        "preferences": {"tone": "warm", "audience": "potters"},
        "notes": ["it's lit at 7 sharp", "Greta unloads the bricks"],
        "cues": ["when time", "who unload"],
    },
)
PERSONAS = {"terse": "types short lines"}


def heard(*replies: str) -> Conversation:
    talk = Conversation(GOAL)
    for reply in replies:
        talk = talk.with_user("-").with_reply(Reply(reply))
    return talk


def voice(*messages: str) -> ScriptedModel:
    return answering(*(json.dumps({"message": message}) for message in messages))


def respond(model: ScriptedModel, talk: Conversation, turns: int = 4) -> tuple[UserTurn, Counter[str]]:
    problems = Counter[str]()
    user = HybridUser(HybridUserConfig(personas=PERSONAS, retries=1, mistakes=0.0), turns, model, problems)
    return asyncio.run(user.respond(talk, RngKey(1))), problems


def test_it_opens_with_what_it_wants() -> None:
    turn, problems = respond(voice("hey, can you do [1] for me"), heard())
    assert (turn.text, turn.user) == ("hey, can you do a notice about the shared kiln for me", "terse")
    assert not problems.total()


def test_it_gives_the_facts_of_the_agenda_in_its_words() -> None:
    talk = heard("When is it lit? Who unloads the kiln?")
    turn, _ = respond(voice("so [1] and [2]"), talk)
    assert turn.text == "so it's lit at 7 sharp and Greta unloads the bricks."


def test_the_voice_sees_no_fact() -> None:
    model = voice("so [1] and [2]")
    respond(model, heard("When is it lit? Who unloads the kiln?"))
    shown = " ".join(message.content for message in model.asked[0][0])
    assert "sharp" not in shown and "Greta" not in shown and "types short lines" in shown


@pytest.mark.parametrize(
    "message, kind",
    [
        ("so [1]", "shape"),
        ("so [2] and [1]", "shape"),
        ("so [1], [2] and 12 more", "shape"),
        ("so [1] and [2] but wet bricks", "added"),
        ("so [1] but not [2]", "added"),
        ("so [1] or [2]", "added"),
        ("if you know [1], [2]", "added"),
        ("I'm a [1] and [2]", "added"),
        ("so [1] and [2], what else?", "added"),
        ("so [1] and [2] beside velvet curtains, tulips", "added"),
        ("Ok, let's get [1] and [2]", "added"),
        ("Ok, let's see, [1] and [2]", "role_confusion"),
    ],
)
def test_a_message_that_adds_or_loses_anything_is_asked_for_again(message: str, kind: str) -> None:
    talk = heard("When is it lit? Who unloads the kiln?")
    turn, problems = respond(voice(message, "well, [1]. [2]"), talk)
    assert turn.text == "well, it's lit at 7 sharp. Greta unloads the bricks."
    assert problems[f"user_{kind}"] == 1 and not problems["user_fallback"]


def test_after_the_last_try_the_agenda_speaks() -> None:
    talk = heard("When is it lit?")
    turn, problems = respond(voice("nothing", "nothing"), talk)
    plain = asyncio.run(AgendaUser(AgendaUserConfig(), 4).respond(talk, RngKey(1)))
    assert turn.text == plain.text and problems["user_fallback"] == 1


def test_a_remark_has_no_facts_and_the_last_turn_asks_for_the_result() -> None:
    talk = heard("Who is it for?", "What tone?", "When is it lit?")
    turn, _ = respond(voice("ok, [1]"), talk)
    assert turn.text.startswith("ok, it's lit at 7 sharp. ") and "notice" in turn.text.split(". ", 1)[1]
    assert turn.text.split(". ", 1)[1][0].islower()  # as the voice types
    talk = heard("How do kilns work?")
    turn, _ = respond(voice("um, honestly, [1]"), talk)
    plain = asyncio.run(AgendaUser(AgendaUserConfig(), 4).respond(talk, RngKey(1))).text
    assert turn.text.lower() == f"um, honestly, {plain.lower()}"


PROGRAM = Goal(
    "sums",
    "I want a function for running totals.",
    "def totals(xs): ...",
    {
        "agenda": {
            "opening": "I need a function for running totals.",
            "makes": "program",
            "items": [{"kind": "example", "text": "For example:\n    totals([1, 2]) == [1, 3]", "cues": "example"}],
        }
    },
)


def test_code_and_the_opening_of_a_problem_are_said_as_they_stand() -> None:
    model = voice()
    turn, problems = respond(model, Conversation(PROGRAM))
    assert "I need a function for running totals." in turn.text
    talk = Conversation(PROGRAM).with_user("-").with_reply(Reply("Can you give me an example?"))
    turn, problems = respond(model, talk)
    assert "\n    totals([1, 2]) == [1, 3]" in turn.text and not model.asked and not problems["user_fallback"]


def test_a_remark_thanks_for_nothing() -> None:
    turn, problems = respond(voice("Perfect, thanks! [1]", "hm, [1]"), heard("How do kilns work?"))
    assert turn.text.startswith("hm, ") and problems["user_added"] == 1


def test_a_slip_mistypes_the_words_of_the_voice_alone() -> None:
    user = HybridUser(HybridUserConfig(mistakes=1.0), 4, voice(*["honestly, actually, basically [1]"] * 20))
    talk = heard("When is it lit?")
    texts = [asyncio.run(user.respond(talk, RngKey(number))).text for number in range(20)]
    assert all(text.endswith("it's lit at 7 sharp.") for text in texts)
    assert sum(not text.startswith("honestly, actually, basically ") for text in texts) > 10


EXAMPLES = [(kind, text) for kind, what in KINDS.items() for texts in what.examples.values() for text in texts]


@pytest.mark.parametrize("kind, text", EXAMPLES)
def test_worked_examples_are_what_the_voice_may_type(kind: str, text: str) -> None:
    brackets = len(re.findall(r"\[\d\]", text))
    assert re.fullmatch(pattern_of(kind, brackets), text) and re.fullmatch(loose_pattern_of(brackets), text)


def test_a_persona_has_its_own_examples_and_local_weights_the_grammar() -> None:
    talk = heard("When is it lit?")
    for endpoint, shape in ("local", pattern_of("gives", 1)), ("http", loose_pattern_of(1)):
        model = voice("well, [1]")
        config = HybridUserConfig(personas=PERSONAS, mistakes=0.0, endpoint=EndpointConfig(kind=endpoint))
        asyncio.run(HybridUser(config, 4, model).respond(talk, RngKey(1)))
        messages, sampling, _ = model.asked[0]
        assert json.loads(sampling.schema)["properties"]["message"]["pattern"] == shape
        assert "\n".join(KINDS["gives"].examples["terse"]) in messages[0].content
        assert not any(text in messages[0].content for text in KINDS["gives"].examples["exacting"])


def test_it_ends_the_chat_when_the_agenda_does() -> None:
    model = voice()
    turn, _ = respond(model, heard(*["How do kilns work?"] * 3), turns=9)
    assert turn.end == "patience" and not model.asked


FILLED: list[tuple[list[str], list[str], str]] = [
    (["", ""], ["It's lit at 7."], "It's lit at 7."),
    (["um, ", " maybe"], ["It's lit at 7."], "um, it's lit at 7 maybe"),
    (
        ["", "Also ", ""],
        ["It's lit at 7.", "Greta unloads the bricks."],
        "It's lit at 7. Also Greta unloads the bricks.",
    ),
    (["so ", ". ", ""], ["It's lit at 7.", "It is for potters."], "so it's lit at 7. it is for potters."),
    (["well,", " and", "!"], ["As for tone, warm.", "It's lit at 7."], "well, as for tone, warm and it's lit at 7!"),
]


@pytest.mark.parametrize("parts, said, text", FILLED)
def test_brackets_are_filled_in_as_people_write(parts: list[str], said: list[str], text: str) -> None:
    assert filled(GOAL, parts, said) == text


def test_what_it_wants_is_form_and_topic() -> None:
    assert wanted_of(GOAL) == "a notice about the shared kiln"
