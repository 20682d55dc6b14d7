"""What the assistant's messages bring to light of an agenda, and what a text says of the notes.

User and metrics read a conversation by the same rules. There is no state beside the conversation: `read` goes through
its messages, so a history can be forked into any number of futures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import Item, agenda_of, form_of, makes, manner_of, notes_of, openings, topic_of
from collab.parsing.english import content_words, names_and_numbers, questions, sentences, without_questions, words
from collab.parsing.extraction import last_program, outside_code, states_answer
from collab.parsing.questions import Reading, read_question

_NEARLY_SAME = 0.7  # Jaccard index of content words from which on a question counts as asked before
_COVERED = 0.5  # share of a note's content words that a text must hold to cover it, beside all names and numbers
_RESTATED = 0.6  # share of the content words that a question has in common with the goal's own
_TOLD = 0.75  # share of a question's content words that a statement with a number has: it asks for what was told
_LONGEST = 30  # words of a sentence
_DRAFT_WORDS = 8  # shorter leftovers beside a question are small talk, not a draft


@dataclass(frozen=True)
class State:
    """What a reading of the conversation finds.

    Attributes:
        given: Indices of the items that came to light, in order.
        answered: The items that the last assistant message has just earned.
        asked: Readings of every question that the user has considered so far.
        num_questions: Questions so far, whatever they ask for.
        pertinent: Those of them that ask the user for something, and are not needless.
        needless: Those that ask for what is known or was asked before, or are too many for one message.
        open_used: Whether an open question has earned its item.
        refused: Why the last message has earned nothing: a rule of `Reading.why`, "known" or "no wish"; "" if it asks
            nothing.
        drafted: Whether the last assistant message holds a draft, or a result.
        covered: Share of the notes that the best draft so far covers; of an agenda that is spelt out, the share that
            had been told when there was a result.
        idle: Turns in a row, up to the last, that brought nothing.
    """

    given: tuple[int, ...] = ()
    answered: tuple[int, ...] = ()
    asked: tuple[Reading, ...] = ()
    num_questions: int = 0
    pertinent: int = 0
    needless: int = 0
    open_used: bool = False
    refused: str = ""
    drafted: bool = False
    covered: float = 0.0
    idle: int = 0


def read_questions(goal: Goal, reply: str) -> list[Reading]:
    """What each question of an assistant's message asks for; the user's own, given back, asks for nothing."""
    own, about = _own_questions(goal), _given_at_once(goal)
    told = content_words(goal.agenda.opening) if goal.agenda is not None else frozenset()
    cues = told.union(*(item.hints for item in agenda_of(goal))) - about
    text = outside_code(reply) if makes(goal) == "program" else reply
    found = []
    for question in _asked(text):
        reading = read_question(question, about, cues)
        said = " ".join(words(question))
        repeats = said in own or any(one in said for one in own if one.count(" ") > 3) or _restates(goal, reading)
        found.append(Reading(False, "own", meaning=reading.meaning) if repeats else reading)
    return found


def _asked(text: str) -> list[str]:
    """The questions of a message, and its requests ("Please tell me more."), unless it holds a draft, too."""
    said = sentences(text)
    requests = [sentence for sentence in said if "?" not in sentence and _REQUESTS.match(sentence.lower())]
    if len(words(without_questions(text))) - sum(len(words(request)) for request in requests) >= _DRAFT_WORDS:
        requests = []
    return [sentence for sentence in said if "?" in sentence or sentence in requests]


_REQUESTS = re.compile(
    r"\W*(?:(?:sure|certainly|of course|okay|great|absolutely)\W+)?(?:(?:please|kindly) (?:also )?)?"
    r"(?:provide|give|tell|share|describe|specify|clarify|let me know)\b"
)


def read(goal: Goal, replies: Sequence[str], items_per_answer: int = 2) -> State:
    """Go through the assistant's messages in order, as the user did, and return where that leaves the agenda."""
    state = State()
    for reply in replies:
        state = _read_reply(goal, state, reply, items_per_answer)
    return state


