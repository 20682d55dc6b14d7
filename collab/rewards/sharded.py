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
        return f"{_IMPORTS}\n{program}"


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


def _other_name(program: str, entry_point: str) -> str:
    """What is tested in a program that does not define `entry_point`; None if it has no function."""
    tree = parsed(program)
    names = []
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        if isinstance(node, ast.ClassDef) and node.name == "Solution":
            methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"]
            names += [f"Solution().{name}" for name in methods[-1:]]
    return names[-1] if names else "None"
