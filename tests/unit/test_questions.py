"""Which questions ask the user for something, and for what: by kind, and on labelled questions."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.questions import LABELLED, rates
from collab.parsing.english import content_words, stem
from collab.parsing.questions import read_question, slots_of

TAKEN = {
    "open": [
        "What should it say?",
        "What should the text include?",
        "What points should it mention?",
        "Can you tell me more about it?",
        "Can you give me more information?",
        "Could you please share some background?",
        "What should guests know about the walk?",
        "What should readers know?",
    ],
    "slot": [
        "When is it?",
        "On which day does it take place?",
        "Where is it?",
        "What is the venue?",
        "Who leads the course?",
        "Who is going to read it?",
        "How much does it cost?",
        "Is it free?",
        "How many cups are there?",
        "How long does it last?",
        "How long should it be?",
        "What tone should it have?",
        "And the tone?",
        "Formal or casual?",
        "What is the reason for it?",
        "Why are you writing it?",
        "Do you know when it starts?",
        "Can you tell me where it is?",
    ],
    "wish": [
        "What do you like about it?",
        "What type of product is it?",
        "Do you want it to be funny?",
        "What do you want me to cover?",
    ],
}

REFUSED = {
    "world": [
        "How do kilns work?",
        "Why is the sky blue?",
        "What makes bread rise?",
        "Did you know that kilns are hot?",
        "Who invented the kiln?",
    ],
    "definition": ["What does kiln mean?", "What is a kiln?", "What is the history of kilns?", "What is pottery?"],
    "reversed": [
        "What would you like to know?",
        "Do you have any questions?",
        "Do you want to learn more?",
        "Are you interested in learning more?",
    ],
    "offer": [
        "Shall I write it?",
        "Would you like me to write the text?",
        "How can I help you?",
        "Do you need help?",
        "Is there anything else I can do?",
    ],
    "check": [
        "Does that sound good?",
        "What do you think of this draft?",
        "How does that sound?",
        "Do you like it?",
        "Is this text okay for you?",
    ],
    "finished": [
        "Can you send me the finished text?",
        "Can you write it for me?",
        "Could you provide a sample text?",
        "Do you have any suggestions?",
    ],
    "nonsense": [
        "What type of type is it?",
        "Where where is it?",
        "Why is it it?",
        "Is it is it for you?",
        "What is it, what for, what with?",
    ],
    "broken": [
        "When what length?",
        "When date?",
        "Where long does it have to be kept?",
        "Who kind of price do you like?",
        "Who specific date should it have?",
        "Who is the location?",
        "Who will it be?",
        "When would you like the note to sound?",
        "When is it important?",
        "How long should you be?",
        "How many days are you?",
        "How many times should you repeat it?",
        "Which date and time are you?",
        "What length should the ad be short?",
        "And when kind of notice is it?",
        "How long should the tone be?",
        "What tone should the tone have?",
    ],
    "too many": [
        "When, where and how much is it?",
        "Could you tell me the date, place, price, contact, name, reason, tone and length?",
        "Who is it for, what tone should it have and how long should it be?",
    ],
    "short": ["What?", "Key points?", "Really?", "?"],
    "nothing": [
        "Is the sky blue?",
        "Are cats nice?",
        "When is the sun?",
        "Who is the king of France?",
        "Where is Paris?",
        "What is the price of gold?",
    ],
}


# Near to broken ones.
WHOLE = [
    "When exactly is it?",
    "When's the deadline?",
    "Where to should people come?",
    "Why not on Sunday?",
    "Who else should read it?",
    "Who leads it and who is it for?",
    "How long will you be staying?",
    "How many people are you?",
    "Which days are you open?",
    "What should it be, short or long?",
    "Dear Ann, when does it start?",
    "When the two are equal, which one should it return?",
]


@pytest.mark.parametrize("question", WHOLE)
def test_a_question_that_makes_sense_is_not_taken_for_a_broken_one(question: str) -> None:
    assert read_question(question).why != "broken"


def table(kinds: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(kind, question) for kind, questions in kinds.items() for question in questions]


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("How long should the notice?", "broken"),
        ("How long may the shared kiln?", "broken"),
        ("How long should the notice be?", "wish"),
        ("How long should the kiln run?", "slot"),
        ("How long should the notice stay by the kiln?", "slot"),
        ("How long may the members use the shared kiln?", "wish"),
    ],
)
def test_how_long_needs_a_verb(question: str, why: str) -> None:
    assert read_question(question, content_words("notice shared kiln")).why == why


@pytest.mark.parametrize(("kind", "question"), table(TAKEN))
def test_a_question_for_the_users_own_is_taken(kind: str, question: str) -> None:
    reading = read_question(question)
    assert reading.asks, reading.why
    assert reading.why in ("request", "wish", "slot")
    if kind == "open":
        assert reading.open and not reading.slots
    if kind == "slot":
        assert reading.slots and not reading.open


@pytest.mark.parametrize(("why", "question"), table(REFUSED))
def test_a_question_for_nothing_of_the_users_is_refused(why: str, question: str) -> None:
    reading = read_question(question)
    assert (reading.asks, reading.why, reading.open, reading.slots) == (False, why, False, frozenset())


SLOTS = [
    ("When is it?", {"when"}),
    ("Which day and which hours?", {"when"}),
    ("When and where is it?", {"when", "where"}),
    ("What is the address?", {"where"}),
    ("What is the venue?", {"where"}),
    ("Who leads the course?", {"who"}),
    ("What is the name of the speaker?", {"who"}),
    ("Who is it for?", {"audience"}),
    ("Who is going to read it?", {"audience"}),
    ("Who is it addressed to?", {"audience"}),
    ("How much is it?", {"how much"}),
    ("Is there a fee?", {"how much"}),
    ("How many cups are there?", {"how many"}),
    ("How many words should it have?", {"length"}),
    ("How long should it be?", {"length"}),
    ("How long does it last?", {"how long"}),
    ("Should it be formal or casual?", {"tone"}),
    ("What is the phone number?", {"contact", "how many"}),
    ("Why are you writing it?", {"reason"}),
    ("What is the purpose?", {"reason"}),
    ("What should it say?", set()),
    ("Which colours do you want?", set()),
]


@pytest.mark.parametrize(("question", "slots"), SLOTS)
def test_slots_are_named_by_their_words(question: str, slots: set[str]) -> None:
    reading = read_question(question)
    assert reading.asks and reading.slots == slots


@pytest.mark.parametrize("question", ["How do people sign up?", "How can guests register?"])
def test_how_people_take_part_is_the_users_to_say(question: str) -> None:
    reading = read_question(question)
    assert reading.asks and "contact" in reading.slots


def test_more_details_are_an_open_request() -> None:
    """The example of the module's docs; no question for the length."""
    reading = read_question("Can you give me more details?")
    assert reading.open and not reading.slots


