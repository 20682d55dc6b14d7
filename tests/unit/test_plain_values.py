"""Plain answers as values: what a text is, and what a message states; without math-verify."""

from __future__ import annotations

from fractions import Fraction

import pytest
from test_answers import PLAIN

from collab.parsing.plain_values import Value, boxed_content, stated_value, tidy, value_of, word_of


@pytest.mark.parametrize(("reference", "answer", "same"), PLAIN)
def test_a_plain_answer_is_found_and_compared(reference: str, answer: str, same: bool) -> None:
    wanted = value_of(reference) or word_of(reference)
    assert wanted is not None
    stated = stated_value(answer, wanted.kind)
    assert (stated is not None and wanted.equals(stated)) is same


def number(value: str | int, percent: bool = False, decimals: int = 0) -> Value:
    return Value("number", Fraction(value), percent, decimals)


def clock(hour: int, minute: int = 0, second: int = 0, half: str = "") -> Value:
    return Value("time", Fraction(3600 * hour + 60 * minute + second), half=half)


def choice(letter: str) -> Value:
    return Value("choice", word=letter)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("84", number(84)),
        (" 84. ", number(84)),
        ("-84", number(-84)),
        ("+84", number(84)),
        ("$-84", number(-84)),
        ("$84$", number(84)),
        ("$$84$$", number(84)),
        ("12.50", number("12.5", decimals=2)),
        (".5", number("1/2", decimals=1)),
        ("1,234.5", number("1234.5", decimals=1)),
        ("1.234,5", number("1234.5", decimals=1)),
        ("12,34,567", number(1234567)),
        (r"1\,000", number(1000)),
        (r"1,\!000", number(1000)),
        (r"1{,}000", number(1000)),
        (r"\(84\)", number(84)),
        ("`84`", number(84)),
        ("25%", number(25, percent=True)),
        (r"2.5\%", number("2.5", percent=True, decimals=1)),
        ("3 thousand", number(3000)),
        ("2.5 billion", number(2_500_000_000, decimals=1)),
        ("4/6", number("2/3")),
        ("1 2/3", number("5/3")),
        ("-1 2/3", number("-5/3")),
        ("1 3/2", None),  # no mixed number
        ("1 0/2", None),
        ("1 3/3", None),
        ("1,000 1/2", number("2001/2")),
        ("1/0", None),
        ("1,5", None),  # may be two numbers
        ("1,5 and", None),
        (r"0.\overline{3}", number("1/3")),
        (r"0.1\overline{6}", number("1/6")),
        (r"1.\overline{27}", number("14/11")),
        ("2e3", number(2000)),
        ("2.5e-3", number("1/400", decimals=1)),
        (r"2 \times 10^{3}", number(2000)),
        ("2 * 10**-3", number("1/500")),
        (r"\frac{1}{2}", number("1/2")),
        (r"3\frac{1}{2}", number("7/2")),
        (r"\frac12", number("1/2")),
        (r"\textbf{\text{84}}", number(84)),
        ("84 rolls of bread", number(84)),
        ("12 km/h", number(12)),
        ("7" * 5000, None),  # more digits than Python reads
        ("6:30", clock(6, 30)),
        ("at 6:30:15", clock(6, 30, 15)),
        ("6:30 pm", clock(18, 30, half="pm")),
        ("6.30 a.m.", clock(6, 30, half="am")),
        ("12 am", clock(0, half="am")),
        ("12 pm", clock(12, half="pm")),
        ("1 pm", clock(13, half="pm")),
        ("14:00 pm", clock(14, half="pm")),
        ("24:00", clock(24)),
        ("12:30", clock(12, 30)),
        ("13:30 am", clock(13, 30, half="am")),
        ("6.30", number("6.3", decimals=2)),
        ("B", choice("B")),
        ("(b)", choice("B")),
        ("option C.", choice("C")),
        (r"\textbf{(B)}", choice("B")),
        (r"\left(B\right)", choice("B")),
        ("b", None),
        ("", None),
        ("x + 1", None),
        ("seven", None),
    ],
)
def test_what_a_whole_text_is(text: str, value: Value | None) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Monday", "monday"),
        (" $Monday.$ ", "monday"),
        ("no", "no"),
        ("Xerox", "xerox"),
        (r"\text{no  Solution}", "no solution"),
        (r"$\text{east and west}$", "east and west"),
        (r"\text{no way} = 3", None),
        ("one half", None),
        ("ab", None),
        ("84", None),
    ],
)
def test_what_word_a_text_is(text: str, word: str | None) -> None:
    assert word_of(text) == (None if word is None else Value("word", word=word))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} and \boxed{ 2 }", "2"),
        (r"\fbox{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} or \fbox{2}", "2"),
        (r"\fbox{1} or \fbox{2}", "2"),
        (r"\boxed 57", "5"),
        (r"\boxed {57}", "57"),
        (r"\boxed{1", ""),
        (r"\boxed", ""),
        ("57", None),
    ],
)
def test_what_the_last_box_holds(text: str, content: str | None) -> None:
    assert boxed_content(text) == content


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (number(25, percent=True), number("1/4", decimals=2), True),
        (number(25, percent=True), number(25), True),
        (number(25, percent=True), number("1/4", percent=True), False),
        (number(25, percent=True), number(26), False),
        (number(25, percent=True), number("0.26", decimals=2), False),
        (number("1/3"), number("0.333333", decimals=6), True),
        (number("1/3"), number("0.33333333", decimals=8), True),
        (number("1/3"), number("0.33333", decimals=5), False),
        (number("1/3"), number("0.333334", decimals=6), False),
        (number("100/3", percent=True), number("0.333333", decimals=6), True),
        (number("1/8"), number("0.125001", decimals=6), False),  # it has an end
        (number("1/128"), number("0.007812", decimals=6), False),  # and so has this, later
        (number("33.3333", percent=True, decimals=4), number("1/3"), True),
        (number("10.101", percent=True, decimals=3), number("10/99"), False),  # 0.10101 has five places
        (clock(0, 30), clock(12, 30), False),
        (number("0.333333", decimals=6), number("0.3333333", decimals=7), False),
        (number("-1/3"), number("-0.333333", decimals=6), True),
        (number(6), clock(6), False),
        (choice("A"), choice("B"), False),
        (choice("A"), choice("A"), True),
        (clock(6, 30), clock(6, 30), True),
        (clock(6, 30), clock(18, 30), False),
        (clock(6, 30), clock(18, 30, half="pm"), True),
        (clock(6, 30), clock(6, 30, half="am"), True),
        (clock(18, 30), clock(18, 30, half="pm"), True),
        (clock(18, 30), clock(6, 30, half="am"), False),
        (clock(6, 30, half="am"), clock(18, 30, half="pm"), False),
        (clock(12, 30), clock(0, 30, half="am"), True),
        (clock(13), clock(1, half="am"), False),
        (clock(24), clock(0), True),
        (clock(6, 30, 1), clock(6, 30), False),
    ],
)
def test_what_equals_what(one: Value, other: Value, same: bool) -> None:
    assert one.equals(other) is other.equals(one) is same


