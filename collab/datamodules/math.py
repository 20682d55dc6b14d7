"""Goals of MATH-Chat: the user brings a problem and leaves out something that the answer depends on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

from collab.conversation import Agenda, AgendaItem, Goal
from collab.datamodules.goals import TaskGoals
from collab.datamodules.math_templates import NAMES, TEMPLATES, Template
from collab.datamodules.rows import Layout, Row, derived_id, scattered, text_of
from collab.parsing.answers import CHECKER
from collab.parsing.plain_values import boxed_content
from collab.randomness import RngKey
from collab.util.errors import BadInput

# Drawings, environments and formulas: a full stop or the end of a line in them does not end a sentence.
_WHOLE = re.compile(
    r"\[asy\].*?\[/asy\]|\\begin\{(\w+\*?)\}.*?\\end\{\1\}|\\\[.*?\\\]|\$\$.*?\$\$|(?<!\\)\$(?:\\.|[^$\\])*\$",
    re.DOTALL,
)
# A formula with the full stop of its sentence in it.
_ENDS_INSIDE = re.compile(r"[.?!]\s*(?:\$+|\\\]|\\end\{\w+\*?\})\Z")
_SENTENCE_END = re.compile(r"(?<=[.!?\x01])\s+(?=[A-Z\\$\x00])|\n\s*\n")
_TASK = re.compile(
    r"\?\s*$|^(?:Find|Compute|Determine|Evaluate|Calculate|Simplify|Solve|Prove|Express|What|How|Which|In how)\b"
)


class MathGoals(TaskGoals):
    """Goals of `task=math`. The reference is the final answer; the user never says it.

    The goals that ship are made from templates (`math_templates`) with exact answers: the user opens with the story
    and the question, and the agenda has the quantity that was left out.

    `lighteval/MATH-Hard` is read too, and other data with its columns: the user opens with the sentence that states the
    task, and the agenda has the other sentences. If there is only one sentence, the opening just names the subject.
    Rows in the project's own form without an agenda are split in the same way.

    Args:
        seed: Draws the numbers and names in the templates.
        size: Number of goals of each split; `task.num_train` and so on limit them further.

    Raises:
        BadInput: `seed` or `size` is no whole number, `seed` is negative, or `size` is below 1.
    """

    def __init__(self, seed: int = 1, size: int = 256) -> None:
        for name, value, least in (("seed", seed, 0), ("size", size, 1)):
            if type(value) is not int or value < least:
                raise BadInput(f"task.options.{name} ({value!r}) must be a whole number of at least {least}.")
        self.seed, self.size = seed, size
        # https://huggingface.co/datasets/lighteval/MATH-Hard: also level and type, sorted by subject
        self.layouts = (Layout(("problem", "solution"), _from_math, scattered),)

    def shipped(self, split: str) -> list[Goal]:
        return generated(TEMPLATES[split], split, self.size, self.seed)

    def completed(self, goal: Goal, where: str) -> Goal:
        reference = boxed_content(goal.reference) or goal.reference
        _check_answer(reference, where)
        agenda = (goal.agenda or agenda_of_problem(goal.prompt, str(goal.metadata.get("type", "")))).entry()
        return replace(goal, reference=reference, metadata={**goal.metadata, "agenda": agenda})


def generated(templates: Sequence[Template], split: str, size: int, seed: int) -> list[Goal]:
    """`size` different problems from the templates in turn; the same for the same seed.

    Raises:
        BadInput: The templates do not give enough different problems.
    """
    draws = RngKey(seed, role="math", split=split).stream()
    goals: dict[tuple[str, ...], Goal] = {}
    for number, template in enumerate(cycle(templates)):
        if len(goals) == size:
            break
        if number > 10 * size:
            raise BadInput(
                f"task.options.size ({size}) is more than the templates of the {split} split give. Lower it."
            )
        numbers = {letter: int(draws.choice(values)) for letter, values in template.numbers.items()}
        filled = {"name": NAMES[int(draws.integers(len(NAMES)))], **numbers}
        story, hidden, question = (
            text.format(**filled) for text in (template.story, template.hidden, template.question)
        )
        key = (template.name, *map(str, numbers.values()))
        agenda = Agenda("answer", f"{story} {question}", (AgendaItem("quantity", hidden, template.cues),))
        goals.setdefault(
            key,
            Goal(
                id="-".join((split, *key)),
                prompt=f"{story} {hidden} {question}",
                reference=str(template.answer(**numbers)),
                metadata={"template": template.name, "agenda": agenda.entry()},
            ),
        )
    return list(goals.values())


def agenda_of_problem(problem: str, subject: str = "") -> Agenda:
    """The user opens with the sentence that states the task, and says the others when asked."""
    parts = statements(problem)
    task = next((i for i, part in enumerate(parts) if _TASK.search(part)), len(parts) - 1)
    if len(parts) == 1:
        opening = f"It is a problem in {subject.lower()}." if subject else "It is a problem in mathematics."
    else:
        opening = parts.pop(task)
    return Agenda("answer", opening, tuple(AgendaItem("condition", part) for part in parts))


def statements(problem: str) -> list[str]:
    """The sentences of a problem in LaTeX, formulas and drawings in one piece."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f"\x00{len(kept) - 1}\x00" + "\x01" * bool(_ENDS_INSIDE.search(found[0]))

    protected = _WHOLE.sub(keep, re.sub(r"[\x00\x01]", "", problem))
    parts = [part.strip() for part in _SENTENCE_END.split(protected)]
    return [re.sub(r"\x00(\d+)\x00\x01?", lambda found: kept[int(found[1])], part) for part in parts if part]


def _from_math(row: Row, where: str) -> Goal:
    problem, solution = text_of(row, "problem", where), text_of(row, "solution", where)
    answer = boxed_content(solution)
    if not answer:
        raise BadInput(f"{where}: the solution holds no \\boxed{{}} with an answer. Box it, or leave the row out.")
    _check_answer(answer, where)
    kept = {name: row[name] for name in ("level", "type") if row.get(name)}
    agenda = agenda_of_problem(problem, str(kept.get("type", "")))
    return Goal(derived_id(problem, solution), problem, answer, {**kept, "agenda": agenda.entry()})


def _check_answer(answer: str, where: str) -> None:
    if not CHECKER.readable(answer):
        raise BadInput(
            f"{where}: the reference answer {answer!r} cannot be read as mathematics, so no answer could be compared "
            "with it. Write a number, or an expression in LaTeX, words in \\text{}; or leave the row out."
        )
