"""The agenda-based user with goals that spell their agenda out: problems, programs, questions about a story."""

import asyncio
import json
import re
from dataclasses import replace

import pytest
from composing import load_config
from scripted import ScriptedModel, says, spoken

from collab.chat.base import Sampling
from collab.config.schema import AgendaUserConfig
from collab.conversation import Agenda, AgendaItem, Conversation, Goal
from collab.datamodules.goals import load_splits
from collab.parsing.agenda_items import agenda_of, form_of, makes
from collab.parsing.agenda_state import asks_back, read
from collab.randomness import RngKey
from collab.rewards.metrics import AgendaInteractivity
from collab.simulation.agenda import AgendaUser
from collab.simulation.conversation_loop import Players, play
from collab.util.errors import BadInput

PROBLEM = Goal(
    "rolls",
    "Ana bakes rolls. Each tray holds 12 rolls. There are 7 trays. How many rolls are there?",
    "84",
    {
        "level": "easy",
        "agenda": {
            "makes": "answer",
            "opening": "Ana bakes rolls. Each tray holds 12 rolls. How many rolls are there?",
            "items": [{"kind": "quantity", "text": "There are 7 trays.", "cues": "oven batch"}],
        },
    },
)
SIGNATURE = "It has to start like this:\ndef double(numbers, times=2):"
PROGRAM = Goal(
    "double",
    "Multiply the numbers of a list.",
    "def double(numbers, times=2):\n    return [times * number for number in numbers]",
    {
        "entry_point": "double",
        "tests": "def check(candidate):\n    assert candidate([1]) == [2]",
        "agenda": {
            "makes": "program",
            "opening": "I need the numbers of a list multiplied.",
            "items": [
                {"kind": "signature", "text": SIGNATURE},
                {"kind": "edge case", "text": "An empty list stays empty."},
                {"kind": "library", "text": "Please use no numpy."},
                {"kind": "output", "text": "I want a new list back."},
            ],
        },
    },
)
STORY = Goal(
    "dog",
    "What colour is it?",
    "Do you mean the dog?",
    {
        "ambiguous": True,
        "agenda": {"makes": "reply", "opening": "Story: A dog and a cat.\nQuestion: What colour is it?", "items": []},
    },
)
CODE = "```python\ndef double(numbers, times=2):\n    return [times * n for n in numbers]\n```"
KEY = RngKey(1, role="user", split="test")


def respond(goal: Goal, *replies: str, key: RngKey = KEY, max_turns: int = 9, **config):
    conversation = Conversation(goal)
    for reply in replies:
        conversation = conversation.with_user("(whatever)").with_reply(spoken(reply))
    return asyncio.run(AgendaUser(AgendaUserConfig(**config), max_turns).respond(conversation, key))


def revealed(goal: Goal, *replies: str) -> list[int]:
    text = respond(goal, *replies).text
    return [i for i, item in enumerate(agenda_of(goal)) if item.text in text]


def keys(count: int = 20) -> list[RngKey]:
    return [replace(KEY, seed=seed) for seed in range(count)]


def test_the_agenda_is_what_the_goal_spells_out_and_nothing_else():
    assert [item.text for item in agenda_of(PROBLEM)] == ["There are 7 trays."]
    assert len(agenda_of(PROGRAM)) == 4 and agenda_of(STORY) == []
    assert (makes(PROBLEM), makes(PROGRAM), makes(STORY)) == ("answer", "program", "reply")
    assert (form_of(PROBLEM), form_of(PROGRAM)) == ("answer", "function")


@pytest.mark.parametrize("goal", [PROBLEM, PROGRAM], ids=["problem", "program"])
def test_the_opening_is_said_and_the_rest_is_not(goal):
    said = {respond(goal, key=key).text for key in keys()}
    assert len(said) > 2
    for text in said:
        assert goal.agenda.opening in text
        assert not any(item.text in text for item in agenda_of(goal))


def test_a_story_is_told_as_it_stands_with_nothing_behind_it():
    assert {respond(STORY, key=key, max_turns=1).text for key in keys()} == {STORY.agenda.opening}