def _read_reply(goal: Goal, state: State, reply: str, items_per_answer: int) -> State:
    items, about = agenda_of(goal), _given_at_once(goal)
    answered: list[int] = []
    asked, open_used = list(state.asked), state.open_used
    refused, pertinent, needless = "", 0, 0
    readings = read_questions(goal, reply)
    for reading in readings:
        if len(answered) == items_per_answer:
            needless += 1  # the user has said enough for one message; what was not answered may be asked again
            continue
        if not reading.asks:
            refused = refused or reading.why
            continue
        given = {*state.given, *answered}
        told = _told_at_once(goal, reading, items)
        used = frozenset[str]().union(*(earlier.slots for earlier in asked))
        hidden, concerns = ([], False) if told else _concerned(reading, items, given, about, used)
        as_open = reading.open and not concerns
        if as_open and not open_used:
            hidden = [i for i in range(len(items)) if i not in given][:1]
        earned = hidden[: items_per_answer - len(answered)]
        before = any(_alike(reading.meaning, earlier.meaning) for earlier in asked)
        if before or (not earned and (concerns or (as_open and open_used))):
            needless += 1
            refused = refused or "known"
            continue
        open_used = open_used or as_open
        pertinent += 1
        asked.append(reading)
        answered += earned
        refused = refused or ("" if earned else "no wish")
    drafted, covered = _result(goal, reply, len(state.given) / len(items) if items else 1.0)
    progress = bool(answered) or covered > state.covered
    return State(
        given=(*state.given, *answered),
        answered=tuple(answered),
        asked=tuple(asked),
        num_questions=state.num_questions + len(readings),
        pertinent=state.pertinent + pertinent,
        needless=state.needless + needless,
        open_used=open_used,
        refused="" if answered else refused,
        drafted=drafted,
        covered=max(covered, state.covered),
        idle=0 if progress else state.idle + 1,
    )


def _concerned(
    reading: Reading, items: Sequence[Item], given: set[int], about: frozenset[str], used: frozenset[str]
) -> tuple[list[int], bool]:
    """What a question asks for by name: an item for each slot, or else one for each word that it shares.

    Of several items, the preference, then the one that shares most words with the question. A slot that was asked for
    before (`used`) earns another item only by such a word.

    Returns:
        The hidden items, and whether anything on the agenda is concerned at all.
    """
    meaning = reading.meaning - about - _GENERIC

    def shared(i: int) -> int:
        return len(items[i].hints & meaning)

    found: list[int] = []
    concerns = False
    for slot in sorted(reading.slots):
        having = [i for i, item in enumerate(items) if slot in item.slots]
        hidden = [i for i in having if i not in {*given, *found} and (slot not in used or shared(i))]
        concerns = concerns or bool(having)
        if hidden:
            found.append(max(hidden, key=lambda i: (items[i].preference, shared(i), -i)))
    if concerns:
        return found, True
    while items and shared(best := max(range(len(items)), key=lambda i: (shared(i), i not in given, -i))):
        concerns = True
        if best not in given and best not in found:
            found.append(best)
        meaning -= items[best].hints
    return found, concerns


_GENERIC = content_words(  # words of questions that single nothing out
    "detail information context specific particular kind type sort thing point topic idea question create work text "
    "person people like much many long"
)


def _result(goal: Goal, reply: str, told: float) -> tuple[bool, float]:
    """Whether a message holds a draft or a result, and how much of what is wanted is in it, 0..1."""
    artefact = makes(goal)
    if artefact == "text":
        draft = without_questions(reply)
        drafted = len(words(draft)) >= _DRAFT_WORDS
        return drafted, coverage(goal, draft) if drafted else 0.0
    if artefact == "answer":
        there = states_answer(reply)
    elif artefact == "program":
        there = bool(last_program([reply]))
    else:
        there, told = True, 1.0
    return there, told if there else 0.0


def distinct_questions(conversations: Sequence[Conversation]) -> list[float | None]:
    """How much of what is asked in all conversations differs from what each one asks, 0..1; None where it asks nothing.

    Of each question the share of all questions that ask for something else; the mean over the conversation's questions.
    One constant question everywhere scores 0, six slots in turn 5/6. All open requests ask for the same.
    """

    def asked_for(goal: Goal, reading: Reading) -> object:
        return reading.slots or (reading.asks and reading.open) or reading.meaning - _given_at_once(goal)

    asked = [
        [asked_for(c.goal, reading) for text in c.assistant_texts for reading in read_questions(c.goal, text)]
        for c in conversations
    ]
    counts = Counter(question for each in asked for question in each)
    return [sum(1 - counts[q] / counts.total() for q in each) / len(each) if each else None for each in asked]


