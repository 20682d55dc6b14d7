"""What the assistant's messages have learned of an agenda, and which notes a text covers.

The user and the metrics read a conversation by the same rules. All state is in the conversation: `read` goes through
its messages, so a history can be forked into any number of futures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import Item, agenda_of, form_of, makes, manner_of, notes_of, openings, topic_of
from collab.parsing.english import content_words, names_and_numbers, questions, sentences, without_questions, words
from collab.parsing.extraction import last_program, outside_code, states_answer
from collab.parsing.questions import OF_ANY_TEXT, Reading, read_question

_NEARLY_SAME = 0.7  # Jaccard index of content words from which on a question counts as asked before
_COVERED = 0.5  # share of a note's content words that a text needs to cover it, beside all names and numbers
_RESTATED = 0.6  # share of content words that makes a question the goal's own
_STATED = 0.75  # share of a question's content words that makes a sentence with a number its answer
_LONGEST = 30  # words of a sentence
_DRAFT_WORDS = 8  # fewer words beside a question are small talk, not a draft


@dataclass(frozen=True)
class State:
    """The agenda after the assistant's messages so far.

    Attributes:
        given: Indices of the items that the user has given, in order.
        answered: The items that the last message earned.
        asked: Readings of the pertinent questions, those that asked the user for something new.
        num_questions: Number of all questions.
        surplus: Number of questions that asked for something known, were asked before, or were too many in a message.
        open_used: Whether an open question was answered. Only one is.
        refused: Why the last message earned nothing: a rule of `Reading.why`, "known", "again" or "no wish". "" if it
            asked nothing.
        drafted: Whether the last message holds a draft or a result.
        covered: Share of the notes that the best draft so far covers. If the agenda is spelt out: the share of its
            items that was given before a result.
        idle: Number of turns in a row, up to the last, without progress.
    """

    given: tuple[int, ...] = ()
    answered: tuple[int, ...] = ()
    asked: tuple[Reading, ...] = ()
    num_questions: int = 0
    surplus: int = 0
    open_used: bool = False
    refused: str = ""
    drafted: bool = False
    covered: float = 0.0
    idle: int = 0

    @property
    def pertinent(self) -> int:
        return len(self.asked)


def read(goal: Goal, replies: Iterable[str], items_per_answer: int = 2) -> State:
    """Go through the assistant's messages in order and return the agenda's state after them."""
    state = State()
    for reply in replies:
        state = _read_reply(goal, state, reply, items_per_answer)
    return state


def _read_reply(goal: Goal, state: State, reply: str, items_per_answer: int) -> State:
    items = agenda_of(goal)
    answered: list[int] = []
    asked, open_used = list(state.asked), state.open_used
    refused, surplus = "", 0
    readings = read_questions(goal, reply)
    for reading in readings:
        if len(answered) == items_per_answer:
            surplus += 1  # it stays unanswered, so it may be asked again
            continue
        if not reading.asks:
            refused = refused or reading.why
            continue
        hidden, concerns = _concerned(goal, reading, items, {*state.given, *answered}, asked)
        as_open = reading.open and not concerns
        if as_open and not open_used:
            hidden = [i for i in range(len(items)) if i not in {*state.given, *answered}][:1]
        earned = hidden[: items_per_answer - len(answered)]
        before = any(_alike(reading.meaning, earlier.meaning) for earlier in asked)
        if before or (not earned and (concerns or (as_open and open_used))):
            surplus += 1
            refused = refused or ("again" if before else "known")
            continue
        open_used = open_used or as_open
        asked.append(reading)
        answered += earned
        refused = refused or ("" if earned else "no wish")
    drafted, covered = has_result(goal, reply), 0.0
    if drafted:
        covered = _worth(goal, reply, len(state.given) / len(items) if items else 1.0)
    return State(
        given=(*state.given, *answered),
        answered=tuple(answered),
        asked=tuple(asked),
        num_questions=state.num_questions + len(readings),
        surplus=state.surplus + surplus,
        open_used=open_used,
        refused="" if answered else refused,
        drafted=drafted,
        covered=max(covered, state.covered),
        idle=0 if answered or covered > state.covered else state.idle + 1,
    )


def _worth(goal: Goal, reply: str, given: float) -> float:
    """How much of what the user wants is in a result, 0..1, after this share of the agenda was given."""
    artefact = makes(goal)
    if artefact == "text":
        return coverage(goal, without_questions(reply))
    return 1.0 if artefact == "reply" else given


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return one == other or len(one & other) / len(one | other) >= _NEARLY_SAME


def _concerned(
    goal: Goal, reading: Reading, items: Sequence[Item], given: set[int], asked: Sequence[Reading]
) -> tuple[list[int], bool]:
    """The items that a question asks for: one for each slot or, without slots, one for each word that it shares.

    Of several items the preference comes first, then the one that shares most words with the question. A note with cues
    answers a question about its slot only if the question fits: it has no further words ("Where is it?"), or shares one
    with the note. A slot that was asked for before earns another item only by a shared word.

    Returns:
        The hidden items, and whether the question concerns any item at all.
    """
    in_opening = max((len(content_words(said) & reading.meaning) for said in sentences(_opening(goal))), default=0)
    slotted = any(item.slotted and item.slots & reading.slots for item in items)  # "What day do you want to book?"
    if not slotted and in_opening > max((len(item.hints & reading.meaning) for item in items), default=0):
        return [], False  # the opening answers the question better than any item could
    meaning = reading.meaning - _topic_words(goal) - _GENERIC
    further = meaning - OF_ANY_TEXT
    used = {slot for earlier in asked for slot in earlier.slots}

    def shared(i: int) -> int:
        return len(items[i].hints & meaning)

    def fits(i: int) -> bool:
        return items[i].preference or items[i].cues is None or not further or bool(items[i].hints & further)

    chosen: list[int] = []
    concerns = False
    for slot in sorted(reading.slots):
        having = [i for i, item in enumerate(items) if slot in item.slots and fits(i)]
        hidden = [i for i in having if i not in {*given, *chosen} and (slot not in used or shared(i))]
        concerns = concerns or bool(having)
        if hidden:
            chosen.append(max(hidden, key=lambda i: (items[i].preference, shared(i), -i)))
    if concerns:
        return chosen, True
    # "How much does a runner need?" asks for no note that merely says something about runners.
    enough = 2 if reading.slots and not _opening(goal) else 1
    while items and shared(best := max(range(len(items)), key=lambda i: (shared(i), i not in given, -i))) >= enough:
        concerns = True
        if best not in given and best not in chosen:
            chosen.append(best)
        meaning -= items[best].hints
    return chosen, concerns


_GENERIC = content_words(  # words of questions that single out no item
    "detail information context specific particular kind type sort thing point topic idea question create work text "
    "person people like much many long"
)


# --- questions -------------------------------------------------------------------------------------------------------


def read_questions(goal: Goal, reply: str) -> list[Reading]:
    """What each question of a message asks for. The user's own question, given back, asks for nothing."""
    own = {" ".join(words(question)) for opening in openings(goal) for question in questions(opening)}
    about = _topic_words(goal)
    cues = content_words(_opening(goal)).union(*(item.hints for item in agenda_of(goal))) - about
    readings = []
    for question in _asked(goal, reply):
        reading = read_question(question, about, cues)
        said = " ".join(words(question))
        if said in own or any(one in said for one in own if one.count(" ") > 3) or _restates(goal, reading):
            reading = Reading(False, "own", meaning=reading.meaning)
        readings.append(reading)
    return readings


