"""Metrics of a finished conversation. Each gives a number in 0..1 and does not know its weight.

A metric is a class. Its instances are awaited with a conversation and return a number, or None for a missing value. A
metric that asks a model returns the model's replies as well (`Judged`). Two members are optional:

- `applies(goal) -> bool`: whether the metric is one of this goal's; without it, it applies to all goals.
- `needs`: metadata that a goal must have. A run with other goals is refused before it starts.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Protocol

from sacrebleu.metrics.bleu import BLEU

from collab.chat.structured import Answer
from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import agenda_of
from collab.parsing.agenda_state import asks_back, coverage, delivers, read
from collab.parsing.answers import CHECKER
from collab.parsing.english import without_questions
from collab.parsing.extraction import last_answer, last_program
from collab.sandbox.run import run_program
from collab.util.errors import BadInput


@dataclass(frozen=True)
class Judged:
    """The value of a metric that asks a model.

    Attributes:
        value: In 0..1; None if it is missing.
        replies: All raw replies of the model, in order.
    """

    value: float | None
    replies: tuple[str, ...]


class Metric(Protocol):
    async def __call__(self, conversation: Conversation) -> float | Judged | None: ...


def applies(metric: Metric, goal: Goal) -> bool:
    """Whether a metric measures conversations about this goal."""
    rule = getattr(metric, "applies", None)
    return rule is None or rule(goal)


def extract(conversation: Conversation) -> str:
    """`Extract(t)` of Eq. 3: the latest assistant message without its questions; "" if nothing is left."""
    texts = conversation.assistant_texts
    return without_questions(texts[-1]) if texts else ""


def assistant_tokens(conversation: Conversation) -> int:
    """Number of tokens of all assistant messages, end-of-turn tokens included."""
    return sum(turn.reply.num_tokens for turn in conversation.turns)


def _checked_number(name: str, value: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise BadInput(f"{name} ({value!r}) must be a finite number of at least 0. Set it to one.")
    return value


def checked_items(value: int) -> int:
    """`items_per_answer`, if it is a whole number of at least 1; raises `BadInput` otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"items_per_answer ({value!r}) must be a whole number of at least 1. Set it to one.")
    return value


class Extractor(Protocol):
    """Copies the final document or program out of a conversation, or puts it together from the `whole` of it."""

    async def extract(self, conversation: Conversation, artefact: str, *, whole: bool = False) -> Answer[str]: ...


class TextMetric:
    """Base of metrics of the final text; a subclass computes its metric in `of`.

    Args:
        finished_only: 0 for a conversation that the window cut off before there was a final text. Otherwise the last
            draft counts, and writing early may pay more than another question.
        with_notes: 0 for a text that holds none of the user's notes.

    Attributes:
        extractor: A model that extracts the text; None uses the rule of `extract`.
        whole_chat: The extractor puts the text together from all replies. A metric for which this is true has to have
            an extractor.

    Raises:
        BadInput: `finished_only` or `with_notes` is not true or false.
    """

    extractor: Extractor | None = None
    whole_chat = False

    def __init__(self, finished_only: bool = False, with_notes: bool = False) -> None:
        for name, value in (("finished_only", finished_only), ("with_notes", with_notes)):
            if not isinstance(value, bool):
                raise BadInput(f"{name} ({value!r}) must be true or false. Set it to one of them.")
        self.finished_only, self.with_notes = finished_only, with_notes

    async def __call__(self, conversation: Conversation) -> float | Judged:
        if self.finished_only and conversation.ended_by == "window":
            return 0.0
        if self.extractor is None:
            return self._measure(extract(conversation), conversation)
        found = await self.extractor.extract(conversation, "document", whole=self.whole_chat)
        value = None if found.value is None else self._measure(found.value, conversation)
        return Judged(value, found.replies)

    def _measure(self, text: str, conversation: Conversation) -> float:
        if not text or (self.with_notes and not coverage(conversation.goal, text)):
            return 0.0
        return self.of(text, conversation)

    def of(self, text: str, conversation: Conversation) -> float:
        """The metric of a text that is not empty, as the end of the conversation."""
        raise NotImplementedError


class Bleu(TextMetric):
    """`S(Extract(t), y_g)` of Eq. 3: sentence BLEU (sacrebleu) against the reference, 0..1.

    `with_notes` is of use here: a text without any note shares only common phrases with the reference.
    """

    _bleu = BLEU(effective_order=True)

    def of(self, text: str, conversation: Conversation) -> float:
        score = self._bleu.sentence_score(text, [conversation.goal.reference]).score
        return min(score / 100, 1.0)  # a perfect match comes out as 100.00000000000004


class CharacterBleu(TextMetric):
    """BLEU over the *characters* of text and reference, n-grams up to 4, not smoothed, 0..1: that of the official code.

    The official code hands strings to nltk's `sentence_bleu`, which wants lists of words, and strings are lists of
    characters. Here each character, a blank too, is a word for sacrebleu, which gives the same figure.
    """

    _bleu = BLEU(tokenize="none", smooth_method="none")

    def of(self, text: str, conversation: Conversation) -> float:
        text, reference = (" ".join(str(ord(each)) for each in one) for one in (text, conversation.goal.reference))
        return min(self._bleu.corpus_score([text], [[reference]]).score / 100, 1.0)


class Accuracy:
    """`S(Extract(t), y_g)` for problems with an answer: 1 if the last answer equals the reference, else 0.

    The answer is the content of `\\boxed{}`, the text after the word "answer", or the last number of the message.
    """

    async def __call__(self, conversation: Conversation) -> float | None:
        answer = last_answer(conversation.assistant_texts, conversation.goal.reference)
        if not answer:
            return 0.0
        return float(await asyncio.to_thread(CHECKER.same, conversation.goal.reference, answer))


