"""The agenda-based user: each of its rules, its randomness, and goals of every shape."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import (
    OFFERS,
    ScriptedModel,
    asks_and_never_writes,
    dumps_text,
    good_collaborator,
    says,
    says_nothing,
    spoken,
)

import collab.datamodules
from collab.chat.base import Sampling
from collab.config.schema import AgendaUserConfig
from collab.conversation import Conversation, Goal
from collab.datamodules.goals import load_goals
from collab.parsing.agenda_items import agenda_of, form_of, notes_of, preferences_of, topic_of
from collab.parsing.agenda_state import coverage, covers, distinct_questions, read
from collab.parsing.english import content_words, sentences, stem
from collab.parsing.intents import goal_text
from collab.randomness import RngKey
from collab.simulation.agenda import AgendaUser
from collab.simulation.conversation_loop import Players, play

SENTENCES = (
    "Bring a red cup.",
    "We meet under the old oak at noon.",
    "Rain moves everyone to the barn.",
    "Children may paint paper kites.",
)
GOAL = Goal(
    "picnic",
    "Please write a cheerful invitation for neighbours: bring a red cup, we meet under the old oak at noon, ...",
    " ".join(SENTENCES),
    {
        "title": "the summer picnic",
        "form": "invitation",
        "preferences": {"tone": "cheerful", "audience": "people next door", "length": "about 22 words"},
    },
)
OTHER = Goal("keys", "Say that keys were found.", "Two keys lay by the gate. Ask Omar.", {"title": "lost keys"})
TONE, AUDIENCE, LENGTH = 4, 5, 6
OPEN = "What should the text include?"
ALSO_OPEN = "What points should it mention?"
SLOTS = ("What tone do you want for it?", "Who is going to read it?", "How long should it be?")
OFF_TOPIC = "Do you like playing football on Sundays?"
KEY = RngKey(1, role="user", split="test", goal="picnic")


def after(*replies: str, goal: Goal = GOAL) -> Conversation:
    """A conversation in which the assistant has said this; the user's state is read off that alone."""
    conversation = Conversation(goal)
    for reply in replies:
        conversation = conversation.with_user("(whatever the user said)").with_reply(spoken(reply))
    return conversation


def respond(*replies: str, goal: Goal = GOAL, key: RngKey = KEY, max_turns: int = 9, **config):
    user = AgendaUser(AgendaUserConfig(**config), max_turns)
    return asyncio.run(user.respond(after(*replies, goal=goal), key))


def revealed(text: str, goal: Goal = GOAL) -> list[int]:
    """The agenda items that a message states, at the beginning of a sentence or within one."""
    said = [(item.text, item.text[0].upper() + item.text[1:]) for item in agenda_of(goal)]
    return [i for i, ways in enumerate(said) if any(way in text for way in ways)]


def keys(count: int = 40) -> list[RngKey]:
    return [replace(KEY, seed=seed) for seed in range(count)]


def shipped_goals() -> list[Goal]:
    folder = Path(collab.datamodules.__file__).parent / "data" / "doc_edit"
    return [goal for split in ("train", "val", "test") for goal in load_goals(folder / f"{split}.jsonl", split)]


# --- the opening -----------------------------------------------------------------------------------------------------


def test_agenda_is_the_sentences_then_the_preferences():
    assert [item.text for item in agenda_of(GOAL)] == [*SENTENCES, "cheerful", "people next door", "about 22 words"]
    assert [item.kind for item in agenda_of(GOAL)] == ["content"] * 4 + ["tone", "audience", "length"]


def test_only_preferences_are_told_to_the_user():
    secret = {"scoring_key": "XY-1", "rubric": ["XY-2"], "source": "XY-3", "tests": "XY-4", "difficulty": 5}
    secret |= {"tone": "XY-6", "format": "XY-7"}
    own = {**GOAL.metadata["preferences"], "colour": "red", "avoid": ["puns", "slang"], "pictures": 0, "style": ""}
    goal = replace(GOAL, metadata={**secret, **GOAL.metadata, "preferences": own})
    told = {name: value for name, value in own.items() if name != "style"} | {"avoid": "puns, slang", "pictures": "0"}
    assert preferences_of(goal) == told
    assert {item.kind: item.text for item in agenda_of(goal) if item.preference} == told
    for text in (goal_text(goal), *(item.text for item in agenda_of(goal))):
        assert "XY" not in text and "5" not in text and "scoring" not in text
    assert all(f"{name}: {value}" in goal_text(goal) for name, value in told.items())


def test_opening_names_the_topic_and_the_form_and_nothing_of_the_agenda():
    for key in keys():
        opening = respond(key=key).text
        assert "the summer picnic" in opening and "an invitation" in opening
        assert not content_words(opening) & content_words(" ".join(item.text for item in agenda_of(GOAL)))


