r"""Plain answers in the many ways in which people write them: numbers, times of day, words and letters of a choice.

`value_of` reads a text that is one such answer, and `stated_value` finds the one that a message states. Both are exact:
numbers are fractions of whole numbers. What is mathematics beyond that is left to math-verify (`answers.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_CURRENCY = "$€£¥₹₽₩₪₫฿₦₱₺₴¢"
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ROUNDED = 6  # decimals from which on a decimal stands for a fraction that has no end

# --- one spelling for characters and LaTeX ---------------------------------------------------------------------------

_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_VULGAR = re.compile("((?<=\\d))?([¼-¾⅐-⅞↉])")
_MINUS = re.compile(r"[\u2212\ufe63\uff0d]|(?<![\w)\]}])(?<![\d)\]}] )[\u2010-\u2015](?=[\s$€£]?[\d.\\])")
_SPACES = re.compile(r"\\[,;:> ]|\\q?quad\b|(?<!\\)~")
_FRACTION = re.compile(r"((?<=\d)\s*)?\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_TEXT = re.compile(r"\\(?:text\w*|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(?<![\w)\]}*_])(?:\*{1,3}|_{1,3})(?=[^\s*_])|(?<=[^\s*_])(?:\*{1,3}|_{1,3})(?![\w(\\*]|-\d)")


def tidy(text: str) -> str:
    """The text with ASCII digits, minus signs and spaces, and without characters that nobody sees."""
    text = _RAISED.sub(lambda found: "^{" + unicodedata.normalize("NFKC", found[0]) + "}", text)
    text = _VULGAR.sub(lambda found: f"{' ' * (found[1] is not None)}{unicodedata.normalize('NFKC', found[2])} ", text)
    text = _MINUS.sub("-", text)  # before NFKC, which keeps minus signs and folds some dashes
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("−", "-")
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text if unicodedata.category(c) != "Cf")


def _plain(text: str) -> str:
    """The text with the LaTeX and Markdown of plain answers written out."""
    text = _SPACES.sub(" ", _EMPHASIS.sub("", tidy(text))).replace("\\!", "").replace("{,}", ",")
    text = re.sub(r"\\left\b|\\right\b|\\[()\[\]]|`", " ", text)
    text = re.sub(r"\\([%&#_])", r"\1", text).replace("\\$", "$")
    for _ in range(2):  # \textbf{\text{(B)}}
        text = _TEXT.sub(r" \1 ", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°", " degrees ", text)
    text = re.sub(r"\\times\b|\\cdot\b|[×·⋅∙]", "*", text)
    return _FRACTION.sub(
        lambda found: f"{' ' * (found[1] is not None)}{found[2] or found[3]}/{found[4] or found[5]} ", text
    )


# --- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A plain answer.

    Attributes:
        kind: "number", "time" of day, letter of a "choice", or "word".
        number: The number, or the seconds since midnight.
        percent: Whether a percent sign follows the number.
        decimals: Number of digits after the decimal point.
        half: "am" or "pm" of a time, if it is given.
        word: The letter of a choice, or the words in lower case.
    """

    kind: Literal["number", "time", "choice", "word"]
    number: Fraction = Fraction(0)
    percent: bool = False
    decimals: int = 0
    half: str = ""
    word: str = ""

    def equals(self, other: Value) -> bool:
        """Whether both are the same answer.

        25% equals 25 and 0.25. A decimal of at least six places equals the fraction without an end that it rounds.
        6:30 equals 6:30 pm, and not 18:30.
        """
        if self.kind != other.kind:
            return False
        if self.kind == "time":
            return _same_time(self, other)
        if self.kind != "number":
            return self.word == other.word
        if _same_number(self, other):
            return True
        return self.percent != other.percent and _same_number(_share(self), _share(other))

    @property
    def latex(self) -> str:
        """A number in LaTeX."""
        if self.number.denominator == 1:
            return str(self.number)
        sign = "-" if self.number < 0 else ""
        return f"{sign}\\frac{{{abs(self.number.numerator)}}}{{{self.number.denominator}}}"


def _share(value: Value) -> Value:
    if not value.percent:
        return value
    return replace(value, number=value.number / 100, decimals=value.decimals + 2 if value.decimals else 0)