def _asked(goal: Goal, reply: str) -> list[str]:
    """The questions of a message. If the message holds no draft, requests count too ("Please tell me more.")."""
    text = outside_code(reply) if makes(goal) == "program" else reply
    said = sentences(text)
    requests = [sentence for sentence in said if "?" not in sentence and _REQUESTS.match(sentence.lower())]
    if len(words(without_questions(text))) - sum(len(words(request)) for request in requests) >= _DRAFT_WORDS:
        requests = []
    return [sentence for sentence in said if "?" in sentence or sentence in requests]


_REQUESTS = re.compile(
    r"\W*(?:(?:sure|certainly|of course|okay|great|absolutely)\W+)?(?:(?:please|kindly) (?:also )?)?"
    r"(?:provide|give|tell|share|describe|specify|clarify|let me know)\b"
)


def _opening(goal: Goal) -> str:
    """The opening of an agenda that is spelt out."""
    return goal.agenda.opening if goal.agenda is not None else ""


def _topic_words(goal: Goal) -> frozenset[str]:
    """Stems of topic and form, which the user gives at once. They single out no item."""
    return content_words(f"{topic_of(goal)} {form_of(goal)} {manner_of(goal).names}")


def _restates(goal: Goal, reading: Reading) -> bool:
    """Whether a question repeats the question of a problem, or asks for a number that the problem states."""
    if makes(goal) != "answer":
        return False
    for said in sentences(_opening(goal)):
        own = content_words(said)
        shared = len(own & reading.meaning)
        if "?" in said and shared >= max(2, _RESTATED * min(len(own), len(reading.meaning))):
            return True
        if re.search(r"\d", said) and shared >= max(2, _STATED * len(reading.meaning)):
            return True
    return False


