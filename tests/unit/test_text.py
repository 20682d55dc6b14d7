"""Sentences, questions and content words of chat messages."""

import pytest

from collab.parsing.english import (
    content_words,
    names_and_numbers,
    questions,
    sentences,
    stem,
    without_questions,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("One. Two! Three", ["One.", "Two!", "Three"]),
        ("Really?! Yes... maybe.", ["Really?!", "Yes...", "maybe."]),
        ("A title\n\n- a point\n- another", ["A title", "- a point", "- another"]),
        ('He said "go." Then left.', ['He said "go."', "Then left."]),
        ("She said (“stay?”) so. Good.", ["She said (“stay?”)", "so.", "Good."]),
        ("It costs 3.5 euros. See example.org now!", ["It costs 3.5 euros.", "See example.org now!"]),
        ("What topic?What tone?", ["What topic?", "What tone?"]),
        ("First.Second.", ["First.", "Second."]),
        ("...", ["..."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_no_sentence_loses_or_moves_a_character():
    text = "Hi.. is 3.5 (or 4?) enough?!no .\n?x. See a.b/c?d=1 — «oui.» 好吗？好。"
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_questions_and_the_rest_share_out_the_text():
    text = "Sure, I can help! Which tone fits?\nIs 3.5 euros right? Here is a start: we meet at noon"
    assert questions(text) == ["Which tone fits?", "Is 3.5 euros right?"]
    assert without_questions(text) == "Sure, I can help! Here is a start: we meet at noon"


@pytest.mark.parametrize("text", ["", "Who?", "Who is it for? And what tone?", "What?!\nWhy?"])
def test_nothing_is_left_of_questions_alone(text):
    assert without_questions(text) == ""


def test_words():
    assert words("Don't leave-it at 3 PM_now") == ["don't", "leave", "it", "at", "3", "pm", "now"]
    assert words("Über Çeşme: полдень") == ["über", "çeşme", "полдень"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("opens", "open"),
        ("opening", "opened"),
        ("stories", "story"),
        ("readers", "reader"),
        ("dog's", "dogs"),
    ],
)
def test_stem_folds_forms_of_a_word(one, other):
    assert stem(one) == stem(other)


def test_stem_leaves_short_words_apart():
    assert {stem("red"), stem("her"), stem("bed")} == {"red", "her", "bed"}


def test_content_words_drop_what_carries_no_meaning():
    assert content_words("Could you tell me what the oak is?") == {"oak"}
    assert content_words("What should it be?") == frozenset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("call Ana on 300 418", {"ana", "300", "418"}),
        ("It's Mrs Ito's 3rd class at Hill Street", {"mrs", "ito", "3rd", "hill", "street"}),
        ("Bring a cup. Ana comes.", set()),  # the first word of a sentence is a capital anyway
        ("Tuesdays, over lunch, but I don't know", set()),  # "I" is no name
        ("lit at 7:30, 3.5 euros", {"7", "30", "3", "5"}),
        ("12 trays", {"12"}),  # a number counts at the start too
        ("the oak, the old one", set()),
        ("в полдень у Анны", {"анны"}),
        ("", set()),
    ],
)
def test_names_and_numbers(text, expected):
    assert names_and_numbers(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Ana comes. Bring a cup.", {"ana", "bring"}), ("I come", set()), ("the oak, Ana", {"ana"}), ("oak", set())],
)
def test_a_capital_may_open_a_name(text, expected):
    assert names_and_numbers(text, opens=True) == expected