class PassRate:
    """`S(Extract(t), y_g)` for programs: 1 if the last program passes the goal's tests in the sandbox, else 0.

    The goal's metadata hold the tests, and as `entry_point` the function that they call.

    Args:
        sandbox: "strict" runs no program unless the whole sandbox is available; "auto" uses the parts of it that this
            machine supports.

    Attributes:
        extractor: A model that extracts the program; None uses the rules of `collab.parsing.extraction.last_program`.
        whole_chat: As in `TextMetric`.

    Raises:
        BadInput: `sandbox` is neither.
    """

    needs = ("entry_point", "tests")
    extractor: Extractor | None = None
    whole_chat = False

    def __init__(self, sandbox: str = "auto") -> None:
        if sandbox not in ("auto", "strict"):
            raise BadInput(f"sandbox ({sandbox!r}) must be auto or strict. Set it to one of them.")
        self.strict = sandbox == "strict"

    async def __call__(self, conversation: Conversation) -> float | Judged:
        if self.extractor is None:
            return await self._passes(conversation.assistant_texts, conversation.goal)
        found = await self.extractor.extract(conversation, "program", whole=self.whole_chat)
        value = None if found.value is None else await self._passes([found.value], conversation.goal)
        return Judged(value, found.replies)

    def program(self, texts: list[str], entry_point: str) -> str:
        """What is run: the last program in the assistant's messages, or in what the extractor copied."""
        return last_program(texts, entry_point)  # a model may have copied a fence, too

    async def _passes(self, texts: list[str], goal: Goal) -> float:
        entry_point = goal.metadata["entry_point"]
        program = self.program(texts, entry_point)
        if not program:
            return 0.0
        verdict = await run_program(program, goal.metadata["tests"], entry_point=entry_point, strict=self.strict)
        return float(verdict.passed)


class _AsksBack:
    """1 if the last message rightly asks the user back, or rightly does not; else 0.

    Applies to goals whose metadata have `ambiguous` with the value of the class.
    """

    ambiguous: bool

    def applies(self, goal: Goal) -> bool:
        return goal.metadata.get("ambiguous") is self.ambiguous

    async def __call__(self, conversation: Conversation) -> float | None:
        if not conversation.turns:
            return None
        return float(asks_back(conversation.goal, conversation.assistant_texts[-1]) is self.ambiguous)


class AsksOnAmbiguous(_AsksBack):
    """1 if the last message asks the user back, else 0; for goals with `ambiguous: true`."""

    ambiguous = True


class AnswersOnUnambiguous(_AsksBack):
    """1 if the last message does not ask the user back, else 0 (over-asking); for goals with `ambiguous: false`."""

    ambiguous = False


class TokenPenalty:
    """`min(lambda * TokenCount(t), 1)` of Eq. 4. At 1 it is saturated: longer conversations cost no more.

    Args:
        coefficient: lambda, per token of the assistant.

    Raises:
        BadInput: `coefficient` is not a finite number of at least 0.
    """

    def __init__(self, coefficient: float) -> None:
        self.coefficient = _checked_number("coefficient", coefficient)

    async def __call__(self, conversation: Conversation) -> float | None:
        return min(self.coefficient * assistant_tokens(conversation), 1.0)


WISH = 0.5  # what a preference of the user counts beside a note


class AgendaInteractivity:
    """Share of the user's agenda that pertinent questions brought to light, 0..1; stands in for `R_LLM`.

    `(earned - cost * needless) / all`, at least 0. A preference, such as the tone, counts `WISH` of what a note counts:
    it can be asked about any text, and a text can be written without it. A question is needless if it asks the user for
    nothing (`questions.py`), asks for something that is known or was asked before, or comes after `items_per_answer`
    others in one message. A question counts once the user has answered it, so the last message of a finished
    conversation earns nothing. A conversation that ends without a result scores 0.

    Args:
        items_per_answer: That of the simulated user (`user.items_per_answer`).
        needless_cost: Cost of a needless question, in notes.

    Raises:
        BadInput: `items_per_answer` is not a whole number of at least 1, or `needless_cost` not a number of at least 0.
    """

    def __init__(self, items_per_answer: int = 2, needless_cost: float = 0.5) -> None:
        self.items_per_answer = checked_items(items_per_answer)
        self.needless_cost = _checked_number("needless_cost", needless_cost)

    async def __call__(self, conversation: Conversation) -> float | None:
        items = agenda_of(conversation.goal)
        if not items:
            return None
        if conversation.ended_by not in ("", "window") and not delivers(conversation):
            return 0.0
        answered = conversation.assistant_texts
        if conversation.pending is None:
            answered = answered[:-1]
        state = read(conversation.goal, answered, self.items_per_answer)
        needless = state.num_questions - state.pertinent
        worth = [WISH if item.preference else 1.0 for item in items]
        earned = sum(worth[i] for i in state.given)
        return max(0.0, earned - self.needless_cost * needless) / sum(worth)


class QuestionMetric:
    """A metric that reads which questions the simulated user answers, and by what.

    Args:
        items_per_answer: That of the simulated user (`user.items_per_answer`).

    Raises:
        BadInput: It is not a whole number of at least 1.
    """

    def __init__(self, items_per_answer: int = 2) -> None:
        self.items_per_answer = checked_items(items_per_answer)


class PertinentQuestions(QuestionMetric):
    """Share of the assistant's questions that ask the user for something new, 0..1; None if it asks nothing.

    It is meant to be watched: give it weight 0.
    """

    async def __call__(self, conversation: Conversation) -> float | None:
        state = read(conversation.goal, conversation.assistant_texts, self.items_per_answer)
        return state.pertinent / state.num_questions if state.num_questions else None
