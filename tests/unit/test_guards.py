"""The guard against role confusion on labelled messages, and the figures that the docs give of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.guards import DATA, KINDS, PARTS, WRITTEN, by_kind, figures, judged, line, results, rows
from collab.conversation import Agenda, AgendaItem, Artefact, Conversation, Goal, Reply, Turn
from collab.simulation.guards import (
    echoes,
    foreign,
    leaks,
    longest_run,
    repeats,
    role_confusion,
    stops_too_early,
    tells_too_much,
)
from collab.simulation.llm import end_signal

DOCS = (Path(__file__).parents[2] / "docs" / "users.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", PARTS[:2])
def test_the_docs_give_the_figures_of_the_held_out_parts(part: str) -> None:
    assert line(part, figures(part)) in DOCS


def test_the_docs_and_the_written_results_give_the_figures_of_each_kind() -> None:
    assert [row for kind, found in by_kind("test").items() if (row := line(kind, found)) not in DOCS] == []
    written = json.loads(WRITTEN.read_text(encoding="utf-8"))
    assert {name: written.get(name) for name in results()} == results()


def test_the_guards_are_not_worse_than_what_was_written() -> None:
    found = by_kind("test")  # the target, recall 0.85 at precision 0.9 for each kind, is missed
    assert found["any"].recall >= 0.85 and found["any"].precision >= 0.9
    assert found["leak"].recall >= 0.8 and found["leak"].precision >= 0.9
    assert found["confusion"].recall >= 0.8 and found["confusion"].precision >= 0.9


def test_the_labels_are_known_and_the_halves_share_no_goal() -> None:
    halves = [rows(split) for split in ("dev", "test")]
    assert sum(map(len, halves)) >= 300 and min(map(len, halves)) >= 140
    assert {label for half in halves for row in half for label in row["labels"]} == set(KINDS)
    dev, test = ({row["goal"] for row in half} for half in halves)
    assert not dev & test


def test_the_guard_is_worth_having() -> None:
    found = figures("held-out")
    assert found.precision >= 0.95 and found.recall >= 0.9
    assert figures("model-held-out").precision >= 0.7


def test_the_labelled_set_is_large_enough_and_its_halves_share_nothing() -> None:
    messages = json.loads(DATA.read_text(encoding="utf-8"))["messages"]
    by_hand = {part: [row for row in messages if row["part"] == part] for part in ("tuning", "held-out")}
    assert sum(map(len, by_hand.values())) >= 120 and min(map(len, by_hand.values())) >= 60
    for field in ("goal", "message"):
        tuning, held_out = ({row[field] for row in by_hand[part]} for part in by_hand)
        assert not tuning & held_out
    assert len(judged("held-out")) == len(by_hand["held-out"])


def test_code_of_the_assistant_may_be_quoted_back() -> None:
    agenda = Agenda("program", "I need a function.", ()).entry()
    goal = Goal("p", "Write f.", "def f(x):\n    return x", {"agenda": agenda})
    shown = "Here:\n```python\ndef f(x):\n    return -x\n```"
    quoted = "This gives -1 for f(1):\n```python\ndef f(x):\n    return -x\n```\nI need 1."
    assert not role_confusion(goal, shown, quoted)
    assert role_confusion(goal, "", quoted)


def goal_of(makes: Artefact, reference: str = "") -> Goal:
    return Goal("g", "Please help.", reference, {"agenda": Agenda(makes, "Please help me.", ()).entry()})


WORDS = [f"word{number}" for number in range(40)]


@pytest.mark.parametrize(
    ("makes", "message", "confused"),
    [
        ("answer", "I’m here to listen.", True),  # a typographic apostrophe
        ("answer", "So 3 + 4 = 7 then.", True),
        ("answer", "Is 3 + 4 = 7 right?", False),  # it asks
        ("answer", "I got 3 + 4 = 7.", False),  # its own attempt
        ("program", "This function returns the sum of both.", True),
        ("program", "```python\ndef g(y)\n    return y\n```", True),  # even if it cannot be parsed
        ("program", "So ```def g(y): return y``` is it.", True),
        (
            "program",
            "You wrote:\n``` py\ndef f(x):\n    return -x\n```\nI need 1.",
            False,
        ),  # the assistant's, in another fence
        ("text", "It ends with [Your Name] so far.", True),
        ("text", "\n\nDear all,\nwe meet at noon.", True),
        ("text", "Dear me, no.\n", False),  # a single line, and short
        ("text", " ".join(["Dear", *WORDS[:24]]), True),  # a single line, and long
        ("text", " ".join(["Dear", *WORDS[:23]]), False),
        ("text", " ".join(["Hi all", *WORDS[:23]]), True),
        ("text", " ".join(["Hi all", *WORDS[:22]]), False),
        ("text", " ".join(WORDS[:25]), False),
    ],
)
def test_what_an_assistant_would_say(makes: Artefact, message: str, confused: bool) -> None:
    heard = "```python\ndef f(x):\n    return -x\n```"
    assert role_confusion(goal_of(makes), heard, message) is confused


@pytest.mark.parametrize(("copied", "confused"), [(7, False), (8, True)])
def test_a_long_message_may_not_copy_eight_words_of_the_text(copied: int, confused: bool) -> None:
    message = " ".join([*WORDS[:copied], *(f"other{number}" for number in range(30))])
    assert role_confusion(goal_of("text", " ".join(WORDS)), "", message) is confused


@pytest.mark.parametrize(("said", "leaked"), [(8, False), (9, True)])
def test_nine_words_in_a_row_give_a_goal_away(said: int, leaked: bool) -> None:
    message = f"It says {' '.join(WORDS[:said])} and so on."
    agenda = {"agenda": Agenda("text", "Please help me.", (AgendaItem("a", "x"),)).entry()}
    for goal in (Goal("a", " ".join(WORDS), "x"), Goal("a", " ".join(WORDS), "x", agenda)):
        assert leaks(goal, message) is leaked
    assert leaks(Goal("a", "x", " ".join(WORDS), agenda), message) is leaked


def test_what_the_agenda_opens_with_is_no_secret() -> None:
    opening = "How many litres does the tank hold after an hour of rain in spring?"
    agenda = Agenda(
        "answer", opening, (AgendaItem("rate", "It takes in exactly two litres more every ten minutes now."),)
    )
    goal = Goal("t", f"{opening} It takes in two litres.", "12", {"agenda": agenda.entry()})
    assert not leaks(goal, opening)
    assert leaks(goal, "It takes in exactly two litres more every ten minutes now.")
    assert not leaks(goal, "It gets about two litres more, say every ten minutes.")
    assert not leaks(goal, f"It takes in exactly two {opening} litres more every ten minutes now.")  # not in a row


def test_form_and_topic_are_no_secret() -> None:
    prompt = "Please write a product blurb about our new folding camping stove for two, dry and cheerful in its tone."
    goal = Goal("g", prompt, "-", {"form": "product blurb", "title": "our new folding camping stove for two"})
    assert not leaks(goal, "Please write a product blurb about our new folding camping stove for two.")
    assert leaks(Goal("g", prompt, "-"), "Please write a product blurb about our new folding camping stove for two.")


def test_who_was_asked_may_call_it_a_good_question() -> None:
    goal = goal_of("text")
    assert not role_confusion(goal, "When is it?", "Good question. It is on Tuesday.")
    assert role_confusion(goal, "It is on Tuesday.", "Good question. It is on Tuesday.")
    assert role_confusion(goal, "When is it?", "Great question! It is on Tuesday.")


@pytest.mark.parametrize(
    ("heard", "message", "confused"),
    [
        ("", "Can you please write a notice about the shared kiln?", False),
        ("", "What do you know about the kiln, and when does it fire?", True),
        ("", "What should I say about when it fires?", False),  # its own question
        ("What is it about?", "On which day does it fire?", True),
        ("It fires on Tuesday, and Greta unloads the green shelf in the morning.", "But on which day is it?", False),
        ("", "Is your kiln a large one?", True),
    ],
)
def test_a_user_does_not_ask_for_what_it_knows(heard: str, message: str, confused: bool) -> None:
    assert role_confusion(NOTED, heard, message) is confused


@pytest.mark.parametrize(
    ("heard", "message", "confused"),
    [
        ("What should it say?", "I would like to know more about the kiln.", True),  # as a reader
        ("What should it say?", "I want to see the text first.", False),
        ("What should it say?", "We're excited to share the kiln with you!", True),  # as a host
        ("What should it say?", f"Good evening, everyone! {' '.join(WORDS[:24])}", True),
        ("What should it say?", "Please describe what the kiln is like.", True),
        ("What should it say?", "The person wants a notice.", True),  # a narrator
        ("What should it say?", "The person who unloads it is Greta.", False),
        ("What should it say?", "Is there anything else we need to say?", False),
        ("It fires on Tuesday, and Greta unloads the green shelf in the morning.", "I'd like to know the day.", False),
    ],
)
def test_a_user_is_neither_reader_nor_host_nor_narrator(heard: str, message: str, confused: bool) -> None:
    assert role_confusion(NOTED, heard, message) is confused


def test_longest_run_counts_words_in_a_row() -> None:
    assert longest_run("a b c d", "x b, c D y") == 3 and longest_run("", "a") == 0
    assert longest_run("the cat " * 150, "a cat, " + "the cat " * 150) == 300  # however often a word comes


def talk(*turns: tuple[str, str], makes: Artefact = "answer") -> Conversation:
    return Conversation(goal_of(makes, "7"), turns=tuple(Turn(user, Reply(text)) for user, text in turns))


def test_a_user_may_leave_satisfied_once_there_is_a_result() -> None:
    assert stops_too_early(talk(), True, 3)
    assert stops_too_early(talk(("hi", "What do you need?")), True, 3)
    assert not stops_too_early(talk(("hi", "It is 7."), ("thanks", "You are welcome.")), True, 3)
    assert stops_too_early(talk(("hi", "It is 7."), makes="program"), True, 3)


def test_a_user_may_give_up_after_some_replies() -> None:
    turns = [("hi", "It is 7.")] * 3  # whether there is a result or not
    assert [stops_too_early(talk(*turns[:number]), False, 2) for number in range(4)] == [True, True, False, False]


def test_nothing_is_said_twice_by_either_side() -> None:
    said = talk(("Hi there.", "What is it?"), ("A sum.", "Which one?"))
    assert all(repeats(said, message) for message in ("hi there!", "A sum", "What is it?", "which one"))
    assert not repeats(said, "Hi") and not repeats(talk(), "Hi")


# --- another language, instructions given back, paraphrased leaks, end signals ---------------------------------------

ENGLISH = "Please write a notice about the bread class. What I know: nine sharp is when we start."


@pytest.mark.parametrize(
    ("message", "strange"),
    [
        ("关于面包", True),  # a script without spaces
        ("add过 that", True),
        ("the слit corn", True),  # two alphabets in a word
        ("5 µm at 20 °C, see Nº 4", False),
        ("한국어", False),
        ("한국어 입니다", True),
        ("I need 关于面包课的通知", True),
        ("Напиши объявление", True),
        ("put Привет on top of the notice", False),  # one word
        ("Ich brauche einen Aushang für die Nachbarn.", True),
        ("necesito un anuncio para la clase de pan, por favor", True),
        ("Hola!", False),  # too short to tell
        ("Nine sharp, and no lattes in Los Angeles.", False),
        ("it's for the class, die hard fans of bread", False),
    ],
)
def test_another_language_than_the_conversation(message: str, strange: bool) -> None:
    assert foreign(message, ENGLISH) is strange


def test_the_language_of_the_conversation_is_whatever_it_is() -> None:
    german = "Bitte schreibe einen Aushang über den Brotkurs. Wir beginnen um neun, und die Schürze ist nicht dabei."
    assert not foreign("Ich brauche das für die Nachbarn.", german)
    assert foreign("I need this for the neighbours, and it is to be short.", german)
    assert not foreign("Напиши объявление", "О хлебе")


@pytest.mark.parametrize(
    ("message", "echoed"),
    [
        ("Okay, how about starting brief and vague.", True),
        ("This is my first message.", True),
        ("Sorry, I mistyped that.", True),
        ("You leave the work to it.", False),  # five words in a row
        ("You leave the work to it, yes.", False),
        ("I want you to leave the work to it to him.", False),
        ("Then you leave the work to somebody.", False),
        ("One two three four five six.", True),
        ("One two three four five, six.", True),
        ("One two three four five.", False),
    ],
)
def test_instructions_given_back(message: str, echoed: bool) -> None:
    assert echoes(message, ["You leave it.", "Zero, one two three four five six seven."]) is echoed


NOTED = Goal(
    "n",
    "Please write a notice.",
    "The kiln fires on Tuesday.",
    {
        "title": "the shared kiln",
        "form": "notice",
        "preferences": {"tone": "warm and plain", "length": "about 45 words"},
        "notes": ["it fires on Tuesday", "Greta unloads the green shelf", "a kilo costs two euros"],
    },
)


@pytest.mark.parametrize(
    ("message", "turn", "much"),
    [
        ("I need a notice about our shared kiln.", 1, False),
        ("A notice on the kiln, in warm, plain words.", 1, False),  # one preference
        ("A kiln notice, warm and plain, some 45 words.", 1, True),
        ("A notice: on Tuesday the kiln is fired.", 1, True),  # a note in other words
        ("It is fired on Tuesday, and the green shelf is unloaded by Greta.", 2, False),
        ("Fired on Tuesday; Greta unloads the green shelf; two euros for a kilo.", 2, True),
        ("Fired on Tuesday; Greta unloads the green shelf; two euros for a kilo.", 3, False),
    ],
)
def test_telling_much_at_once_is_a_leak_in_any_words(message: str, turn: int, much: bool) -> None:
    assert tells_too_much(NOTED, message, turn) is much


def test_what_a_problem_says_has_to_be_said() -> None:
    assert not tells_too_much(goal_of("answer", "7"), "Please help me with all of it.", 1)


@pytest.mark.parametrize(
    ("message", "end"),
    [
        ("[[SATISFIED]]", "satisfied"),
        ("[Satisfied]", "satisfied"),
        ("Thanks. {satisfied", ""),
        ("Satisfied.", "satisfied"),
        ("ok SATISFIED", "satisfied"),
        ("I am satisfied with the tone.", ""),
        ("<GIVE_UP>", "patience"),
        ("give up", "patience"),
        ("I GIVE UP", "patience"),
        ("please don't give up on me", ""),
    ],
)
def test_words_that_end_the_chat_in_any_spelling(message: str, end: str) -> None:
    assert end_signal(message) == end