def asks_back(goal: Goal, reply: str) -> bool:
    """Whether a message asks the user what its question means.

    It names a choice ("the dog or the cat?"), asks which one, or asks what the user means. Offers and questions of the
    story do not count.
    """
    readings = zip(_asked(goal, reply), read_questions(goal, reply), strict=True)
    return any(
        bool(_ASKS_BACK.search(question.lower()))
        and reading.why not in ("own", "offer", "check")
        and (reading.why != "reversed" or " or " in question.lower())
        for question, reading in readings
    )


_ASKS_BACK = re.compile(
    r"\byou(?:'re|'ve| are| have| want| got| were)? ?(?:\w+ )?"
    r"(?:mean|refer|ask|talk|think|look|interested|to know|in mind)"
    r"|\byour question\b|\b(?:clarify|specify|be more specific|in mind|exactly)\b|\bor\b"
    r"|^\W*(?:\w+ )?(?:which|who|whose|when|where)(?: \w+){0,2}\W*$"
)


def distinct_questions(conversations: Sequence[Conversation]) -> list[float | None]:
    """How much the questions of each conversation differ from those of all conversations, 0..1; None without questions.

    Each question counts with the share of all questions that ask for something else; the result is the mean over the
    conversation's questions. One constant question everywhere gives 0, six slots in turn give 5/6. All open requests
    ask for the same.
    """

    def asked_for(goal: Goal, reading: Reading) -> object:
        return reading.slots or (reading.asks and reading.open) or reading.meaning - _topic_words(goal)

    asked = [
        [asked_for(c.goal, reading) for text in c.assistant_texts for reading in read_questions(c.goal, text)]
        for c in conversations
    ]
    counts = Counter(question for each in asked for question in each)
    return [sum(1 - counts[q] / counts.total() for q in each) / len(each) if each else None for each in asked]


# --- results ---------------------------------------------------------------------------------------------------------


def has_result(goal: Goal, reply: str) -> bool:
    """Whether a message holds something of the kind that the user wants: a text, an answer, a program, a reply."""
    artefact = makes(goal)
    if artefact == "action":
        return False
    if artefact == "text":
        return len(words(without_questions(reply))) >= _DRAFT_WORDS
    if artefact == "answer":
        return states_answer(reply, goal.reference)
    return artefact == "reply" or bool(last_program([reply]))


def delivers(conversation: Conversation) -> bool:
    """Whether the last message holds what the conversation was for."""
    return bool(conversation.turns) and has_result(conversation.goal, conversation.assistant_texts[-1])


def coverage(goal: Goal, text: str) -> float:
    """Share of the notes that a text covers, 0..1."""
    covered = covers(goal, text)
    return sum(covered) / len(covered) if covered else 0.0


def covers(goal: Goal, text: str) -> list[bool]:
    """Which notes a text covers: one or two sentences have all names and numbers and half of the other content words.

    A sentence of more than `_LONGEST` words covers nothing, because it could hold all words of all notes in any order.
    Words of topic and form do not count, unless a note has no others.
    """
    return _covered(goal, notes_of(goal), text)


def discloses(goal: Goal, message: str) -> list[bool]:
    """Which items of the agenda a user's message tells, by the rule of `covers`."""
    return _covered(goal, [item.text for item in agenda_of(goal)], message)


def _covered(goal: Goal, facts: Sequence[str], text: str) -> list[bool]:
    about = _topic_words(goal)
    parts = [sentence if len(words(sentence)) <= _LONGEST else "" for sentence in sentences(text)]
    pairs = [f"{one} {other}" for one, other in pairwise([*parts, ""])]
    spoken = [(content_words(pair), _singular(words(pair))) for pair in pairs]
    opens = any(note[0].islower() for note in goal.notes)  # then a capital at the beginning of a note marks a name

    def covered(fact: str) -> bool:
        wanted = content_words(fact)
        wanted = wanted - about or wanted
        named = _singular(names_and_numbers(fact, opens))
        return bool(wanted) and any(
            named <= exact and len(wanted & have) >= _COVERED * len(wanted) for have, exact in spoken
        )

    return [covered(fact) for fact in facts]


def _singular(spoken: Iterable[str]) -> frozenset[str]:
    """Words without a plural or genitive s: Tuesdays, Greta's."""
    return frozenset(word.split("'")[0].removesuffix("s") for word in spoken)
