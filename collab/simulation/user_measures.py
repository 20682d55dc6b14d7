"""What a conversation says about its user, whoever plays it: a simulated user or a person.

Each measure is a number of one conversation, None where the conversation cannot tell it. u_1 ... u_n are the user's
messages, m_1 ... m_n the assistant's. Rules of language are for English. No model is needed.

- `words`: mean number of words of a message.
- `vocabulary`: HD-D (McCarthy & Jarvis 2010): the expected share of distinct words among `SAMPLE` words that are drawn
  without replacement from all messages, `sum over words w of 1 - C(N - count_w, SAMPLE) / C(N, SAMPLE)`, divided by
  SAMPLE; N is the number of words. It does not depend on the length of the conversation. None below SAMPLE words.
- `stock_phrases`: the share of the conversation's distinct word pairs that another conversation of the same user has,
  averaged over the others; conversations about the same goal are left out. High if the user talks in fixed phrases.
- `questions`: share of the messages with a question.
- `disclosure`: share of the agenda that the messages tell, divided by n: how much one message gives away. The agenda
  is that of the goal (`collab.parsing.agenda_items`); `collab.parsing.agenda_state.discloses` says what counts as told.
- `opening_disclosure`: share of the agenda that u_1 tells.
- `agreement`, `annoyance`: share of u_2 ... u_n that agree, and that complain (`collab.parsing.stance`).
- `repetition`: mean over u_2 ... u_n of the share of a message's word pairs that the user has written before.
- `role_confusion`: share of the messages that an assistant would write (`collab.simulation.guards`).
- `leak`: 1 if u_1 gives the goal away in its own words, or if any message has `LEAKED` words in a row from the
  reference, which a user has not seen; else 0.
- `turns`: n, or the number of m if it is larger.
- `satisfied`, `patience`: whether the user left with what it wanted, and whether it gave up. None if the conversation
  does not say why it ended.
- `invalid`: whether the user failed; such a conversation has no other measure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from math import comb
from statistics import fmean

from collab.conversation import Conversation
from collab.parsing.agenda_state import discloses
from collab.parsing.english import questions, words
from collab.parsing.stance import agrees, complains
from collab.simulation.guards import LEAKED, leaks, longest_run, role_confusion

SAMPLE = 25  # words that `vocabulary` draws
MEASURES = (
    *("words", "vocabulary", "stock_phrases", "questions", "disclosure", "opening_disclosure", "agreement"),
    *("annoyance", "repetition", "role_confusion", "leak", "turns", "satisfied", "patience", "invalid"),
)

Measured = dict[str, float | None]


def measure(conversations: Sequence[Conversation]) -> list[Measured]:
    """The measures of each conversation of one user, in order."""
    found: list[Measured] = []
    phrases = [_pairs(conversation) for conversation in conversations]
    for number, conversation in enumerate(conversations):
        values: Measured = dict.fromkeys(MEASURES)
        values["invalid"] = float(not conversation.valid)
        found.append(values)
        if not conversation.valid or not messages_of(conversation):
            continue
        values |= _of_messages(conversation)
        others = [
            phrases[other]
            for other, talk in enumerate(conversations)
            if other != number and talk.valid and _topic(talk) != _topic(conversation)
        ]
        if others and phrases[number]:
            shared = (len(phrases[number] & other) for other in others)
            values["stock_phrases"] = fmean(shared) / len(phrases[number])
        if conversation.ended_by:
            values["satisfied"] = float(conversation.ended_by == "satisfied")
            values["patience"] = float(conversation.ended_by == "patience")
    return found


def disclosure_by_turn(conversations: Sequence[Conversation], turns: int) -> list[float | None]:
    """For each number of messages up to `turns`: the mean share of the agenda that was told by then.

    A conversation that ended earlier keeps its last share, so that a curve never falls because users left.
    """
    curves = [told for conversation in conversations if conversation.valid and (told := _told(conversation))]
    return [fmean(told[min(turn, len(told) - 1)] for told in curves) if curves else None for turn in range(turns)]


def messages_of(conversation: Conversation) -> list[str]:
    """What the user said, with a last message that nobody answered."""
    pending = [conversation.pending] if conversation.pending is not None else []
    return [turn.user for turn in conversation.turns] + pending


def _topic(conversation: Conversation) -> str:
    return conversation.goal.prompt or conversation.goal.id  # people's goals may have no prompt


def _of_messages(conversation: Conversation) -> Measured:
    said, goal = messages_of(conversation), conversation.goal
    later, told = said[1:], _told(conversation)
    heard = ["", *conversation.assistant_texts]
    leaked = bool(goal.prompt) and (
        leaks(goal, said[0]) or any(longest_run(text, goal.reference) >= LEAKED for text in said)
    )
    return {
        "words": fmean(len(words(text)) for text in said),
        "vocabulary": _vocabulary([word for text in said for word in words(text)]),
        "questions": _share(bool(questions(text)) for text in said),
        "disclosure": told[-1] / len(said) if told else None,
        "opening_disclosure": told[0] if told else None,
        "agreement": _share(map(agrees, later)),
        "annoyance": _share(map(complains, later)),
        "repetition": _repetition(said),
        "role_confusion": _share(role_confusion(goal, *pair) for pair in zip(heard, said, strict=False)),
        "leak": float(leaked) if goal.prompt else None,
        "turns": float(max(len(said), len(conversation.turns))),
    }


def _share(flags: Iterable[bool]) -> float | None:
    values = [float(flag) for flag in flags]
    return fmean(values) if values else None


def _told(conversation: Conversation) -> list[float]:
    """After each message, the share of the agenda that was told; empty without an agenda."""
    goal = conversation.goal
    if not goal.prompt:
        return []
    each = [discloses(goal, text) for text in messages_of(conversation)]
    if not each or not each[0]:
        return []
    sofar = accumulate(each, lambda before, now: [one or other for one, other in zip(before, now, strict=True)])
    return [sum(items) / len(items) for items in sofar]


def _vocabulary(said: Sequence[str]) -> float | None:
    if len(said) < SAMPLE:
        return None
    counts, total = Counter(said), comb(len(said), SAMPLE)
    missed = sum(comb(len(said) - count, SAMPLE) / total for count in counts.values())
    return (len(counts) - missed) / SAMPLE


def _pairs(conversation: Conversation) -> set[tuple[str, str]]:
    return {pair for text in messages_of(conversation) for pair in pairwise(words(text))}


def _repetition(said: Sequence[str]) -> float | None:
    before: set[tuple[str, str]] = set()
    shares = []
    for number, text in enumerate(said):
        pairs = list(pairwise(words(text)))
        if number and pairs:
            shares.append(sum(pair in before for pair in pairs) / len(pairs))
        before.update(pairs)
    return fmean(shares) if shares else None