def _same_number(one: Value, other: Value) -> bool:
    if one.number == other.number:
        return True
    if one.decimals and not other.decimals:
        one, other = other, one
    endless = not one.decimals and 10**400 % one.number.denominator
    return bool(endless) and other.decimals >= _ROUNDED and round(one.number, _ROUNDED) == round(other.number, _ROUNDED)


def _same_time(one: Value, other: Value) -> bool:
    if one.half and other.half:
        return one.number == other.number
    day = 43200 if one.half or other.half else 86400
    early = all(value.half or value.number < 13 * 3600 for value in (one, other))
    return (one.number - other.number) % (day if early else 86400) == 0


# --- reading ---------------------------------------------------------------------------------------------------------

_SIGN = r"(?:(?<![\w)\]}.])[-+]|\b(?:minus|negative)\s+)"
_MONEY = rf"(?:(?:US|CA|AU|NZ|HK|[AC])?[{_CURRENCY}]|(?:USD|EUR|GBP|JPY|CHF|INR|CAD|AUD|Rs\.?)(?=[\s\d]))"


def _whole(name: str) -> str:
    """A whole number with or without marks between the thousands; the group of the mark needs a name."""
    marked = rf"\d{{1,3}}(?P<{name}>[,'’_ ])\d{{3}}(?!\d)(?:(?P={name})\d{{3}}(?!\d))*"
    dotted = r"\d{1,3}(?:(?:\.\d{3}){2,}(?!\d)|(?:\.\d{3})+(?=,\d\d?(?!\d)))"
    return rf"(?:{marked}|\d{{1,2}}(?:,\d\d)+,\d{{3}}(?!\d)|{dotted}|\d+)"


_DECIMAL = (
    rf"(?:{_whole('mark')}(?:\.(?P<places>\d+)|,(?P<comma>\d\d?|\d{{4,}})(?!\d))?|\.(?P<bare>\d+))"
    r"(?:\.?\\overline\s*\{(?P<repeats>\d+)\})?"
)
_POWER = (
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w|\.\d)"
    r"|\s*[*x]\s*10\s*(?:\^|\*\*)\s*[{(]?\s*(?P<power>[-+]?\d{1,3})\s*[})]?)"
)
_NUMBER = (
    rf"(?P<sign>{_SIGN})?(?:{_MONEY}\s?)?(?P<inner>(?<=[{_CURRENCY}\s])-)?(?:"
    rf"(?:(?P<units>{_whole('units_mark')})\s+)?(?P<over>(?<![\d.,])\d+)\s*[/:]\s*(?P<under>\d+)"
    rf"|(?P<decimal>{_DECIMAL}){_POWER}?"
    rf")(?:\s*(?P<scale>{'|'.join(_SCALES)})\b)?(?P<percent>\s*(?:%|per\s?cent(?:age)?\b|pct\b))?(?:\s?[{_CURRENCY}])?"
)
_FUNCTIONS = r"(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|pi|and|mod|theta|alpha|beta|gamma|lambda|sigma|or)\b)"
_KNOWN = (
    r"[cmk]m|[mk]g|lbs?|oz|ft|in|yd|mi|sec|min|hrs?|ms|[mc][lL]|mph|kph|km/h|m/s|[kM]?Hz|[kM]W|k?Wh|kJ|[KMGT]B|rad|"
    r"st|nd|rd|th|USD|EUR|GBP|JPY|CHF|INR|CAD|AUD|(?<=\s)[mgshlLWJNVKCF]"  # without a space, 3m is a product
)
_UNIT = rf"(?:{_FUNCTIONS}(?:[A-Za-z]{{4,}}|(?<=\s)[A-Za-z]{{3}}|{_KNOWN})(?![A-Za-z])\.?(?:\s*\^\s*\{{?[23]\}}?)?)"
_UNITS = rf"(?:\s*{_UNIT}(?:\s*/\s*{_UNIT}|\s+(?:of|a|an|per)\s+{_UNIT}|\s+{_UNIT})*)"
_TIME = (
    r"(?<![\d:.])(?P<hour>[01]?\d|2[0-4])(?:(?P<colon>[:.])(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?)?"
    r"(?![\d:]|\.\d)(?:\s*(?P<half>[aApP])\.?\s?[mM]\b\.?)?"
)
_ONE_NUMBER = re.compile(rf"\s*{_NUMBER}(?:{_UNITS})?\s*\.?\s*")
_ANY_NUMBER = re.compile(
    rf"(?<![\w.,]){_NUMBER}(?:\s*{_UNIT}(?:\s*/\s*{_UNIT})?(?<=[23}}]))?"
)  # the 2 of m^2 is no number
_ONE_TIME = re.compile(rf"\s*(?:at\s+)?{_TIME}\s*\.?\s*")
_ANY_TIME = re.compile(_TIME)
_ONE_CHOICE = re.compile(r"\s*(?:[Oo]ption|[Cc]hoice)?\s*(?:\(\s*([A-Za-z])\s*\)|([A-Z]))\s*\.?\s*")
_ONE_WORD = re.compile(r"\s*((?:no\b|[A-Za-z]{3,})(?:(?: +|-)[A-Za-z]+)*)\s*\.?\s*", re.IGNORECASE)