@pytest.mark.parametrize(
    ("value", "latex"), [(number(-7), "-7"), (number("-1/3"), r"-\frac{1}{3}"), (number("7/2"), r"\frac{7}{2}")]
)
def test_a_number_in_latex(value: Value, latex: str) -> None:
    assert value.latex == latex


def test_one_spelling_for_characters() -> None:
    assert tidy("x² ½ 2½ ٣ −1 a\u200bb 1⁄2 x⁻¹") == "x^{2} 1/2  2 1/2  3 -1 ab 1/2 x^{-1}"
    assert tidy("5 – 3, 3–5, a – b") == "5 – 3, 3–5, a – b" and tidy("it is –5") == "it is -5"
    assert tidy("⅟4 x₋₁") == "1/4 x-1"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("It is 5 or 6.", "number", number(6)),  # the last one
        ("The answer is 5, as 6 is too large.", "number", number(5)),  # the first behind the word
        ("The answer is 5. No, the answer is 7, not 8.", "number", number(7)),  # behind the last such word
        ("To answer your question, I add 5 and get 6", "number", number(6)),
        ("The answer, after " + "much " * 12 + "thought, is 5, or maybe 6", "number", number(6)),  # too far behind
        (r"The answer is 5, so \boxed{6}", "number", number(6)),
        (r"The answer is 5, so \boxed{x}", "number", None),
        (r"It is 5, \boxed{B}", "number", None),
        ("It is 5 and not 6.", "number", number(5)),
        ("It is 3x", "number", None),
        ("It is 2 + 3", "number", None),
        ('It is 2 + "3"', "number", None),
        ('It is "3" + x', "number", None),
        ("<3", "number", None),
        ("It is 3X", "number", None),
        ("Not 5", "number", None),
        ("It is 5. Not 6.", "number", number(5)),
        ("It is 5, or 1/0.", "number", None),
        ("answer$5 of 6", "number", number(5)),
        ("It begins at 6:30 on day 7.", "time", clock(6, 30)),
        ("It is 5^2", "number", None),
        ("It is 3 kg", "number", number(3)),
        ("It is 3", "time", None),
        ("From 6:30 to 7:45", "time", clock(7, 45)),
        ("It is not 7:45 but it was 6:30, not 5:15", "time", clock(6, 30)),
        ("The answer is 6:30, ten minutes after 6:20", "time", clock(6, 30)),
        ("The answer is B, not A.", "choice", choice("B")),
        ("I choose C.", "choice", choice("C")),
        ("$B$", "choice", choice("B")),
        ("It is $B$.", "choice", choice("B")),
        ("the answer is a", "choice", None),
        ("Nothing", "choice", None),
        (r"The answer is \text{north} \text{East}", "word", Value("word", word="north east")),
        ("The answer: east. The answer: west", "word", Value("word", word="west")),
        (r"The answer: east, \boxed{\text{west}}", "word", Value("word", word="west")),
        ("East", "word", None),
    ],
)
def test_what_a_message_states(text: str, kind: str, value: Value | None) -> None:
    assert stated_value(text, kind) == value


@pytest.mark.parametrize(("between", "value"), [(60, 1234), (61, 6)])
def test_an_answer_stands_near_the_word(between: int, value: int) -> None:
    gap = " ".ljust(between - 1, ".") + " "
    assert stated_value(f"The answer{gap}1234 or 6", "number") == number(value)
