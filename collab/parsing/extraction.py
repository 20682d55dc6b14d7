"""The final answer or program in an assistant's messages: `Extract(t)` of Eq. 3.

The metrics and the agenda user share these rules, so what the user accepts as a result is what is scored.
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
_MOST_LINES = 300  # of a message without fences; the search for a program takes time quadratic in them


def states_answer(reply: str) -> bool:
    """Whether a message has a box, the word "answer" or, if it asks nothing, a number."""
    statement = without_questions(reply)
    return bool(_EXPLICIT.search(statement)) or (not questions(reply) and any(c.isdigit() for c in statement))


def last_answer(replies: Sequence[str]) -> str:
    """The latest message that states an answer, without its questions; "" if none does."""
    return next((without_questions(reply) for reply in reversed(replies) if states_answer(reply)), "")


def last_program(replies: Sequence[str], entry_point: str = "") -> str:
    """The last complete Python program in a conversation's assistant messages; "" if there is none.

    Programs are fenced blocks or, in a message without any, the lines that are code. A complete program can be parsed
    and does more than evaluate expressions. The last one that defines `entry_point` wins, because an example of its use
    often follows a function. If none defines it, the last one wins.
    """
    programs = [program for reply in replies for program in _programs(reply)]
    defining = [program for program in programs if entry_point and defines(program, entry_point)]
    return ["", *programs, *defining][-1]


def outside_code(reply: str) -> str:
    """The message without its fenced blocks."""
    return _FENCED.sub("\n", reply)


def parsed(program: str) -> ast.Module | None:
    """The syntax tree of a Python program; None if it cannot be parsed."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about invalid escapes in strings
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defines(program: str, name: str = "") -> bool:
    """Whether a program defines a function or class at its top level: one of this name, or any if it is ""."""
    tree = parsed(program)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return tree is not None and any(isinstance(node, kinds) and name in ("", node.name) for node in tree.body)


def _programs(reply: str) -> Iterator[str]:
    blocks = [textwrap.dedent(body) for _, body in _FENCED.findall(reply)] or [_plain(reply)]
    yield from (block.strip() + "\n" for block in blocks if _is_complete(block))


def _is_complete(text: str) -> bool:
    tree = parsed(text)
    return tree is not None and any(not isinstance(node, ast.Expr) for node in tree.body)


def _plain(reply: str) -> str:
    """The longest program among the lines, from the first line that looks like the beginning of one."""
    lines = reply.splitlines()[:_MOST_LINES]
    for first, line in enumerate(lines):
        if _CODE_BEGINS.match(line):
            for end in range(len(lines), first, -1):
                if _is_complete(text := "\n".join(lines[first:end])):
                    return text
    return ""