def value_of(text: str) -> Value | None:
    """The plain answer that the whole text is, a unit or currency left out; None if it is none."""
    text = _plain(text).strip()
    text = re.sub(r"^\$+(.*?)\$+$", r"\1", text)  # a formula
    if (found := _ONE_TIME.fullmatch(text)) and (time := _time(found)):
        return time
    found = _ONE_NUMBER.fullmatch(text)
    if found and not (found["comma"] and "." not in found["decimal"]):  # 1,5 may be two numbers
        return _number(found)
    if found := _ONE_CHOICE.fullmatch(text):
        return Value("choice", word=(found[1] or found[2]).upper())
    return None


def word_of(text: str) -> Value | None:
    r"""The word, or in `\text{}` the words, that the whole text is; None if it is none."""
    found = _ONE_WORD.fullmatch(_plain(text).strip(" $"))
    spelt_out = _TEXT.fullmatch(text.strip().strip("$").strip())
    if found is None or (" " in found[1] and not spelt_out):
        return None
    return Value("word", word=" ".join(found[1].lower().split()))


def _time(found: re.Match[str]) -> Value | None:
    half = f"{found['half']}m".lower() if found["half"] else ""
    if not half and found["colon"] != ":":
        return None
    hour = int(found["hour"])
    if half and 1 <= hour <= 12:
        hour = hour % 12 + 12 * (half == "pm")
    seconds = hour * 3600 + int(found["minute"] or 0) * 60 + int(found["second"] or 0)
    return Value("time", Fraction(seconds), half=half)


def _number(found: re.Match[str]) -> Value | None:
    try:
        number, decimals = _fraction(found)
    except (ValueError, ZeroDivisionError):  # too many digits for Python, or a fraction of 0
        return None
    negative = any(found[name] and not found[name].startswith("+") for name in ("sign", "inner"))
    number *= (-1 if negative else 1) * _SCALES.get(found["scale"] or "", 1)
    return Value("number", number, bool(found["percent"]), decimals)


def _fraction(found: re.Match[str]) -> tuple[Fraction, int]:
    """The number without its sign, and the number of its decimals."""
    if found["over"]:
        part = Fraction(int(found["over"]), int(found["under"]))
        if found["units"] is None:
            return part, 0
        if not 0 < part < 1:
            raise ValueError("no mixed number")
        return int(re.sub(r"\D", "", found["units"])) + part, 0
    places, repeats = found["places"] or found["comma"] or found["bare"] or "", found["repeats"] or ""
    digits = re.sub(r"\D", "", found["decimal"].split("\\")[0])
    number = Fraction(int(digits), 10 ** len(places))
    if repeats:
        number += Fraction(int(repeats), (10 ** len(repeats) - 1) * 10 ** len(places))
    number *= Fraction(10) ** int(found["exponent"] or found["power"] or 0)
    return number, 0 if repeats else len(places)


# --- what a message states -------------------------------------------------------------------------------------------

