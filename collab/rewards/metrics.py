"""What a finished conversation is measured by. Each metric is in 0..1 and knows nothing of its weight.

A metric is a class whose instances are awaited with a conversation and return a number, or None when the value could
not be had; one that asks a model returns what it said as well (`Judged`). It may have a method
`applies(goal) -> bool` besides; without it, it applies to all goals. `needs` may name the metadata that a goal must
have for it; a run with other goals is refused before it starts.
`assistant_tokens` is counted on sampled ids.
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
    """A value that a model gave, and what it said.

    Attributes:
        value: In 0..1; None where none could be had.
        replies: All of its raw replies, in order.
    """

    value: float | None
    replies: tuple[str, ...]


class Metric(Protocol):
    async def __call__(self, conversation: Conversation) -> float | Judged | None: ...


def applies(metric: Metric, goal: Goal) -> bool:
    """Whether a metric is one of conversations on this goal."""
    rule = getattr(metric, "applies", None)
    return rule is None or rule(goal)


def extract(conversation: Conversation) -> str:
    """`Extract(t)` of Eq. 3: the latest assistant message with its questions removed; "" if nothing is left."""
    texts = conversation.assistant_texts
    return without_questions(texts[-1]) if texts else ""


def assistant_tokens(conversation: Conversation) -> int:
    """Tokens that the assistant spent in the whole conversation, end-of-turn tokens included."""
    return sum(turn.reply.num_tokens for turn in conversation.turns)


def checked_flag(name: str, value: bool) -> bool:
    """An option that is true or false; raises `BadInput` for anything else."""
    if not isinstance(value, bool):
        raise BadInput(f"{name} ({value!r}) must be true or false. Set it to one of them.")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Extractor(Protocol):
    """Copies the final document or program out of a conversation."""

    async def extract(self, conversation: Conversation, artefact: str) -> Answer[str]: ...


class Bleu:
    """`S(Extract(t), y_g)` of Eq. 3: sentence BLEU (sacrebleu) against the reference, 0..1.

    Args:
        with_notes: Score 0 for a text that holds none of the user's notes: what it shares with the reference are the
            phrases of any such text.
        finished_only: Score 0 for what a window cut off before there was a final text. Else its last draft counts, and
            whoever writes early may gain more than whoever asks once more.

    Attributes:
        extractor: A model that extracts the document; None takes the rule of `extract`.

    Raises:
        BadInput: `finished_only` or `with_notes` is not true or false.
    """

    extractor: Extractor | None = None

    def __init__(self, finished_only: bool = False, with_notes: bool = False) -> None:
        self.finished_only = checked_flag("finished_only", finished_only)
        self.with_notes = checked_flag("with_notes", with_notes)
        self._bleu = BLEU(effective_order=True)

    async def __call__(self, conversation: Conversation) -> float | Judged:
        if self.finished_only and conversation.ended_by == "window":
            return 0.0
        if self.extractor is None:
            return self.of(extract(conversation), conversation.goal)
        found = await self.extractor.extract(conversation, "document")
        value = None if found.value is None else self.of(found.value, conversation.goal)
        return Judged(value, found.replies)

    def of(self, document: str, goal: Goal) -> float:
        """BLEU of a document against the goal's reference, 0..1."""
        if not document or (self.with_notes and not coverage(goal, document)):
            return 0.0
        score = self._bleu.sentence_score(document, [goal.reference]).score
        return min(score / 100, 1.0)  # a perfect match comes out as 100.00000000000004


class Accuracy:
    """`S(Extract(t), y_g)` for problems with an answer: 1 where the last answer equals the reference, else 0.

    The answer is what `\\boxed{}` holds, what follows the word "answer", or the last number of the message.
    """

    async def __call__(self, conversation: Conversation) -> float | None:
        answer = last_answer(conversation.assistant_texts)
        if not answer:
            return 0.0
        return float(await asyncio.to_thread(CHECKER.same, conversation.goal.reference, answer))