def test_opening_without_a_title_gives_nothing_of_the_prompt_away():
    goal = replace(GOAL, metadata={})
    for key in keys():
        opening = respond(goal=goal, key=key).text
        assert "a text" in opening
        assert not content_words(opening) & content_words(goal.prompt + goal.reference)


def test_openings_of_shipped_goals_are_vague():
    """Title and form may share a word with the reference; no sentence and no preference is told by them."""
    goals = shipped_goals()
    for number, goal in enumerate(goals):
        opening = respond(goal=goal, key=replace(KEY, seed=number)).text
        known = content_words(f"{topic_of(goal)} {form_of(goal)}")
        told = content_words(opening) - known
        assert not any(told & content_words(item.text) for item in agenda_of(goal)), opening
        assert coverage(goal, opening) == 0, opening
        assert not any(item.text.lower() in opening.lower() for item in agenda_of(goal)), opening
    assert len({goal.id for goal in goals}) > 100


# --- questions that earn an answer -----------------------------------------------------------------------------------


def test_an_open_question_earns_the_next_item_once():
    assert revealed(respond(OPEN).text) == [0]
    assert revealed(respond("What can the children paint there?", OPEN).text) == [0]
    assert read(GOAL, [OPEN, ALSO_OPEN]).given == (0,)


@pytest.mark.parametrize(
    ("question", "items"),
    [
        ("What tone do you have in mind?", [TONE]),
        ("Should it sound formal or casual?", [TONE]),
        ("Who is going to read it?", [AUDIENCE]),
        ("Who is it for?", [AUDIENCE]),
        ("How long should it be?", [LENGTH]),
        ("When is it?", [1]),  # "at noon"
        ("Where does everybody meet?", [1]),  # "under the old oak"
        ("When and where is it?", [1]),  # one sentence has both
        ("What can the children paint there?", [3]),
        ("Tell me what tone you want and where the children meet?", [1, TONE]),
        ("What should it say about the summer picnic?", [0]),  # the topic as a whole: an open question
    ],
)
def test_question_gives_the_items_that_it_concerns(question, items):
    assert revealed(respond(question).text) == items


def test_question_about_the_topic_does_not_single_out_a_sentence_that_names_it():
    goal = Goal("keys", "Keys were found.", "Ask Omar at the gate. Two keys lay there.", {"title": "lost keys"})
    assert revealed(respond("What should it say about the keys?", goal=goal).text, goal) == [0]


def test_one_message_earns_two_items_whatever_it_asks():
    text = "What tone do you want for it? Who is going to read it? How long should it be? " + OPEN
    assert revealed(respond(text).text) == [TONE, AUDIENCE]
    assert revealed(respond("Let me ask. What tone do you want for it? " + OPEN).text) == [0, TONE]


def test_what_one_message_asked_too_much_may_be_asked_again():
    tone, audience, length = "What tone do you want for it?", "Who is going to read it?", "How long should it be?"
    assert read(GOAL, [f"{tone} {audience} {length}"]).given == (TONE, AUDIENCE)
    assert revealed(respond(f"{tone} {audience} {length}", length).text) == [LENGTH]
    assert not read(GOAL, [f"{tone} {audience} {length}", tone]).answered  # what was answered may not


@pytest.mark.parametrize("items_per_answer", [1, 3])
def test_generosity_is_the_configs(items_per_answer):
    text = f"{OPEN} {' '.join(SLOTS)}"
    assert len(revealed(respond(text, items_per_answer=items_per_answer).text)) == items_per_answer


def test_everything_that_can_be_asked_for_comes_to_light_and_only_once():
    asked = (
        OPEN,
        *SLOTS,
        "When is it?",
        "What should everyone do with rain?",
        "What can the children paint there?",
    )
    given = [revealed(respond(*asked[: n + 1], patience=9).text) for n in range(len(asked))]
    assert given == [[0], [TONE], [AUDIENCE], [LENGTH], [1], [2], [3]]
    assert revealed(respond(*asked, "What else should the invitation mention?").text) == []
    assert sorted(read(GOAL, asked).given) == list(range(7))


# --- notes and cues --------------------------------------------------------------------------------------------------

NOTES = ("oak, the old one, noon", "cup, red, bring it", "Ana's phone: 300 418")
NOTED = replace(
    GOAL, metadata={"title": "the summer picnic", "notes": NOTES, "cues": ("when where", "bring", "contact who")}
)


def test_notes_stand_for_the_sentences_of_the_reference():
    assert notes_of(NOTED) == list(NOTES)
    assert [item.text for item in agenda_of(NOTED)] == list(NOTES)  # notes and cues are no preferences
    assert notes_of(GOAL) == list(SENTENCES)


