"""A simulated user that needs no language model: an agenda of things to bring up, and rules for when to do so.

The idea is Schatzmann et al., "Agenda-Based User Simulation for Bootstrapping a POMDP Dialogue System" (NAACL 2007).
The user opens with the topic alone. What it knows and wants is on its agenda:

- the goal's notes, what the user knows in its own words (`metadata.notes`). A goal without notes has the sentences of
  its reference instead: then pasting what the user says is the best text there can be;
- the preferences in the goal's metadata, such as tone and length;
- or, for a problem or a program, the items that the goal spells out (`collab.conversation.Agenda`).

A question earns what it asks for (`collab.parsing.questions`):

- a question about a slot (when, where, who for, what tone, ...) earns the hidden item that has it;
- an open question ("What should it say?") earns the next item, once: the same request in other words earns nothing;
- a question that asks the user for nothing earns nothing: world knowledge, definitions, reversed roles, offers;
- a question whose answer is known, that was asked before, or that comes on top of `items_per_answer` others in one
  message is needless. Interactivity counts it against the policy.

A draft earns no content: at most the *kind* of what it misses is named. A draft that covers enough of the notes ends
the chat. The user of a goal that spells its agenda out cannot judge the result, but knows what has not been told yet.

The user has no memory of its own. Its state is read off the conversation each time, so a history can be forked into
any number of futures, and a finished conversation can be scored by the same reading (`read`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from numpy.random import Generator

from collab.config.schema import AgendaUserConfig
from collab.conversation import Artefact, Conversation, Goal
from collab.parsing.english import (
    content_words,
    names_and_numbers,
    questions,
    sentences,
    stem,
    without_questions,
    words,
)
from collab.parsing.extraction import last_program, outside_code, states_answer
from collab.parsing.questions import Reading, read_question, slots_of
from collab.randomness import RngKey
from collab.simulation.user import UserTurn

CONTENT = "content"
_NOT_PREFERENCES = frozenset({"title", "form", "notes", "cues"})  # metadata that is told at once, or is no preference
_NEARLY_SAME = 0.7  # Jaccard index of content words from which on a question counts as asked before
_COVERED = 0.5  # share of a note's content words that a text must hold to cover it, beside all names and numbers
_RESTATED = 0.6  # share of the content words that a question has in common with the goal's own
_TOLD = 0.75  # share of a question's content words that a statement with a number has: it asks for what was told
_LONGEST = 30  # words of a sentence
_DRAFT_WORDS = 8  # shorter leftovers beside a question are small talk, not a draft
_PREFERENCE_CUES = {  # preference -> words by which a question asks for it; slots are named as in questions.SLOTS
    "tone": "tone style mood voice formal informal casual friendly humorous sound feel",
    "audience": "audience reader readers recipient read aimed target addressed",
    "length": "length long short brief detailed words sentences",
    "purpose": "purpose aim reason goal why",
    "format": "format layout structure",
    "avoid": "avoid leave",
    "style": "style tone",
    "call_to_action": "action",
}


@dataclass(frozen=True)
class Item:
    """One thing on the agenda.

    Attributes:
        kind: "content" for a note or a sentence, the metadata's key for a preference, else what the agenda says.
        text: What the user says, or the value of the preference.
        cues: Words by which it can be asked for; None where there are none but those of kind and text.
        spelt_out: Whether the goal's agenda spells it out.
    """

    kind: str
    text: str
    cues: str | None = None
    spelt_out: bool = False

    @property
    def hints(self) -> frozenset[str]:
        """Stems by which a question can ask for this item."""
        return _hints(self)

    @property
    def slots(self) -> frozenset[str]:
        """Slots that it fills: those that its cues name, else those that can be read off its text."""
        return _item_slots(self)

    @property
    def preference(self) -> bool:
        return self.kind != CONTENT and not self.spelt_out


@lru_cache(maxsize=4096)  # items are read again at every turn of every conversation
def _hints(item: Item) -> frozenset[str]:
    kind = item.kind.replace("_", " ")
    if item.kind == CONTENT:
        named = item.cues or ""
    elif item.spelt_out:
        named = f"{kind} {_PARTS.get(item.kind, '')} {item.cues or ''}"
    else:
        named = f"{kind} {_PREFERENCE_CUES.get(item.kind, '')}"
    return content_words(f"{item.text} {named}")


@lru_cache(maxsize=4096)
def _item_slots(item: Item) -> frozenset[str]:
    if item.kind == CONTENT:
        return (slots_of(item.cues) if item.cues is not None else _slots_in(item.text)) - {"tone", "length"}
    return frozenset() if item.spelt_out else slots_of(f"{item.kind} {_PREFERENCE_CUES.get(item.kind, '')}")


@dataclass(frozen=True)
class Manner:
    """How the user talks about what is to be made.

    Attributes:
        form: What it is called where the goal does not say.
        names: Stems of what else a question may call it.
        openings: What comes around the opening of an agenda.
        leads: What comes before an answer.
        unhappy: Answers to a result that comes too early; at most the kind of what is missing is named.
        finals: What the user asks for at the last turn.
    """

    form: str
    names: frozenset[str]
    openings: tuple[str, ...]
    leads: tuple[str, ...]
    unhappy: tuple[str, ...]
    finals: tuple[str, ...]


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


def notes_of(goal: Goal) -> list[str]:
    """What the user knows: the goal's notes, or the sentences of its reference where it has none."""
    return list(goal.notes) or sentences(goal.reference)