class PassRate:
    """`S(Extract(t), y_g)` for programs: 1 where the last program passes the goal's tests in the sandbox, else 0.

    The goal's metadata hold the tests, and as `entry_point` the function that they call.

    Args:
        sandbox: "strict" runs nothing where the sandbox cannot take from a program all that it should; "auto" takes
            what it can.

    Attributes:
        extractor: A model that extracts the program; None takes the rules of `collab.parsing.extraction.last_program`.

    Raises:
        BadInput: `sandbox` is neither.
    """

    needs = ("entry_point", "tests")
    extractor: Extractor | None = None

    def __init__(self, sandbox: str = "auto") -> None:
        if sandbox not in ("auto", "strict"):
            raise BadInput(f"sandbox ({sandbox!r}) must be auto or strict. Set it to one of them.")
        self.strict = sandbox == "strict"

    async def __call__(self, conversation: Conversation) -> float | Judged:
        entry_point = conversation.goal.metadata["entry_point"]
        if self.extractor is None:
            return await self._passes(last_program(conversation.assistant_texts, entry_point), conversation.goal)
        found = await self.extractor.extract(conversation, "program")
        if found.value is None:
            return Judged(None, found.replies)
        program = last_program([found.value], entry_point)  # without a fence, should one have been copied
        return Judged(await self._passes(program, conversation.goal), found.replies)

    async def _passes(self, program: str, goal: Goal) -> float:
        if not program:
            return 0.0
        metadata, entry_point = goal.metadata, goal.metadata["entry_point"]
        verdict = await run_program(program, metadata["tests"], entry_point=entry_point, strict=self.strict)
        return float(verdict.passed)


class AsksOnAmbiguous:
    """1 where the last message asks the user back, else 0; of goals whose metadata say `ambiguous: true`."""

    def applies(self, goal: Goal) -> bool:
        return goal.metadata.get("ambiguous") is True

    async def __call__(self, conversation: Conversation) -> float | None:
        return float(asks_back(conversation.goal, conversation.assistant_texts[-1])) if conversation.turns else None


class AnswersOnUnambiguous:
    """1 where the last message does not ask the user back, else 0 (over-asking); of goals with `ambiguous: false`."""

    def applies(self, goal: Goal) -> bool:
        return goal.metadata.get("ambiguous") is False

    async def __call__(self, conversation: Conversation) -> float | None:
        return float(not asks_back(conversation.goal, conversation.assistant_texts[-1])) if conversation.turns else None


class TokenPenalty:
    """`min(lambda * TokenCount(t), 1)` of Eq. 4. At 1 it is saturated and no longer tells long from longer.

    Args:
        coefficient: lambda, per token of the assistant.

    Raises:
        BadInput: `coefficient` is not a finite number of at least 0.
    """

    def __init__(self, coefficient: float) -> None:
        if not _is_number(coefficient) or coefficient < 0:
            raise BadInput(f"coefficient ({coefficient!r}) must be a finite number of at least 0. Set it to one.")
        self.coefficient = coefficient

    async def __call__(self, conversation: Conversation) -> float | None:
        return min(self.coefficient * assistant_tokens(conversation), 1.0)


class AgendaInteractivity:
    """How much of what the user holds back pertinent questions brought to light, 0..1; stands in for `R_LLM`.

    `(earned - cost * not pertinent) / items`, at least 0. Not pertinent is a question that asks the user for nothing
    (`questions.py`), asks for what is known or was asked before, or comes on top of `items_per_answer` others. A
    question counts once the user has answered it: the last message of a finished conversation earns nothing. A
    conversation that ends without a result scores 0: its questions led nowhere.

    Args:
        items_per_answer: As the simulated user has it (`user.items_per_answer`).
        needless_cost: What a question that is not pertinent costs, in items.

    Raises:
        BadInput: `items_per_answer` is not a whole number of at least 1, or `needless_cost` not a number of at least 0.
    """

    def __init__(self, items_per_answer: int = 2, needless_cost: float = 0.5) -> None:
        if not isinstance(items_per_answer, int) or isinstance(items_per_answer, bool) or items_per_answer < 1:
            raise BadInput(
                f"items_per_answer ({items_per_answer!r}) must be a whole number of at least 1. Set it to one."
            )
        if not _is_number(needless_cost) or needless_cost < 0:
            raise BadInput(f"needless_cost ({needless_cost!r}) must be a finite number of at least 0. Set it to one.")
        self.items_per_answer, self.needless_cost = items_per_answer, needless_cost

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
        wasted = state.num_questions - state.pertinent
        return max(0.0, len(state.given) - self.needless_cost * wasted) / len(items)


class PertinentQuestions:
    """Share of the assistant's questions that ask the user for something new, 0..1; None where it asks nothing.

    To be watched, with weight 0.
    """

    def __init__(self, items_per_answer: int = 2) -> None:
        self.items_per_answer = items_per_answer

    async def __call__(self, conversation: Conversation) -> float | None:
        state = read(conversation.goal, conversation.assistant_texts, self.items_per_answer)
        return state.pertinent / state.num_questions if state.num_questions else None