def test_the_user_says_its_note_and_not_the_reference():
    text = respond(OPEN, goal=NOTED).text
    assert revealed(text, NOTED) == [0] and not any(sentence in text for sentence in SENTENCES)


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("oak, the old one, noon", "Oak, the old one, noon."),
        ("Ana leads it.", "Ana leads it."),
        ("oak or elm?", "Oak or elm?"),
        ("5 euros!", "5 euros!"),
    ],
)
def test_a_note_is_told_as_a_sentence(note, said):
    goal = Goal("n", "A note.", "-", {"title": "the picnic", "notes": (note,)})
    assert {respond(OPEN, goal=goal, key=key).text.endswith(f" {said}") for key in keys()} == {True}


@pytest.mark.parametrize("question", ["What tone should it have?", "How long should it be?"])
def test_a_note_has_no_tone_and_no_length(question):
    """They are preferences."""
    goal = Goal("n", "A note.", "-", {"title": "the picnic", "notes": ("oak",), "cues": ("mood paragraphs",)})
    assert read(goal, [question]).given == ()


def test_a_preference_wins_its_slot():
    """A note has the same slot, and more words of the question."""
    notes, cues = ("oak, for readers of maps",), ("audience readers maps",)
    goal = Goal(
        "n",
        "A note.",
        "-",
        {"title": "it", "notes": notes, "cues": cues, "preferences": {"audience": "people next door"}},
    )
    assert read(goal, ["Who are the readers of the maps?"]).given == (1,)


@pytest.mark.parametrize(
    ("question", "items"),
    [
        ("When is it?", [0]),
        ("Where is it?", [0]),
        ("What should everybody bring?", [1]),  # a cue that is no slot
        ("How do people sign up, and who leads it?", [2]),  # both slots of one note
        ("How much does it cost?", []),  # nobody has it
    ],
)
def test_a_note_is_asked_for_by_its_cues(question, items):
    assert revealed(respond(question, goal=NOTED).text, NOTED) == items


def test_a_note_with_cues_fills_no_slot_but_those():
    bare = replace(NOTED, metadata={"title": "the summer picnic", "notes": NOTES})
    assert revealed(respond("When is it?", goal=bare).text, bare) == [0]  # read off "noon"
    other = replace(NOTED, metadata={**NOTED.metadata, "cues": ("bring", "when", "contact")})
    assert revealed(respond("When is it?", goal=other).text, other) == [1]


# --- what covers a note, by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # content words: oak, old, noon; cup, red, bring; and of the last phone, beside Ana, 300 and 418
        ("We meet at noon under the oak.", [True, False, False]),  # 2 of 3
        ("We meet at noon.", [False, False, False]),  # 1 of 3
        ("Bring something red.", [False, True, False]),
        ("Her phone: 300 418.", [False, False, False]),  # 3 of 4 words, but whose?
        ("Ask Ana, 300 418.", [False, False, True]),  # 3 of 4
        ("Phone Ana, 300 419.", [False, False, False]),  # a wrong number
        ("Ana: 300 418. Old oak, at noon. Bring it, red.", [True, True, True]),
        ("At noon. Then the oak.", [True, False, False]),  # in two sentences, one after the other
        ("At noon. So it is. Then the oak.", [False, False, False]),  # in two that are apart
        ("Phone Ana. 300 418.", [False, False, True]),
        (f"At noon under the oak{' and so on' * 8}.", [True, False, False]),  # 29 words
        (f"At noon under the oak{' and so on' * 8} to us.", [False, False, False]),  # 31 words
        ("", [False, False, False]),
    ],
)
def test_a_text_covers_a_note_with_its_names_and_numbers_and_half_of_its_words(text, found):
    goal = replace(NOTED, metadata={**NOTED.metadata, "notes": (*NOTES[:2], "phone: Ana, 300 418")})
    assert covers(goal, text) == found
    assert coverage(goal, text) == pytest.approx(sum(found) / 3)


LOOSE = ("red cups, all of them", "noon, the old oak, kites", "rain drives us into the barn", "Ana has five lamps")


@pytest.mark.parametrize(("repeats", "share"), [(1, 1.0), (2, 0.0)])
def test_a_bag_of_sorted_words_covers_nothing_when_it_is_longer_than_30_words(repeats, share):
    goal = Goal("n", "A note.", "-", {"title": "the picnic", "notes": LOOSE})
    bag = " ".join(sorted(" ".join(LOOSE).lower().replace(",", "").split() * repeats))
    assert (len(bag.split()) > 30) is (repeats == 2)
    assert coverage(goal, bag) == share