def agenda_of(goal: Goal) -> list[Item]:
    """The agenda that the goal spells out, or else the notes, then the preferences, as filed."""
    if goal.agenda is not None:
        return [Item(item.kind, item.text, item.cues, spelt_out=True) for item in goal.agenda.items]
    notes, cues = notes_of(goal), goal.metadata.get("cues") or ()
    content = [Item(CONTENT, note, cues[i] if i < len(cues) else None) for i, note in enumerate(notes)]
    preferences = [
        Item(key, str(value)) for key, value in goal.metadata.items() if key not in _NOT_PREFERENCES and value
    ]
    return content + preferences


def topic_of(goal: Goal) -> str:
    """What the opening calls the subject: the title; "" without one, since the prompt would give content away."""
    return str(goal.metadata.get("title") or "").strip()


def form_of(goal: Goal) -> str:
    return str(goal.metadata.get("form") or _manner(goal).form)


def makes(goal: Goal) -> Artefact:
    """What the user wants to have in the end."""
    return goal.agenda.makes if goal.agenda is not None else "text"


def _manner(goal: Goal) -> Manner:
    return _MANNERS[makes(goal)]


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
    return _stems(f"{topic_of(goal)} {form_of(goal)}") | _manner(goal).names


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


_WHEN = re.compile(
    r"\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|january|february|march|april|june|july|august|september|"
    r"october|"
    r"november|december|noon|midnight|morning|afternoon|evening|tonight|tomorrow|o'clock|a\.?m|p\.?m|weeks?|weekend|"
    r"month|daily|weekly|every|until|till|since|deadline|\d{1,2}[:.]\d{2})\b",
    re.IGNORECASE,
)
_WHERE = re.compile(
    r"\b(?:in|at|behind|near|under|beside|opposite|outside|inside|next to|on) (?:the |our |my |her |his )?[A-Za-z]+|"
    r"\b(?:street|road|hall|room|floor|square|corner)\b",
    re.IGNORECASE,
)
_IN_TEXT = (  # of a note without cues: the slots that it seems to fill
    ("when", _WHEN),
    ("where", _WHERE),
    ("how much", re.compile(r"\b(?:euros?|dollars?|pounds?|cents?|free|costs?|price|fee)\b|[€$£]", re.IGNORECASE)),
    ("how many", re.compile(r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|dozen|hundred|thousand)\b")),
    ("contact", re.compile(r"\b(?:call|phone|ring|e?mail|register|sign up|rsvp|ask)\b|@", re.IGNORECASE)),
    ("reason", re.compile(r"\b(?:because|since|so that|in order to|as)\b", re.IGNORECASE)),
    ("who", re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")),
)


def _slots_in(text: str) -> frozenset[str]:
    return frozenset(slot for slot, pattern in _IN_TEXT if pattern.search(text))


class AgendaUser:
    """The agenda-based `UserSimulator`.

    Args:
        config: Patience, generosity and what counts as satisfied.
        max_turns: At this turn the user asks for the final text (`task.max_turns`).
    """

    def __init__(self, config: AgendaUserConfig, max_turns: int) -> None:
        self.config, self.max_turns = config, max_turns

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        goal, draws = conversation.goal, key.stream()
        if not conversation.turns:
            text = _pick(draws, _openings(goal))
        else:
            state = read(goal, conversation.assistant_texts, self.config.items_per_answer)
            if state.drafted and state.covered >= self.config.satisfied_at:
                return UserTurn("", "satisfied")
            if state.idle >= self.config.patience:
                return UserTurn("", "patience")
            text = self._answer(goal, state, draws)
        if conversation.turn == self.max_turns:
            finals = _manner(goal).finals
            text += " " + _pick(draws, finals).format(form=form_of(goal)) if finals else ""
        return UserTurn(text)

    def _answer(self, goal: Goal, state: State, draws: Generator) -> str:
        items, manner = agenda_of(goal), _manner(goal)
        if state.answered:
            told = [
                _pick(draws, _PREFERENCES).format(kind=_name(item), value=item.text)
                if item.preference
                else _as_sentence(item.text)
                for item in (items[i] for i in state.answered)
            ]
            return _pick(draws, manner.leads) + " " + " ".join(told)
        if state.drafted:
            missing = sorted({_name(items[i]) for i in range(len(items)) if i not in state.given})
            return _pick(draws, manner.unhappy).format(kind=_pick(draws, missing) if missing else "wording")
        return _pick(draws, _REACTIONS.get(state.refused, _LOST)).format(form=form_of(goal))


def _openings(goal: Goal) -> list[str]:
    if goal.agenda is not None:
        return [template.format(opening=goal.agenda.opening) for template in _manner(goal).openings]
    topic = topic_of(goal)
    templates = _OPENINGS if topic else _OPENINGS_WITHOUT_TOPIC
    return [template.format(form=_with_article(form_of(goal)), topic=topic) for template in templates]


def _own_questions(goal: Goal) -> set[str]:
    """Those that the user's openings hold, as lower-case words."""
    return {" ".join(words(question)) for opening in _openings(goal) for question in questions(opening)}


def _name(item: Item) -> str:
    """How the user names a kind of item without giving it away."""
    return "content" if item.kind == CONTENT else item.kind.replace("_", " ")


def _as_sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _pick(draws: Generator, options: Sequence[str]) -> str:
    return options[int(draws.integers(len(options)))]


_OPENINGS = (
    "Hi, can you help me write {form} about {topic}?",
    "I need {form} about {topic}. Can you help?",
    "Hello! I want to write {form} about {topic}.",
    "Could you help me with {form}? It is about {topic}.",
)
_OPENINGS_WITHOUT_TOPIC = (
    "Hi, can you help me write {form}?",
    "I need {form}. Can you help?",
    "Hello! I want to write {form}.",
)
_LEADS = ("Sure.", "Good question.", "Let me see.", "Here is what I have in mind:", "Right.", "It should say this:")
_PREFERENCES = ("For the {kind}: {value}.", "The {kind} should be {value}.", "As for {kind}, {value}.")
_UNHAPPY = (
    "That is not what I had in mind. The {kind} is not right yet.",
    "Hmm, no. You are missing things, the {kind} for one.",
    "This does not fit. I had another {kind} in mind.",
)
_LOST = (
    "I am not sure what you mean.",
    "That does not help me much.",
    "Hmm, that is not really the point.",
)
_NO_IDEA = (
    "I don't know, I just need the {form}.",
    "No idea. How would that help with the {form}?",
    "That is not what the {form} is for.",
)
_REACTIONS: dict[str, tuple[str, ...]] = {  # to a message that earned nothing: why -> answers
    "too many": ("One thing at a time, please.", "That is a lot at once. What do you need to know first?"),
    "known": (
        "You have that already.",
        "I told you what I can about that.",
        "We have been there. Ask me something new.",
    ),
    "no wish": ("I have no wish there.", "That is up to you.", "I don't mind, you choose."),
    "reversed": ("You tell me.", "I was hoping that you would ask me something.", "You are the one to ask."),
    "world": _NO_IDEA,
    "definition": _NO_IDEA,
    "finished": ("I have none, that is why I am asking you.", "No, you are to write it."),
}
_FINALS = (
    "Please write the final {form} now.",
    "That is all, please give me the finished {form}.",
    "Now write the final {form}, please.",
)

_STATED = ("{opening}", "Hello! {opening}", "Hi, I could use your help. {opening}")
_PROBLEM = (
    "Can you help me with this? {opening}",
    "Hi! {opening} Can you work it out for me?",
    "I am stuck here. {opening}",
    "Hello, I need some help. {opening}",
)
_FUNCTION = (
    "Can you help me with some Python code? {opening}",
    "Hi! {opening}",
    "Hello, I need some Python code. {opening}",
    "Please help me with a bit of Python. {opening}",
)
_FACTS = ("Sure.", "Good question.", "Let me see.", "Right.", "Oh, I see.")
_INCOMPLETE = (
    "That cannot be right. You are missing a {kind}.",
    "Hmm, no. There is a {kind} that I have not told you yet.",
    "I do not think so. You do not know every {kind} yet.",
)
_UNLIKE = (
    "That is not what I need. I have not told you the {kind} yet.",
    "Hmm, no. You do not know everything yet, the {kind} for one.",
    "This does not fit. I had another {kind} in mind.",
)
_PARTS = {  # of agendas that are spelt out: kind -> words by which a question names it
    "quantity": "quantity number amount value many figure",
    "condition": "condition given known restriction constraint assume",
    "signature": "signature name named called argument arguments parameter parameters input inputs take accept header",
    "edge case": "edge case cases empty invalid error errors exception exceptions raise corner special negative",
    "library": "library libraries package packages module modules import imports dependency dependencies",
    "output": "output outputs return returns result results type format",
    "example": "example examples sample expected",
    "behaviour": "behaviour behavior requirement requirements rule rules exactly detail details",
}


def _names(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in text.split())


_MANNERS: dict[Artefact, Manner] = {
    "text": Manner(
        form="text",
        names=_names(
            "document text email letter post article note notice draft message piece introduction invitation review "
            "announcement flyer sign label"
        ),
        openings=_STATED,
        leads=_LEADS,
        unhappy=_UNHAPPY,
        finals=_FINALS,
    ),
    "answer": Manner(
        form="answer",
        names=_names("problem question exercise task answer solution calculation"),
        openings=_PROBLEM,
        leads=_FACTS,
        unhappy=_INCOMPLETE,
        finals=("What is the final answer?", "Please give me the final answer now.", "So what is the answer?"),
    ),
    "program": Manner(
        form="function",
        names=_names("function code program script method implementation solution task"),
        openings=_FUNCTION,
        leads=_FACTS,
        unhappy=_UNLIKE,
        finals=_FINALS,
    ),
    "reply": Manner("reply", frozenset(), ("{opening}",), _FACTS, _UNHAPPY, ()),
}