def delivers(conversation: Conversation) -> bool:
    """Whether the last message holds what the conversation was for: a text, an answer, a program."""
    return bool(conversation.turns) and _result(conversation.goal, conversation.assistant_texts[-1], 1.0)[0]


def asks_back(goal: Goal, reply: str) -> bool:
    """Whether a message asks the user what its question means: no offer, and not a question of the story's.

    It names a choice ("the dog or the cat?"), asks which one, or asks what the user means.
    """
    readings = zip(_asked(reply), read_questions(goal, reply), strict=True)
    return any(
        bool(_ASKS_BACK.search(question.lower()))
        and reading.why not in ("own", "offer", "check")
        and (reading.why != "reversed" or " or " in question.lower())
        for question, reading in readings
    )


_ASKS_BACK = re.compile(
    r"\byou(?:'re|'ve| are| have| want| got| were)? ?(?:\w+ )?(?:mean|refer|ask|talk|think|look|interested|to know|"
    r"in mind)"
    r"|\byour question\b|\b(?:clarify|specify|be more specific|in mind|exactly)\b|\bor\b|^\W*(?:\w+ )?(?:which|who|"
    r"whose|when|where)(?: \w+){0,2}\W*$"
)


def covers(goal: Goal, text: str) -> list[bool]:
    """Which notes a text says: in one or two sentences, all names and numbers and half of the other content words.

    A sentence of more than `_LONGEST` words says nothing: all words of all notes may stand in it, in any order.
    Words that the user gave away at once (topic and form) do not count, unless a note has no others.
    """
    about = _given_at_once(goal)
    parts = [sentence if len(words(sentence)) <= _LONGEST else "" for sentence in sentences(text)]
    pairs = [
        f"{one} {other}" if one and other else one or other for one, other in zip(parts, [*parts, ""][1:], strict=True)
    ]
    spoken = [(content_words(pair), _singular(words(pair))) for pair in pairs]
    found = []
    opens = any(note[0].islower() for note in goal.notes)
    for note in notes_of(goal):
        wanted = content_words(note)
        wanted = wanted - about or wanted
        named = _singular(names_and_numbers(note, opens))
        found.append(
            bool(wanted)
            and any(named <= exact and len(wanted & have) >= _COVERED * len(wanted) for have, exact in spoken)
        )
    return found


def _singular(spoken: Iterable[str]) -> frozenset[str]:
    """Words without a plural or genitive s: Tuesdays, Greta's."""
    return frozenset(word.split("'")[0].removesuffix("s") for word in spoken)


def coverage(goal: Goal, text: str) -> float:
    """Share of the notes that are in a text, 0..1."""
    found = covers(goal, text)
    return sum(found) / len(found) if found else 0.0


@lru_cache(maxsize=4096)
def _stems(text: str) -> frozenset[str]:
    return content_words(text)


def _given_at_once(goal: Goal) -> frozenset[str]:
    """Stems of topic and form: they single nothing out."""
    return _stems(f"{topic_of(goal)} {form_of(goal)}") | manner_of(goal).names


def _restates(goal: Goal, reading: Reading) -> bool:
    """Whether a question is the goal's own, as of a problem that is posed again, or asks what its opening says."""
    if goal.agenda is None or goal.agenda.makes != "answer":
        return False
    for said in sentences(goal.agenda.opening):
        own = content_words(said)
        shared = len(own & reading.meaning)
        if "?" in said and shared >= max(2, _RESTATED * min(len(own), len(reading.meaning))):
            return True
        if re.search(r"\d", said) and shared >= max(2, _TOLD * len(reading.meaning)):
            return True
    return False


def _told_at_once(goal: Goal, reading: Reading, items: Sequence[Item]) -> bool:
    """Whether a sentence of the opening answers a question better than any item of the agenda could."""
    if goal.agenda is None:
        return False
    told = max((len(content_words(said) & reading.meaning) for said in sentences(goal.agenda.opening)), default=0)
    return told > max((len(item.hints & reading.meaning) for item in items), default=0)


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    if not one or not other:
        return one == other
    return len(one & other) / len(one | other) >= _NEARLY_SAME


def _own_questions(goal: Goal) -> set[str]:
    """Those that the user's openings hold, as lower-case words."""
    return {" ".join(words(question)) for opening in openings(goal) for question in questions(opening)}