@pytest.mark.parametrize(
    ("question", "items"),
    [
        ("How many trays are there?", [0]),
        ("Can you tell me what is missing in this problem?", [0]),  # an open question
        ("How many batches does Ana put in?", [0]),  # a cue
        ("Which quantity is not given here?", [0]),  # its kind
        ("What is the weather like today?", []),
        ("How many rolls are there?", []),  # the user's own question
        ("Would you like me to help you with the trays?", []),
        ("Trays?", []),
    ],
)
def test_a_pertinent_question_brings_the_quantity_to_light(question, items):
    assert revealed(PROBLEM, question) == items


@pytest.mark.parametrize(
    ("question", "items"),
    [
        ("Which arguments should the function take?", [0]),
        ("What shall I call it, and what about its name?", [0]),
        ("What should happen with empty input or errors?", [0, 1]),
        ("Which libraries may I import here?", [2]),
        ("What should it return exactly?", [3]),
        ("Can you tell me more about the requirements?", [0]),  # an open question: the first
        ("What should the function do?", [0]),
        ("What about a function, then, in Python?", []),  # asks for nothing in particular, nor for more
        ("What do you think of my haircut?", []),
    ],
)
def test_a_pertinent_question_brings_parts_of_a_program_to_light(question, items):
    assert revealed(PROGRAM, question) == items


def test_a_question_inside_code_is_none():
    assert revealed(PROGRAM, "```python\n# Which arguments should it take?\nx = 1\n```") == []
    assert revealed(PROGRAM, f"{CODE}\nWhich libraries may I import here?") == [2]


def test_an_answer_that_comes_too_early_does_not_end_the_chat_and_gives_nothing_away():
    for goal, early in ((PROBLEM, "The answer is 60."), (PROGRAM, CODE)):
        for key in keys():
            turn = respond(goal, early, key=key)
            assert turn.text and not turn.end
            assert not any(item.text in turn.text for item in agenda_of(goal))


def test_an_answer_ends_the_chat_once_the_quantity_was_told():
    asked = "How many trays are there?"
    assert respond(PROBLEM, asked, "Then there are 84 rolls.").end == "satisfied"
    assert respond(PROBLEM, asked, "Then there are 12 rolls.").end == "satisfied"  # the user cannot tell
    assert respond(PROBLEM, asked, "Thank you, I see.").end == ""
    assert respond(PROBLEM, f"{asked} I guess 84.").end == ""  # it had not been told yet


def test_a_program_ends_the_chat_once_enough_was_told():
    first, second = "Which arguments and which libraries are there?", "What should it return for empty input?"
    assert respond(PROGRAM, first, CODE).end == ""
    assert respond(PROGRAM, first, CODE, satisfied_at=0.5).end == "satisfied"
    assert respond(PROGRAM, first, second, CODE).end == "satisfied"
    assert respond(PROGRAM, first, second, "I would use a list comprehension for this, I think.").end == ""


def test_any_reply_to_a_story_ends_the_chat():
    assert respond(STORY, "It is black.").end == respond(STORY, "Do you mean the dog?").end == "satisfied"


def test_patience_and_the_last_turn():
    idle = ("Hm.", "Well.", "I do not know.")
    assert respond(PROBLEM, *idle).end == "patience"
    assert all("final answer" in respond(PROBLEM, key=key, max_turns=1).text.lower() or "what is the answer" in
               respond(PROBLEM, key=key, max_turns=1).text for key in keys())  # fmt: skip
    assert all("function" in respond(PROGRAM, "Hm.", key=key, max_turns=2).text for key in keys())


def test_interactivity_counts_what_questions_brought_to_light():
    def value(goal: Goal, *replies: str) -> float | None:
        conversation = Conversation(goal)
        for reply in replies:
            conversation = conversation.with_user("(whatever)").with_reply(spoken(reply))
        return asyncio.run(AgendaInteractivity()(conversation.with_end("max_turns")))

    assert value(PROBLEM, "How many trays are there?", "84 rolls.") == 1.0
    assert value(PROBLEM, "84 rolls.") == 0.0
    assert value(PROGRAM, "Which arguments should the function take?", CODE) == 0.25
    assert value(STORY, "It is black.") is None


def test_asking_back():
    assert asks_back(STORY, "Do you mean the dog or the cat?") and asks_back(
        STORY, "It depends. Which one do you mean?"
    )
    assert not asks_back(STORY, "Black. Does that help? Is there anything else?")
    assert not asks_back(STORY, "Black. When do you want to meet?")  # nothing of the question, nor what is meant
    assert not asks_back(STORY, "")


