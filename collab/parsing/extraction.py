"""What an assistant has produced: `Extract(t)` of Eq. 3 for final answers and for programs.

Read by the metrics and by the agenda user alike, so that what a user takes for a result is what is scored.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence

from collab.parsing.english import questions, without_questions

_FENCED = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_EXPLICIT = re.compile(r"\\(?:boxed|fbox)\b|\banswer\b", re.IGNORECASE)
_CODE_BEGINS = re.compile(r"(?:async def|def|class|import|from|@)\b|@\w")
_MOST_LINES = 300  # of plain code that is looked through for a program: the search takes the square of it


def states_answer(reply: str) -> bool:
    """Whether a message ends a calculation: a box, the word "answer" or, in a message that asks nothing, a number."""
    statement = without_questions(reply)
    return bool(_EXPLICIT.search(statement)) or (not questions(reply) and any(c.isdigit() for c in statement))


def last_answer(replies: Sequence[str]) -> str:
    """The latest message that states an answer, without its questions; "" if none does."""
    return next((without_questions(reply) for reply in reversed(replies) if states_answer(reply)), "")


def last_program(replies: Sequence[str], entry_point: str = "") -> str:
    """The last complete Python program in a conversation's assistant messages; "" if there is none.

    Programs are fenced blocks or, in a message without any, the lines that are code. A complete one can be parsed and
    does more than evaluate expressions. The last one that defines `entry_point` is taken, or else the last one at all:
    behind a function often stands an example of its use.
    """
    found = [program for reply in replies for program in _programs(reply)]
    return next((p for p in reversed(found) if entry_point and defines(p, entry_point)), found[-1] if found else "")


def outside_code(reply: str) -> str:
    """The message without its fenced blocks."""
    return _FENCED.sub("\n", reply)


def parsed(program: str) -> ast.Module | None:
    """The syntax tree of a Python program, None where it is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in strings that are no escapes
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defines(program: str, name: str) -> bool:
    """Whether a program defines a function or class of this name at its top level."""
    tree = parsed(program)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return tree is not None and any(isinstance(node, kinds) and node.name == name for node in tree.body)


def defines_anything(program: str) -> bool:
    """Whether a program defines a function or class at its top level."""
    tree = parsed(program)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return tree is not None and any(isinstance(node, kinds) for node in tree.body)


def _programs(reply: str) -> Iterator[str]:
    blocks = [textwrap.dedent(body) for _, body in _FENCED.findall(reply)] or [_plain(reply)]
    yield from (block.strip() + "\n" for block in blocks if _is_complete(block))


def _is_complete(text: str) -> bool:
    tree = parsed(text)
    return tree is not None and any(not isinstance(node, ast.Expr) for node in tree.body)


def _plain(reply: str) -> str:
    """The longest run of lines that is a program, from the first line that looks like the beginning of one."""
    lines = reply.splitlines()[:_MOST_LINES]
    for first, line in enumerate(lines):
        if _CODE_BEGINS.match(line):
            for end in range(len(lines), first, -1):
                if _is_complete(text := "\n".join(lines[first:end])):
                    return text
    return ""