def test_sentences_on_both_sides_of_a_long_one_are_not_adjacent():
    """Half of the note is before a sentence of 32 words, half is behind it."""
    goal = Goal("n", "A note.", "-", {"title": "the picnic", "notes": ("oak, the old one, noon",)})
    assert covers(goal, "It is at noon. See the oak.") == [True]
    assert covers(goal, f"It is at noon.{' So it goes' * 10} and on. See the oak.") == [False]


@pytest.mark.parametrize(
    ("name", "said"),
    [("Novaks", "Novak"), ("Tuesdays", "Tuesday"), ("Tuesday", "Tuesdays"), ("Ito's", "Ito"), ("Lamps", "lamp")],
)
def test_names_are_compared_by_stem(name, said):
    goal = Goal("n", "A note.", "-", {"title": "the picnic", "notes": (f"the kiln, lit by {name}",)})
    assert covers(goal, f"The kiln is lit, {said}!") == [True]
    assert covers(goal, "The kiln is lit by her!") == [False]


def test_a_capital_that_opens_a_note_is_a_name_where_other_notes_begin_in_lower_case():
    notes = ("Greta lights the kiln", "red cups, all of them")
    goal = Goal("n", "A note.", "-", {"title": "the picnic", "notes": notes})
    assert covers(goal, "Somebody lights the kiln.") == [False, False]
    assert covers(goal, "Greta lights the kiln.") == [True, False]


def test_a_capital_that_opens_a_note_is_none_where_all_begin_so():
    notes = ("Somebody lights the kiln", "Red cups, all of them")
    goal = Goal("n", "A note.", "-", {"title": "the picnic", "notes": notes})
    assert covers(goal, "She lights the kiln.") == [True, False]


def test_words_of_the_topic_and_the_form_cover_nothing():
    goal = Goal("p", "A note.", "-", {"title": "the red cup", "form": "notice", "notes": ("a red cup, washed, dried",)})
    assert covers(goal, "A notice about the red cup.") == [False]  # 0 of washed and dried
    assert covers(goal, "It is washed.") == [True]  # 1 of 2


def test_a_note_of_the_topics_words_alone_is_covered_by_them():
    goal = Goal("p", "A note.", "-", {"title": "the red cup", "notes": ("the red cup",)})
    assert covers(goal, "A cup.") == [True] and covers(goal, "A mug.") == [False]


def test_nothing_covers_a_note_without_content_words():
    goal = Goal("p", "A note.", "-", {"notes": ("and so on", "a red cup")})
    assert covers(goal, "And so on: a red cup.") == [False, True]


# --- what earns nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "replies",
    [
        (OPEN, OPEN),
        (OPEN, "Okay! And what should the text now include?"),
        (OPEN, "What points should it mention?"),  # the same request in other words
        (OPEN, "Can you tell me more about it?"),
        (OPEN, ALSO_OPEN, OPEN),
        ("How long should it be?", "How long should that be, please?"),
        (OFF_TOPIC,),
        (OPEN, OFF_TOPIC),
        ("When is it?", "On which day is it?"),  # both ask for the note that was told
        ("What's that?",),
        ("Include what?",),
        ("Key points?",),
        ("What? Why? Really?",),
        ("?",),
        ("Sure, I can help.",),
        ("",),
    ],
)
def test_earns_nothing(replies):
    for key in keys(10):
        turn = respond(*replies, key=key)
        assert turn.text and not turn.end
        assert not content_words(turn.text) & content_words(" ".join(item.text for item in agenda_of(GOAL)))


NO_IDEA = (
    "I don't know, I just need the invitation.",
    "No idea. How would that help with the invitation?",
    "That is not what the invitation is for.",
)
REACTIONS = [
    ("How do clouds float?", NO_IDEA),  # world knowledge
    ("Why do the clouds float?", NO_IDEA),
    ("What does kite mean?", NO_IDEA),  # a definition
    ("What is the history of kites?", NO_IDEA),
    (
        "What would you like to know about kites?",  # the roles reversed
        ("You tell me.", "I was hoping that you would ask me something.", "You are the one to ask."),
    ),
    (
        "Can you send me the finished text?",
        ("I have none, that is why I am asking you.", "No, you are to write it."),
    ),
    (
        "Which colours do you want?",
        ("I have nothing on that.", "I can't tell you anything about that.", "Nothing comes to mind, sorry."),
    ),
    (
        "Shall I write about the kites?",  # an offer
        ("I am not sure what you mean.", "That does not help me much.", "Hmm, that is not really the point."),
    ),
]


