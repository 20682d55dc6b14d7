"""Ask or act: pairs of requests that ship, the rule that reads a first reply, metrics, and intervals by pair."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from composing import load_config

from benchmarks.ask_or_act import labelled, rates
from collab.app.evaluate import policy_scores
from collab.config.checks import check
from collab.conversation import Agenda, Conversation, Goal, Reply, Score
from collab.datamodules.ask_or_act import AskOrActGoals
from collab.datamodules.goals import load_goals, load_splits
from collab.parsing.english import content_words
from collab.rewards.asking import ActsOnClear, AsksOnVague, decision
from collab.rewards.reward import ConversationReward
from collab.util.errors import BadInput

TASK = load_config("evaluate", ["experiment=ask_or_act"]).task
GOALS = load_splits(TASK).test


# --- goals -----------------------------------------------------------------------------------------------------------


def test_64_pairs_of_eight_kinds_ship_and_the_first_ones_mix_the_kinds():
    check(load_config("evaluate", ["experiment=ask_or_act"]), "evaluate")
    counts = Counter((goal.metadata["kind"], goal.metadata["vague"]) for goal in GOALS)
    assert len(counts) == 16 and set(counts.values()) == {8}
    assert len({goal.prompt for goal in GOALS}) == len(GOALS) == 128
    assert [goal.metadata["vague"] for goal in GOALS[:4]] == [True, False, True, False]
    assert len({goal.metadata["kind"] for goal in GOALS[:16]}) == 8
    assert all(goal.agenda == Agenda("reply", goal.prompt, ()) for goal in GOALS)


@pytest.mark.parametrize(("vague", "clear"), [*zip(GOALS[::2], GOALS[1::2], strict=True)], ids=lambda goal: goal.id)
def test_the_clear_request_says_the_vague_one_and_what_it_lacks(vague, clear):
    assert vague.metadata["pair"] == clear.metadata["pair"]
    assert vague.metadata["vague"] is True and clear.metadata["vague"] is False
    assert vague.metadata["lacking"] == clear.metadata["lacking"]
    asked, told = content_words(vague.prompt), content_words(clear.prompt)
    assert len(asked & told) >= 0.6 * len(asked)  # one request in two versions
    for text in clear.metadata["lacking"]:
        assert text.lower() in clear.prompt.lower() and text.lower() not in vague.prompt.lower()
        assert not content_words(text) <= asked  # nor is it said in other words of the same stems


def row(prompt: str = "Sort my list.", **changes: Any) -> dict[str, Any]:
    metadata = {"pair": "p", "vague": True, "lacking": ["[3, 1]"], **changes}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    return {"single_turn_prompt": prompt, "single_turn_completion": "A question.", "single_turn_metadata": metadata}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (row(vague=None), "field vague is missing"),
        (row(vague="yes"), "field vague is text ('yes'); it must be true or false"),
        (row(pair=None), "field pair is missing"),
        (row(pair=" "), "field pair is empty"),
        (row(lacking=None), "field lacking is missing"),
        (row(lacking=[]), "lacking is empty"),
        (row(lacking=[3]), "an entry of lacking is a number ('3'); it must be text"),
        (
            row("Sort my list [3, 1]."),
            "a vague request must not say and a clear one must, and the vague one is 'Sort my",
        ),
        (row(vague=False), "a vague request must not say and a clear one must, and the clear one is 'Sort my list.'"),
    ],
)
def test_a_request_that_breaks_the_rule_of_its_kind_is_refused(tmp_path, given, said):
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(given) + "\n")
    with pytest.raises(BadInput) as caught:
        load_goals(file, "test", AskOrActGoals())
    assert said in str(caught.value)


# --- the rule --------------------------------------------------------------------------------------------------------

ASKS = [
    "Hello! Which list do you mean?",
    "Which list do you mean?",
    "Sure, I can do that. Which language is it, and who is going to read it?",
    "I'd be happy to help! Please provide the text that you would like me to translate.",
    "Please tell me the date.",
    "I need to know how far it is.",
    "Could you give me the length and the width of the garden?",
    "What kind of guests are they?\nWhat do they like to eat?",
]
ACTS = [
    "2.5 hours.",
    "Dear Dr Meyer, I have to cancel my appointment on Tuesday. Would another day suit you?",
    "Hi Samir, congratulations! How does it feel?",
    'You could write: "Would it be possible to move the meeting to Monday?"',
    "```python\nok = True\n```\nDo you want a test, too?",
    "¿Dónde está la farmacia más cercana?",
    "Où est la pharmacie la plus proche?",
    "Pack a coat. Does that help?",
    "To find out which one is faster, let us compare them. Which one takes less time? It takes 80 minutes, the other "
    "one takes 95 minutes. So the second one is faster by 15 minutes.",
]
NEITHER = [
    "",
    "I'm here to help.",
    "How can I help you today?",
    "I'm sorry, but I can't assist with that.",
    "Sorry! I am unable to see your list. Goodbye.",
]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [(text, label) for label, texts in (("asks", ASKS), ("acts", ACTS), ("neither", NEITHER)) for text in texts],
)
def test_what_a_reply_does(reply, expected):
    assert decision(reply, "Translate this, please: 'Where is the nearest pharmacy?'") == expected


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, I can't come to your housewarming on Saturday because I'm on night shift.",
        "We are sorry that we cannot come to the housewarming on Saturday.",
        "Thank you for asking me, Ines, but I have to work.",
    ],
)
def test_a_message_that_is_sorry_is_a_result(reply):
    request = "I have to turn down Ines's invitation to her housewarming on Saturday because I am on night shift."
    assert decision(reply, request) == "acts"


def test_a_result_that_repeats_a_quoted_text_is_no_question():
    soft = "Could you please send me the file now? I have been waiting for it."
    request = "This sounds rude. Can you soften it?"
    assert decision(soft, f"{request} 'Send me the file now, I am tired of waiting.'") == "acts"
    assert decision(soft, request) == "asks"


def test_the_rule_agrees_with_the_labelled_replies():
    rows = labelled()
    assert len(rows) >= 60 and {row["label"] for row in rows} == {"asks", "acts", "neither"}
    assert len({(row["policy"], row["request"]) for row in rows}) == len(rows)
    agreement, precision, recall = rates(rows)
    assert agreement > 0.9 and precision > 0.8 and recall > 0.9
    agreement, precision, recall = rates([row for row in rows if row["held_out"]])
    assert agreement > 0.85 and precision > 0.75 and recall > 0.85  # lower: of a model on which no rule was made


# --- scores ----------------------------------------------------------------------------------------------------------

QUESTION, RESULT = "Which list do you mean?", "Here it is: 1, 3."


def goal(pair: str, vague: bool) -> Goal:
    return Goal(f"{pair}-{vague}", "Sort my list.", "-", {"pair": pair, "vague": vague})


def talk(about: Goal, *replies: str) -> Conversation:
    conversation = Conversation(about)
    for text in replies:
        conversation = conversation.with_user(about.prompt).with_reply(Reply(text))
    return conversation.with_end("max_turns")


@pytest.mark.parametrize(
    ("vague", "replies", "expected"),
    [
        (True, [QUESTION], {"asks_on_vague": 1.0, "acts_on_clear": None}),
        (True, [RESULT], {"asks_on_vague": 0.0, "acts_on_clear": None}),
        (False, [QUESTION], {"asks_on_vague": None, "acts_on_clear": 0.0}),
        (False, [RESULT], {"asks_on_vague": None, "acts_on_clear": 1.0}),
        (False, [RESULT, QUESTION], {"asks_on_vague": None, "acts_on_clear": 1.0}),  # the first reply decides
        (True, [""], {"asks_on_vague": 0.0, "acts_on_clear": None}),
        (False, [""], {"asks_on_vague": None, "acts_on_clear": 0.0}),  # nothing is no action
    ],
)
def test_the_right_decision_is_1(vague, replies, expected):
    reward = ConversationReward({"asks_on_vague": (1.0, AsksOnVague()), "acts_on_clear": (1.0, ActsOnClear())})
    score = asyncio.run(reward(talk(goal("p", vague), *replies)))
    assert {name: score.parts.get(name) for name in expected} == expected
    assert score.reward == max(value for value in expected.values() if value is not None)


def test_the_two_requests_of_a_pair_count_as_one_goal():
    scored = [
        (talk(goal("p", True), QUESTION), Score(1.0, {"asks_on_vague": 1.0})),
        (talk(goal("p", False), QUESTION), Score(0.0, {"acts_on_clear": 0.0})),
    ]
    scores = policy_scores(scored)
    assert scores["reward"] == {"p": [1.0, 0.0]}
    assert scores["asks_on_vague"] == {"p": [1.0]} and scores["acts_on_clear"] == {"p": [0.0]}