_NAMED = re.compile(r"(?<!\bto )\banswer\b", re.IGNORECASE)  # not "to answer your question"
_NOT = re.compile(r"\bnot\s+\Z", re.IGNORECASE)
_NEAR = 60  # characters from the word "answer" to the answer
_CHOSEN = (
    re.compile(
        r"\b(?:answer|solution|option|choice)\b(?:\s+(?:is|to\b[^.]{0,40}?\bis))?\s*[:=]?\s*(?:the\s+)?"
        r"(?:(?:option|choice|letter)\b\s*:?)?[\s\"'“‘\[$]*(?:\(\s*([A-Za-z])\s*\)|(?!I [a-z])([A-Z])(?![A-Za-z'’]))",
        re.IGNORECASE,
    ),
    re.compile(r"(?:\(\s*([A-Z])\s*\)|\b([A-Z]))\s+(?:is|would be)\s+(?:the\s+)?(?:right|correct|best|answer)\b"),
    re.compile(r"\A\W*(?:\(\s*([A-Z])\s*\)|([A-Z])\b)(?:\s*[).:]\s.*)?\W*\Z", re.DOTALL),
    re.compile(r"(?:\bis|'s|\bwith|\bchoose|\bpick|\bselect)\s+(?:\(\s*([A-Z])\s*\)|([A-Z])(?=\s*(?:[.,;!]|\Z)))"),
    re.compile(r"(?<!\w)\(\s*([A-Z])\s*\)()"),
)
_STATED_WORD = re.compile(
    r"\banswer\b(?:\s+is)?\s*[:=]?[\s\"'“‘$]*((?:no\b|[A-Za-z]{3,})(?:(?: +|-)[A-Za-z]+)*)", re.IGNORECASE
)
_OPERATOR_BEFORE = re.compile(r"(?:[*+/^\\_{<>|×÷!]|[\w)\]}]\s*-|[\d]\s*:)\s*\(?\s*\Z")
_OPERATOR_AFTER = re.compile(
    r"\s*\)?\s*(?:[*^+={<>|\\]|\((?!\s*[A-Za-z]{2})|/(?!\s*(?:[a-z]{3}|[hs]\b))|-\s*[\d(\\]|:\d|\.\d|-\d)"
)


def stated_value(text: str, kind: str) -> Value | None:
    """The answer of one kind that a message states; None if there is none, or if it may be part of a formula.

    It is in the last box; without a box it is the first one behind the word "answer"; without that, the last one.
    """
    box = boxed_content(text)
    if box is not None:
        if kind == "word":
            return word_of(box)
        value = value_of(box)
        return value if value is not None and value.kind == kind else None
    text = _plain(text)
    if kind == "choice":
        return _chosen(text)
    if kind == "word":
        found = list(_STATED_WORD.finditer(text))
        return Value("word", word=" ".join(found[-1][1].lower().split())) if found else None
    values = list(_values(text, kind))
    chosen = values[-1] if values else None
    for named in reversed(list(_NAMED.finditer(text))):
        if behind := [entry for entry in values if named.end() <= entry[0] <= named.end() + _NEAR]:
            chosen = behind[0]
            break
    return chosen[2] if chosen and not _in_formula(text, chosen[0], chosen[1]) else None


def boxed_content(text: str) -> str | None:
    r"""What the last `\boxed{}` of a text holds; None without one, "" if it does not end."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not rest.startswith("{"):
        return rest[:1]  # `\boxed 5`
    depth = 0
    for index, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:index].strip()
    return ""


def _values(text: str, kind: str) -> Iterator[tuple[int, int, Value | None]]:
    """Begin, end and value of all numbers or times in a text."""
    for found in (_ANY_TIME if kind == "time" else _ANY_NUMBER).finditer(text):
        negated = _NOT.search(text[max(0, found.start() - 8) : found.start()])
        value = _time(found) if kind == "time" else _number(found)
        if not negated and (kind == "number" or value is not None):
            yield found.start(), found.end(), value


def _in_formula(text: str, begin: int, end: int) -> bool:
    """Whether a number may be a part of something larger, such as 3x or 2 + 3."""
    before = re.sub(r"[\s$\"'“‘]+\Z", " ", text[max(0, begin - 40) : begin])
    after = re.sub(r"^[$\"'”’]+", "", text[end : end + 80])
    if _OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(after):
        return True
    return bool(re.match(r"[A-Za-z]", after)) and not re.match(_UNIT, after)


def _chosen(text: str) -> Value | None:
    text = text.replace("$", " ")
    for pattern in _CHOSEN:
        letters = [(one or other).upper() for one, other in pattern.findall(text) if one or other.isupper()]
        if letters:
            return Value("choice", word=letters[-1])
    return None