@pytest.mark.parametrize(("question", "reactions"), REACTIONS, ids=[question for question, _ in REACTIONS])
def test_a_question_that_asks_for_nothing_of_the_users_earns_nothing_and_hears_so(question, reactions):
    assert read(GOAL, [question]).given == ()
    assert {respond(question, key=key).text for key in keys()} == set(reactions)


def test_a_slot_that_no_item_has_is_pertinent_and_earns_nothing():
    state = read(GOAL, ["How much does it cost?"])
    assert (state.given, state.pertinent, state.surplus, state.refused) == ((), 1, 0, "no wish")


BREAD = Goal("bread", "A flyer.", "Bring an apron. We knead until noon. Ask Ana.", {"title": "the bread class"})


@pytest.mark.parametrize("offer", OFFERS)
def test_offers_and_checks_earn_nothing(offer):
    for goal in (GOAL, BREAD):
        assert read(goal, [offer.format(topic=topic_of(goal))]).given == ()


@pytest.mark.parametrize("question", [OPEN, "Can you tell me more about {topic}?"])
def test_questions_that_look_like_offers_still_earn(question):
    for goal in (GOAL, BREAD):
        assert read(goal, [question.format(topic=topic_of(goal))]).given == (0,)
        assert read(goal, [OFFERS[0], question.format(topic=topic_of(goal))]).given == (0,)  # and after one


def test_the_users_own_opening_given_back_earns_nothing():
    for goal in (GOAL, OTHER, replace(GOAL, metadata={})):
        for key in keys():
            opening = respond(goal=goal, key=key).text
            assert read(goal, [opening]).given == ()
            assert read(goal, [opening, OPEN]).given == (0,)


AGAIN = {"You asked that before.", "We have been there. Ask me something new."}
KNOWN = {"You know that already.", "That is all I can say about it.", "I told you what I know about that."}


@pytest.mark.parametrize(
    ("replies", "reactions"),
    [
        ((OPEN, OPEN), AGAIN),
        ((OPEN, ALSO_OPEN), KNOWN),
        (("When is it?", "When is it?"), AGAIN),
        (("When is it?", "On which day is it?"), KNOWN),
    ],
)
def test_what_the_user_has_told_is_called_so(replies, reactions):
    assert {respond(*replies, key=key).text for key in keys()} == reactions


# --- asked again, asked for too much, asked for nonsense -------------------------------------------------------------

TWO_DAYS = replace(
    GOAL,
    metadata={
        "title": "the summer picnic",
        "notes": ("noon, under the oak", "cups go back on Monday", "kites on Sunday, in the barn", "Ana has the key"),
        "cues": ("when", "when return cups", "when kites", "who"),
    },
)


@pytest.mark.parametrize(
    ("replies", "given"),
    [
        (("When is it?",), (0,)),
        (("When is it?", "On which day is it?"), (0,)),  # the slot again, and no word of another note
        (("When is it?", "When do the cups go back?"), (0, 1)),
        (("When is it?", "When are the kites?", "When do cups go back?"), (0, 2, 1)),
        (("When do the cups go back?", "When is it?"), (1,)),
        (("When is it? When are the kites?",), (0, 2)),
    ],
)
def test_a_slot_that_was_asked_for_earns_another_item_only_by_a_word_of_it(replies, given):
    assert read(TWO_DAYS, replies).given == given


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("When do the cups go back?", "So when do the cups go back?"),
        ("When do the cups go back?", "When do the cups go back?"),
        ("When is it?", "When is it?"),
        (OPEN, OPEN),
        ("How much does it cost?", "And how much does it cost?"),  # nobody knows
    ],
)
def test_a_repeated_question_never_earns_and_is_surplus(first, again):
    before, after_ = read(TWO_DAYS, [first]), read(TWO_DAYS, [first, again])
    assert after_.given == before.given
    assert (after_.pertinent, after_.surplus, after_.refused) == (before.pertinent, before.surplus + 1, "again")


MANY = [
    "Could you tell me the date, place, price, contact, name, reason, tone and length?",
    "When, where and how much is it?",
]


@pytest.mark.parametrize("question", MANY)
def test_a_question_for_more_than_two_slots_earns_nothing_of_any_shipped_goal(question):
    states = [read(goal, [question]) for goal in shipped_goals()]
    assert {(state.given, state.pertinent, state.surplus, state.refused) for state in states} == {
        ((), 0, 0, "too many")
    }


def test_a_question_for_too_much_hears_so():
    assert {respond(MANY[0], key=key).text for key in keys()} == {
        "One thing at a time, please.",
        "That is a lot at once. What do you need to know first?",
    }


ABSURD = {  # question -> the word that it is about
    "When is the sun?": "sun",
    "Who is the king of France?": "king",
    "Where is Paris?": "paris",
    "What is the price of gold?": "gold",
    "Why is it it?": "-",
}


