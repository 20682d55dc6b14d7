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
from collab.config import AgendaUserConfig
from collab.conversation import Conversation, Goal, Key
from collab.datamodules.goals import load_goals
from collab.simulation.agenda import AgendaUser, agenda_of, coverage, form_of, read, topic_of
from collab.simulation.rollout import Players, play
from collab.text import content_words, sentences

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
        "tone": "cheerful",
        "audience": "people next door",
        "length": "about 22 words",
    },
)
OTHER = Goal("keys", "Say that keys were found.", "Two keys lay by the gate. Ask Omar.", {"title": "lost keys"})
TONE, AUDIENCE, LENGTH = 4, 5, 6
OPEN = "What should the text include?"
ALSO_OPEN = "Which other facts are important?"
OFF_TOPIC = "Do you like playing football on Sundays?"
KEY = Key(1, role="user", split="test", goal="picnic")


def after(*replies: str, goal: Goal = GOAL) -> Conversation:
    """A conversation in which the assistant has said this; the user's state is read off that alone."""
    conversation = Conversation(goal)
    for reply in replies:
        conversation = conversation.with_user("(whatever the user said)").with_reply(spoken(reply))
    return conversation


def respond(*replies: str, goal: Goal = GOAL, key: Key = KEY, max_turns: int = 9, **config):
    user = AgendaUser(AgendaUserConfig(**config), max_turns)
    return asyncio.run(user.respond(after(*replies, goal=goal), key))


def revealed(text: str, goal: Goal = GOAL) -> list[int]:
    """The agenda items that a message states."""
    return [i for i, item in enumerate(agenda_of(goal)) if item.text in text]


def keys(count: int = 40) -> list[Key]:
    return [replace(KEY, seed=seed) for seed in range(count)]


def shipped_goals() -> list[Goal]:
    folder = Path(collab.datamodules.__file__).parent / "data" / "doc_edit"
    return [goal for split in ("train", "val", "test") for goal in load_goals(folder / f"{split}.jsonl", split)]


# --- the opening -----------------------------------------------------------------------------------------------------


def test_agenda_is_the_sentences_then_the_preferences():
    assert [item.text for item in agenda_of(GOAL)] == [*SENTENCES, "cheerful", "people next door", "about 22 words"]
    assert [item.kind for item in agenda_of(GOAL)] == ["content"] * 4 + ["tone", "audience", "length"]


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


def test_open_question_gives_the_next_two():
    assert revealed(respond(OPEN).text) == [0, 1]
    assert revealed(respond(OPEN, ALSO_OPEN).text) == [2, 3]


@pytest.mark.parametrize(
    ("question", "items"),
    [
        ("What tone do you have in mind?", [TONE]),
        ("Should it sound formal or casual?", [TONE]),
        ("Who is going to read it?", [AUDIENCE]),
        ("How long should it be?", [LENGTH]),
        ("Where do we meet when it rains?", [1, 2]),
        ("What can the children paint there?", [3]),
        ("Tell me what tone you want and where the children meet?", [1, 3]),  # three are concerned, two are given
        ("What is the summer picnic like?", [0, 1]),  # the topic as a whole
    ],
)
def test_question_gives_the_items_that_it_concerns(question, items):
    assert revealed(respond(question).text) == items


def test_question_about_the_topic_does_not_single_out_a_sentence_that_names_it():
    goal = Goal("keys", "Keys were found.", "Ask Omar at the gate. Two keys lay there.", {"title": "lost keys"})
    assert revealed(respond("What do you know of the keys?", goal=goal).text, goal) == [0, 1]


def test_question_about_what_was_given_moves_on():
    assert revealed(respond("What can the children paint there?", OPEN).text) == [0, 1]
    assert revealed(respond("What can the children paint there?", OPEN, ALSO_OPEN).text) == [2, TONE]


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
    assert len(revealed(respond(OPEN, items_per_answer=items_per_answer).text)) == items_per_answer


def test_everything_comes_to_light_by_asking_and_only_once():
    questions = (OPEN, ALSO_OPEN, "What tone do you want for it?", "Who is going to read it?", "How long should it be?")
    given = [revealed(respond(*questions[: n + 1]).text) for n in range(len(questions))]
    assert given == [[0, 1], [2, 3], [TONE], [AUDIENCE], [LENGTH]]
    assert revealed(respond(*questions, "What else would a good invitation mention?").text) == []


# --- what earns nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "replies",
    [
        (OPEN, OPEN),
        (OPEN, "Okay! And what should the text now include?"),
        (OPEN, ALSO_OPEN, OPEN),
        ("How long should it be?", "How long should that be, please?"),
        (OFF_TOPIC,),
        (OPEN, OFF_TOPIC),
        ("What's that?",),
        ("Include what?",),
        ("Key points?",),
        ("What? Why? Really?",),
        ("?",),
        ("Tell me what the text should include.",),
        ("Sure, I can help.",),
        ("",),
    ],
)
def test_earns_nothing(replies):
    for key in keys(10):
        turn = respond(*replies, key=key)
        assert turn.text and not turn.end
        assert not content_words(turn.text) & content_words(" ".join(item.text for item in agenda_of(GOAL)))


BREAD = Goal("bread", "A flyer.", "Bring an apron. We knead until noon. Ask Ana.", {"title": "the bread class"})


@pytest.mark.parametrize("offer", OFFERS)
def test_offers_and_checks_earn_nothing(offer):
    for goal in (GOAL, BREAD):
        assert read(goal, [offer.format(topic=topic_of(goal))]).given == ()


@pytest.mark.parametrize("question", [OPEN, "Can you tell me more about {topic}?"])
def test_questions_that_look_like_offers_still_earn(question):
    for goal in (GOAL, BREAD):
        assert read(goal, [question.format(topic=topic_of(goal))]).given == (0, 1)
        assert read(goal, [OFFERS[0], question.format(topic=topic_of(goal))]).given == (0, 1)  # and after one


def test_the_users_own_opening_given_back_earns_nothing():
    for goal in (GOAL, OTHER, replace(GOAL, metadata={})):
        for key in keys():
            opening = respond(goal=goal, key=key).text
            assert read(goal, [opening]).given == ()
            assert read(goal, [opening, OPEN]).given == (0, 1)


def test_question_that_was_only_repeated_is_called_so():
    assert {respond(OPEN, OPEN, key=key).text for key in keys()} == {
        "You asked me that already.",
        "I have answered that before.",
    }


def test_question_asked_twice_in_a_message_counts_once():
    assert read(GOAL, ["What tone do you want? What tone would you want?"]).given == (TONE,)


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
    assert revealed(respond(f"Come to the picnic, it will be great fun. {OPEN}").text) == [0, 1]


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
    assert revealed(respond(OPEN, max_turns=2).text) == [0, 1]


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
    "Cyrillic": Goal("ru", "Приглашение.", "Встречаемся в полдень под дубом. Возьмите кружку!", {"tone": "тёплый"}),
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


def test_questions_in_another_script_are_understood():
    goal = ODD["Cyrillic"]
    text = respond("Что именно будет в полдень, скажите?", goal=goal).text
    assert revealed(text, goal) == [0] and sentences(goal.reference)[1] not in text