def test_a_short_question_may_ask_back():
    assert asks_back(STORY, "It depends. Which one?")


def test_a_question_inside_code_does_not_ask_back():
    code = "```python\n# Do you mean the first or the last?\nx = 1\n```"
    assert not asks_back(PROGRAM, code) and asks_back(PROGRAM, f"{code}\nDo you mean the first or the last?")


def test_the_users_own_question_given_back_does_not_ask_back():
    assert not asks_back(STORY, "What colour is it? It is black.")


def test_state_is_read_off_the_conversation_alone():
    assert read(PROBLEM, ["How many trays are there?"]).given == (0,)
    again = read(PROBLEM, ["How many trays are there?", "How many trays are there?"])
    assert (again.given, again.surplus, again.refused) == ((0,), 1, "again")


def test_what_the_opening_says_is_not_asked_for():
    assert read(PROBLEM, ["How many rolls does each tray hold?"]).given == ()


def test_code_that_the_user_says_keeps_its_lines():
    items = [
        {"kind": "behaviour", "text": "halve it"},
        {"kind": "signature", "text": "It has to start like this:\nimport math\ndef half(a):"},
    ]
    goal = Goal("half", "p", "c", {"agenda": {"makes": "program", "opening": "I need a function.", "items": items}})
    asked = "What should it do? What are its name and its arguments?"
    assert re.fullmatch(
        r"[A-Z][\w ,]+\. Halve it\. It has to start like this:\nimport math\ndef half\(a\):", respond(goal, asked).text
    )
    last = respond(goal, asked, max_turns=2).text
    assert re.search(r"def half\(a\):\n[A-Z][\w ,]+ function[\w ,]*\.", last)


def test_an_agenda_that_is_spelt_out_fills_no_slots():
    assert not any(item.slots for goal in (PROBLEM, PROGRAM) for item in agenda_of(goal))


SHIPPED = {name: load_splits(load_config("evaluate", [f"task={name}"]).task) for name in ("math", "code")}


PLAYED = {
    "math": ("Can you tell me what else is given here?", "Which quantity is missing?", "The answer is 1."),
    "code": ("What exactly should it do and return?", "Which arguments and special cases are there?", CODE),
}


@pytest.mark.parametrize("name", PLAYED)
def test_shipped_goals_are_played_to_an_end_and_learned_by_asking(name):
    """Two questions and a result bring to light at least half of every shipped agenda."""
    asks = says(*PLAYED[name])
    for goal in SHIPPED[name].test:
        players = Players(ScriptedModel(asks), AgendaUser(AgendaUserConfig(), 3), Sampling(64), max_turns=3)
        done = asyncio.run(play(players, Conversation(goal), KEY.at(goal=goal.id)))
        assert done.ended_by in ("satisfied", "max_turns", "patience")
        assert asyncio.run(AgendaInteractivity()(done)) >= 0.5, goal.id


@pytest.mark.parametrize(
    "entry",
    [
        {"makes": "text", "opening": "o"},
        {"makes": "text", "opening": "", "items": []},
        {"makes": "poem", "opening": "o", "items": []},
        {"makes": "text", "opening": "o", "items": ["one"]},
        {"makes": "text", "opening": "o", "items": [{"kind": "k"}]},
        {"makes": "text", "opening": "o", "items": [{"kind": "k", "text": "t", "cue": "c"}]},
        {"makes": "text", "opening": "o", "items": [{"kind": "k", "text": 3}]},
        {"makes": ["text"], "opening": "o", "items": []},
    ],
)
def test_an_agenda_that_is_none_is_refused(entry):
    with pytest.raises(BadInput, match="the agenda in the metadata"):
        Agenda.read(entry)


def test_an_agenda_survives_its_entry():
    agenda = Agenda("answer", "o", (AgendaItem("quantity", "t", "c"), AgendaItem("k", "t2")))
    assert Agenda.read(json.loads(json.dumps(agenda.entry()))) == agenda


def test_an_agenda_may_end_with_a_text_too():
    goal = Goal("t", "p", "Bring a cup. Meet at noon.", {"agenda": {**PROBLEM.agenda.entry(), "makes": "text"}})
    assert respond(goal, "Bring a cup, and we will all meet at noon.").end == "satisfied"  # as its reference says
    assert revealed(goal, "How many trays are there?") == [0]