@pytest.mark.parametrize("question", ABSURD)
def test_an_absurd_question_earns_nothing(question):
    for goal in (GOAL, TWO_DAYS, OTHER, BREAD):
        assert read(goal, [question]).given == ()


@pytest.mark.parametrize(("question", "about"), ABSURD.items())
def test_an_absurd_question_earns_nothing_of_a_shipped_goal_that_is_not_about_it(question, about):
    """Not even of one that has a slot with the question's word."""
    others = [g for g in shipped_goals() if stem(about) not in content_words(f"{g.prompt} {g.metadata['cues']}")]
    assert len(others) > 100
    assert [goal.id for goal in others if read(goal, [question]).given] == []


def test_a_question_with_a_word_of_a_hidden_item_may_be_about_it():
    """Which the user takes for its own case, though anybody might know."""
    assert read(GOAL, ["How do the paper kites fly?"]).given == (3,)


def test_question_asked_twice_in_a_message_counts_once():
    assert read(GOAL, ["What tone do you want? What tone would you want?"]).given == (TONE,)


# --- questions are counted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replies", "counts"),  # all, pertinent, surplus
    [
        ((), (0, 0, 0)),
        ((OPEN,), (1, 1, 0)),
        ((OPEN, OPEN), (2, 1, 1)),  # asked before
        ((OPEN, "What points should it mention?"), (2, 1, 1)),  # in other words
        (("When is it?", "Where is it?"), (2, 1, 1)),  # one note had both
        ((" ".join(SLOTS),), (3, 2, 1)),  # the third comes on top
        ((" ".join(SLOTS), SLOTS[2]), (4, 3, 1)),  # and may be asked again
        (("How much does it cost?",), (1, 1, 0)),  # new, though nobody knows
        (("How much does it cost?", "How much does it cost?"), (2, 1, 1)),
        (("How do clouds float?", "Shall I write it?"), (2, 0, 0)),  # asks the user for nothing
        ((f"{SLOTS[0]} {SLOTS[0]}",), (2, 1, 1)),  # in one message
        (("When, where and how much is it?",), (1, 0, 0)),  # too many at once
        (("Here is a text without a question.",), (0, 0, 0)),
    ],
)
def test_questions_are_pertinent_surplus_or_neither(replies, counts):
    state = read(GOAL, replies)
    assert (state.num_questions, state.pertinent, state.surplus) == counts


@pytest.mark.parametrize(("items_per_answer", "surplus"), [(1, 2), (2, 1), (3, 0)])
def test_questions_beyond_items_per_answer_are_surplus(items_per_answer, surplus):
    assert read(GOAL, [" ".join(SLOTS)], items_per_answer).surplus == surplus


# --- how particular questions are ------------------------------------------------------------------------------------


def chat(goal: str, *replies: str) -> Conversation:
    return after(*replies, goal=Goal(goal, "A note.", "Ask Omar.", {"title": goal}))


def test_a_constant_question_is_particular_to_no_goal():
    assert distinct_questions([chat(goal, "What tone should it have?") for goal in ("oak", "elm", "ash")]) == [0, 0, 0]


def test_a_question_for_another_slot_is_particular():
    """Of three questions two ask for something else."""
    asked = {"oak": "Where is it?", "elm": "Who leads the course?", "ash": "How much does the lamp cost?"}
    assert distinct_questions([chat(goal, text) for goal, text in asked.items()]) == pytest.approx([2 / 3] * 3)


def test_six_slots_in_turn_are_five_sixths_particular():
    """Each of the six is asked for in every second of twelve conversations."""
    six = ("Where is it?", "When is it?", "How much is it?", "What tone should it have?", "Who leads the course?")
    six = (*six, "How long should it be?")
    chats = [chat(f"g{number}", *(six if number % 2 else six[::-1])) for number in range(12)]
    assert distinct_questions(chats) == pytest.approx([5 / 6] * 12)


def test_a_slot_in_other_words_is_no_other_question():
    asked = {"oak": "When is it?", "elm": "On which day is it?", "ash": "What is the date?"}
    assert distinct_questions([chat(goal, text) for goal, text in asked.items()]) == [0, 0, 0]


def test_all_open_requests_ask_for_the_same():
    asked = {"oak": OPEN, "elm": ALSO_OPEN, "ash": "Can you tell me more about it?"}
    assert distinct_questions([chat(goal, text) for goal, text in asked.items()]) == [0, 0, 0]


def test_a_question_for_many_slots_at_once_is_as_constant_as_any_other():
    asked = "Could you tell me the date, place, price, contact, name, reason, tone and length?"
    assert distinct_questions([chat(goal, asked) for goal in ("oak", "elm", "ash")]) == [0, 0, 0]