def test_a_word_of_the_topic_names_no_slot() -> None:
    known = frozenset({stem("date"), stem("palm")})
    assert read_question("What should it say about the date palm?").slots == {"when"}
    assert read_question("What should it say about the date palm?", known).slots == frozenset()
    assert read_question("When is it?", known).slots == {"when"}


def test_readers_who_do_something_are_not_asked_for() -> None:
    assert read_question("What should the readers bring?").slots == frozenset()
    assert read_question("Who are the readers?").slots == {"audience"}
    assert read_question("What kind of readers will it have?").slots == {"audience"}


def test_a_word_of_the_topic_opens_no_question() -> None:
    known = frozenset({stem("shared"), stem("kiln"), stem("message")})
    assert read_question("What is the shared kiln made of?").open
    assert not read_question("What is the shared kiln made of?", known).open
    assert read_question("What should the message say?", known).open


def test_a_cue_makes_a_question_one_of_the_users_case() -> None:
    question = "What can the children paint there?"
    assert not read_question(question).asks
    reading = read_question(question, cues=frozenset({stem("paint")}))
    assert (reading.asks, reading.why, reading.open) == (True, "case", False)
    assert not read_question("Is paint red?", cues=frozenset({stem("paint")})).asks  # asks for a yes or no alone


def test_world_knowledge_is_none_where_it_has_the_word_of_a_hidden_item() -> None:
    assert read_question("How does paint dry?").why == "world"
    reading = read_question("How does paint dry?", cues=frozenset({stem("paint")}))
    assert (reading.asks, reading.why, reading.open) == (True, "case", False)


@pytest.mark.parametrize("question", ["When is the sun?", "What is the price of gold?"])
def test_a_slot_of_a_thing_is_asked_for_where_the_case_has_the_thing(question: str) -> None:
    for things in ({"known": frozenset({"sun", "gold"})}, {"cues": frozenset({"sun", "gold"})}):
        assert read_question(question, **things).why == "slot"


def test_slots_of_an_items_cues() -> None:
    assert slots_of("when schedule how often") == {"when"}
    assert slots_of("how much price cost fee") == {"how much"}
    assert slots_of("bring cup red") == frozenset()


def test_case_and_spacing_change_no_decision() -> None:
    plain, odd = (read_question(text) for text in ("What's the tone of it?", "  WHAT’S   the\nTone of IT?"))
    assert plain.asks
    assert (odd.asks, odd.why, odd.open, odd.slots) == (plain.asks, plain.why, plain.open, plain.slots)


# --- on labelled questions -------------------------------------------------------------------------------------------

ROWS = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
HELD_OUT = [row for row in ROWS if row["held_out"] and row["task"] == "doc_edit"]


def test_rules_hold_on_the_held_out_questions_about_documents() -> None:
    precision, recall = rates(HELD_OUT)
    # As docs/collaboration.md promises. A precision of 0.95 is wanted, and missed.
    assert precision >= 0.82 and recall >= 0.89, (precision, recall)
    # Policies that learned from this user find what its rules let through.
    learned = [row for row in HELD_OUT if re.search(r"(trained|sft|warm-up).*, new user", row["policy"])]
    precision, recall = rates(learned)
    assert precision >= 0.81 and recall >= 0.89, (precision, recall)
    precision, recall = rates([row for row in HELD_OUT if row not in learned])
    assert precision >= 0.86 and recall >= 0.84, (precision, recall)


def test_the_labelled_questions_are_many_and_the_halves_share_none() -> None:
    halves = [{row["question"].lower() for row in ROWS if row["held_out"] is half} for half in (True, False)]
    assert min(map(len, halves)) >= 100
    assert not halves[0] & halves[1]


def test_rates_by_hand() -> None:
    """Taken are the first two, asked for are the first and the last."""
    opening = "I need a text about the picnic. Can you help?"
    rows = [
        {"task": "doc_edit", "opening": opening, "question": question, "asks_user": label}
        for question, label in [("When is it?", True), ("Where is it?", False), ("How do kites fly?", True)]
    ]
    assert rates(rows) == (1 / 2, 1 / 2)
    none = rates([{**rows[2], "asks_user": False}])
    assert none[0] != none[0] and none[1] != none[1]  # nan: nothing was taken, nothing was to be taken
