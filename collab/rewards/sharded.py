"""The score of a sharded goal: one metric for each kind of result, and each goal has exactly one of them."""

from __future__ import annotations

import ast

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import makes
from collab.parsing.extraction import defines, last_program, parsed
from collab.rewards.document import Coverage
from collab.rewards.metrics import Accuracy, Bleu, PassRate

# What a program may use without importing it. The evaluation of the paper imports these and more.
_IMPORTS = (
    "import bisect, collections, datetime, functools, heapq, itertools, json, math, operator, random, re, string\n"
    "from collections import *\n"
    "from typing import *\n"
)


class ShardedAccuracy(Accuracy):
    """`Accuracy` of goals that ask for an answer."""

    def applies(self, goal: Goal) -> bool:
        return makes(goal) == "answer"


class ShardedPassRate(PassRate):
    """`PassRate` of goals that ask for a program.

    Hardly any shard of the published goals tells the name of the function, so a program that has another name is
    tested too, as in the paper: its last function, or the method of its class Solution, takes the name.
    """

    def applies(self, goal: Goal) -> bool:
        return makes(goal) == "program"

    def program(self, texts: list[str], entry_point: str) -> str:
        program = last_program(texts, entry_point)
        if not program:
            return ""
        if not defines(program, entry_point):
            program += f"\n\n{entry_point} = {_other_name(program, entry_point)}\n"
        return _with_imports(program)


class ShardedCoverage(Coverage):
    """`Coverage` of goals that ask for a text and have notes."""

    def applies(self, goal: Goal) -> bool:
        return super().applies(goal) and bool(goal.notes)


class ShardedBleu(Bleu):
    """`Bleu` of goals that ask for a text and have no notes.

    If the metadata has `references`, all of them count: an n-gram is right if one has it, as sacrebleu does it.
    """

    def applies(self, goal: Goal) -> bool:
        return makes(goal) == "text" and not goal.notes

    def of(self, text: str, conversation: Conversation) -> float:
        goal = conversation.goal
        references = list(goal.metadata.get("references") or [goal.reference])
        return min(self._bleu.sentence_score(text, references).score / 100, 1.0)


def _with_imports(program: str) -> str:
    """The program with `_IMPORTS`, behind its `from __future__` lines, which have to come first."""
    tree = parsed(program)
    first = (
        [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"] if tree else []
    )
    lines = program.splitlines(keepends=True)
    place = (first[-1].end_lineno or 0) if first else 0
    return "".join((*lines[:place], "\n" if place else "", _IMPORTS, "\n", *lines[place:]))


def _other_name(program: str, entry_point: str) -> str:
    """What is tested in a program that does not define `entry_point`; None if it has no function.

    A method of the class Solution with that name; else the last function with parameters, or the last method.
    """
    tree = parsed(program)
    names: list[str] = []
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.FunctionDef) and node.args.args:
            names.append(node.name)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        if isinstance(node, ast.ClassDef) and node.name == "Solution":
            methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"]
            if entry_point in methods:
                return f"Solution().{entry_point}"
            names += [f"Solution().{name}" for name in methods[-1:]]
    return names[-1] if names else "None"