def test_without_slots_the_content_words_tell_questions_apart():
    asked = {"oak": "Which colours do you want?", "elm": "Which animals do you want?"}
    assert distinct_questions([chat(goal, text) for goal, text in asked.items()]) == [0.5, 0.5]


def test_the_topic_makes_no_question_particular():
    assert distinct_questions([chat(goal, f"What does {goal} mean?") for goal in ("oak", "elm", "ash")]) == [0, 0, 0]


def test_particular_questions_by_hand():
    tone, cost = "What tone should it have?", "How much does the lamp cost?"
    chats = [chat("oak", tone, cost), chat("elm", tone), chat("ash", cost), chat("fir", "Sure.")]
    # of four questions, two ask for something else
    assert distinct_questions(chats) == [0.5, 0.5, 0.5, None]


def test_questions_about_one_goal_alone_are_told_apart_too():
    assert distinct_questions([chat("oak", "Where is it?"), chat("oak", "When is it?")]) == [0.5, 0.5]


# --- drafts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draft",
    [
        "Dear all, come to the summer picnic and have a lovely time with us!",
        f"{SENTENCES[0]} {SENTENCES[1]} It will be a lovely day.",
    ],
)
def test_draft_that_misses_items_earns_no_content(draft):
    names = {"content", "tone", "audience", "length"}
    named = set()
    for key in keys():
        turn = respond(draft, key=key)
        assert not turn.end and turn.text
        found = content_words(turn.text)
        assert not found & content_words(" ".join(item.text for item in agenda_of(GOAL)))
        named |= names & set(turn.text.replace(".", "").replace(",", "").split())
    assert named == names  # now this kind, now that


def test_draft_names_no_kind_that_was_given():
    replies = ("What tone do you want for it?", "Come to the picnic, it will be great fun.")
    assert not any("tone" in respond(*replies, key=key).text for key in keys())


def test_satisfied_by_a_draft_that_covers_enough():
    three = " ".join(SENTENCES[:3])
    assert coverage(GOAL, three) == 0.75
    assert respond(three, satisfied_at=0.75) == respond(GOAL.reference)
    assert respond(three, satisfied_at=0.75).end == "satisfied"
    assert respond(three, satisfied_at=0.76).end == ""
    own_words = "Bring cups that are red. At noon, meeting at an old oak. The rain will move us into a barn."
    assert respond(OPEN, own_words).end == "satisfied"


def test_satisfied_only_by_a_draft_of_this_message():
    """Half a reference in one message and half in the next is no document; nor is a question that holds it all."""
    assert respond(" ".join(SENTENCES[:2]), " ".join(SENTENCES[2:])).end == ""
    assert respond(f"Shall I write this: {GOAL.reference.replace('.', ',')} or not?").end == ""


def test_question_beside_a_draft_is_answered():
    assert revealed(respond(f"Come to the picnic, it will be great fun. {OPEN}").text) == [0]


# --- the end of the chat ---------------------------------------------------------------------------------------------


def test_patience():
    assert respond(OFF_TOPIC, "No?", patience=3).end == ""
    assert respond(OFF_TOPIC, "No?", "", patience=3).end == "patience"
    assert respond(OPEN, OPEN, OPEN, patience=3).end == ""
    assert respond(OPEN, OPEN, OPEN, OPEN, patience=3).end == "patience"
    assert respond("No?", "No?", OPEN, "No?", "No?", patience=3).end == ""  # progress begins the count anew
    assert respond("Hm.", patience=1).end == "patience"


def test_better_draft_is_progress_and_the_same_draft_is_not():
    one, two = SENTENCES[0] + " It will be a lovely day.", " ".join(SENTENCES[:2])
    assert respond(one, two, patience=1).end == ""
    assert respond(one, one, patience=1).end == "patience"
    assert respond(two, one, patience=1).end == "patience"


def test_asks_for_the_final_text_at_the_last_turn_and_not_before():
    for key in keys(10):
        for replies in [(), (OPEN,), (OPEN, OFF_TOPIC), (OPEN, "Come to the picnic, it will be great fun.")]:
            last, earlier = (respond(*replies, key=key, max_turns=len(replies) + more).text for more in (1, 2))
            assert "final invitation" in last or "finished invitation" in last
            assert last.startswith(earlier) and "final" not in earlier and "finished" not in earlier


def test_the_last_turn_still_answers_the_question():
    assert revealed(respond(OPEN, max_turns=2).text) == [0]


# --- randomness and state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replies", [(), (OPEN,), (OFF_TOPIC,), ("Come to the picnic, it will be great fun.",)])
def test_phrasing_varies_with_the_key_and_is_a_function_of_it(replies):
    texts = [respond(*replies, key=key).text for key in keys()]
    assert len(set(texts)) > 2
    assert texts == [respond(*replies, key=key).text for key in keys()]


def test_what_is_told_does_not_depend_on_the_key():
    for replies in [(OPEN,), (OPEN, "What tone do you want for it?")]:
        assert len({tuple(revealed(respond(*replies, key=key).text)) for key in keys()}) == 1


def test_state_of_conversations_never_mixes():
    """One user object, many chats at once, forks of one history among them: each goes as it goes alone."""

    histories = [(), (OPEN,), (OPEN, OPEN), (OPEN, ALSO_OPEN), (OPEN, "What tone do you want for it?")]
    chats = [(goal, replies) for goal in (GOAL, OTHER) for replies in histories]

    async def together() -> list:
        user = AgendaUser(AgendaUserConfig(), 9)
        return await asyncio.gather(
            *(user.respond(after(*r, goal=g), KEY.at(goal=g.id)) for g, r in [*chats, *reversed(chats)])
        )

    alone = [respond(*replies, goal=goal, key=KEY.at(goal=goal.id)) for goal, replies in chats]
    assert asyncio.run(together()) == [*alone, *reversed(alone)]
    assert not any(word in turn.text for turn in alone[:5] for word in ("keys", "Omar", "gate"))


# --- goals of every shape --------------------------------------------------------------------------------------------

ODD = {
    "no metadata": replace(GOAL, metadata={}),
    "one sentence": Goal("one", "A sign, please.", "Mind the step", {"title": "step"}),
    "no end mark": Goal("no-mark", "A list, please.", "Red cups on the left\nBlue cups on the right", {}),
    "Cyrillic": Goal(
        "ru", "Приглашение.", "Встречаемся в полдень под дубом. Возьмите кружку!", {"preferences": {"tone": "тёплый"}}
    ),
    "Japanese": Goal("ja", "案内を書いて。", "正午に会いましょう。赤いカップを持って。", {"title": "夏の集まり"}),
    "numbers": Goal("numbers", "A price list.", "Tea is 3.5 euros. Cake is 4.2 euros.", {"title": 42, "rank": 0}),
    "values of any type": Goal(
        "types", "A note.", "Feed the cat.", {"title": None, "tags": ["a"], "form": 7, "draft": False, "more": {"x": 1}}
    ),
    "braces": Goal("braces", "Say {x}.", "Set {x} to %s.", {"title": "{0} {topic}", "form": "{form}"}),
    "no words": Goal("marks", "!?", "?!? ...", {"title": "?"}),
    "stop words": Goal("stop", "Be it so.", "We are here for you.", {}),
}


@pytest.mark.parametrize("goal", ODD.values(), ids=ODD)
def test_any_goal_is_played_to_an_end(goal):
    for script in (good_collaborator, asks_and_never_writes, dumps_text, says_nothing, says(goal.reference)):
        players = Players(ScriptedModel(script), AgendaUser(AgendaUserConfig(), 4), Sampling(48), max_turns=4)
        done = asyncio.run(play(players, Conversation(goal), KEY))
        assert done.ended_by in ("satisfied", "patience", "max_turns")
        assert all(turn.user for turn in done.turns)
        assert not revealed(done.turns[0].user.partition("about")[0], goal)


@pytest.mark.parametrize("name", [name for name in ODD if name not in ("no words", "stop words")])
def test_any_goal_that_has_words_can_be_learned_and_satisfied(name):
    goal = ODD[name]
    assert 0 in revealed(respond(OPEN, goal=goal).text, goal)
    draft = "Here is the finished text that you wanted, have a look: " + goal.reference
    assert respond(draft, goal=goal).end == "satisfied"


def test_a_question_finds_words_of_another_script():
    goal = ODD["Cyrillic"]
    text = respond("What will be there: полдень?", goal=goal).text
    assert revealed(text, goal) == [0] and sentences(goal.reference)[1] not in text


def test_only_english_questions_are_understood():
    assert read(ODD["Cyrillic"], ["Что именно будет в полдень, скажите?"]).given == ()


# --- requests without a question mark --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    ["Tell me what the text should include.", "Sure, please provide me with more details.", "Let me know more."],
)
def test_a_request_without_a_question_mark_asks_too(request_):
    assert read(GOAL, [request_]).given == (0,)


def test_a_request_for_the_text_earns_nothing():
    assert read(GOAL, ["Sure, please provide your finished invitation."]).given == ()


def test_a_request_within_a_draft_is_a_part_of_the_draft():
    draft = (
        "Dear neighbours, come and have a lovely day with all of us. Please give us a call. Please tell your friends."
    )
    assert read(GOAL, [draft]).num_questions == 0
