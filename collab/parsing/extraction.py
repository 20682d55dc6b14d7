"""The final answer or program in an assistant's messages: `Extract(t)` of Eq. 3.

The metrics and the agenda user share these rules, so what the user accepts as a result is what is scored.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from collab.parsing.english import questions, without_questions
from collab.parsing.plain_values import stated_value, value_of

_FENCE = re.compile(
    r"(?P<quote>(?:(?:[ \t]*>)++ ?)?+)(?P<indent>[ \t]*)(?:(?:[-*+]|\d+[.)])[ \t]+)?"
    r"(?:(?P<mark>```+|~~~+)(?P<info>.*)|[^`]*[^`\s][ \t]+(?P<late>```+)\w*)"  # late: "Like this: ```python"
)
_EXPLICIT = re.compile(r"\\(?:boxed|fbox)\b|\banswer\b", re.IGNORECASE)
_CODE_BEGINS = re.compile(r"(?:async def|def|class|import|from|@)\b|@\w|\w+\s*=\s*lambda\b")
_MOST_LINES = 100  # of a message without fences, in which a program is looked for
_MOST_PARSED = 1_000_000  # characters that the search parses in all, in about a second; only odd messages need more
_MOST_ENDS = 30  # lines that are tried as the end of one block


@dataclass(frozen=True)
class _Block:
    """Lines `first` to `last` of a message, the fences included, and what stands between them."""

    first: int
    last: int
    body: str


def states_answer(reply: str, reference: str = "") -> bool:
    """Whether a message has a box, the word "answer" or, if it asks nothing, a number.

    Where the reference is the letter of a choice, a letter that is chosen is an answer too.
    """
    statement = without_questions(reply)
    if _EXPLICIT.search(statement):
        return True
    wanted = value_of(reference)
    if wanted is not None and wanted.kind == "choice" and stated_value(statement, "choice"):
        return True
    return not questions(reply) and any(character.isnumeric() for character in statement)


def last_answer(replies: Sequence[str], reference: str = "") -> str:
    """The latest message that states an answer (`states_answer`), without its questions; "" if none does."""
    return next((without_questions(reply) for reply in reversed(replies) if states_answer(reply, reference)), "")


def last_program(replies: Sequence[str], entry_point: str = "") -> str:
    """The last complete Python program in a conversation's assistant messages; "" if there is none.

    Programs are fenced blocks or, in a message without any, the lines that are code. A complete program can be parsed
    and does more than evaluate expressions. The last one that defines `entry_point` wins, because an example of its use
    often follows a function. If none defines it, the last one wins. Blocks that define or import what it lacks, such as
    imports in a block of their own, are put before it.
    """
    programs = [program for reply in replies for program in _programs(reply)]
    defining = [place for place, program in enumerate(programs) if entry_point and defines(program, entry_point)]
    chosen = [*range(len(programs)), *defining][-1:]
    return _with_what_it_lacks(programs, chosen[0], entry_point) if chosen else ""


def outside_code(reply: str) -> str:
    """The message without its fenced blocks."""
    lines = _lines(reply)
    for block in reversed(_blocks(lines)):
        lines[block.first : block.last + 1] = [""]
    return "\n".join(lines)


@lru_cache(maxsize=256)  # a program is parsed for each question that is asked about it
def parsed(program: str) -> ast.Module | None:
    """The syntax tree of a Python program, which nobody may change; None if it cannot be parsed."""
    tree = _parse(program)
    return tree if isinstance(tree, ast.Module) else None


def _parse(program: str) -> ast.Module | int:
    """The syntax tree of a program, or the line, counted from 1, of its first error; 0 if the error has none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about invalid escapes in strings
            return ast.parse(program)
    except SyntaxError as error:
        return error.lineno or 0
    except (ValueError, RecursionError, MemoryError):
        return 0


def defines(program: str, name: str = "") -> bool:
    """Whether a program defines something at its top level: `name` in any way, or any function or class if it is ""."""
    tree = parsed(program)
    if tree is None:
        return False
    if name:
        return name in _bound(tree.body, imports=False)  # a block that imports it shows its use
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in tree.body)


# --- blocks ----------------------------------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text)  # `splitlines` would also split at a U+2028 inside a string


def _blocks(lines: list[str]) -> list[_Block]:
    """The fenced blocks of a message: behind backticks or tildes, also in a list or a quote."""
    blocks: list[_Block] = []
    place = 0
    while place < len(lines):
        opening = _FENCE.fullmatch(lines[place])
        if opening is None or (opening["mark"] or "~")[0] == "`" and "`" in opening["info"]:  # code in a sentence
            place += 1
            continue
        quote = opening["quote"]
        inside: list[str] = []
        for line in lines[place + 1 :]:
            bare = re.match(rf"(?:[ \t]*>){{{quote.count('>')}}}", line)
            if bare is None:  # a quote ends with its last line
                break
            inside.append(line[bare.end() :].removeprefix(" ") if quote.endswith(" ") else line[bare.end() :])
        end, body = _end(inside, opening)
        closing = _FENCE.fullmatch(inside[end]) if end < len(inside) else None
        reopens = closing is not None and re.fullmatch(r"\w+", closing["info"] or "")  # "```python" opens the next
        last = place + end + (closing is not None and not reopens)
        blocks.append(_Block(place, last, body))
        place = last + 1
    return blocks


def _end(inside: list[str], opening: re.Match[str]) -> tuple[int, str]:
    """The number of lines in a block, and their text.

    A block ends at the first fence before which it can be parsed, so a fence in a docstring does not end it. A block
    that is not Python ends at the first fence without text behind it. Without an end, the longest program counts.
    """
    mark, indent = opening["mark"] or opening["late"], opening["indent"]
    closing = re.compile(rf"[ \t]*{re.escape(mark)}{mark[0]}*(?P<behind>.*)")
    ends = [place for place, line in enumerate(inside) if closing.fullmatch(line)]
    for end in ends[:_MOST_ENDS]:
        body = _without_indent(inside[:end], indent)
        if parsed(body) is not None:
            return end, body
    for end in ends:
        found = closing.fullmatch(inside[end])
        if found and not found["behind"].strip():
            return end, _without_indent(inside[:end], indent)
    body = _without_indent(inside, indent)
    return len(inside), body if parsed(body) else _longest(body.split("\n"))


def _without_indent(lines: list[str], indent: str) -> str:
    """The lines of a block without the indentation of its fence or, if that is no program, of all its lines."""
    body = "\n".join(line.removeprefix(indent) for line in lines)
    return body if parsed(body) is not None else textwrap.dedent("\n".join(lines))


def _programs(reply: str) -> Iterator[str]:
    lines = _lines(reply)
    blocks = _blocks(lines)
    for body in [block.body for block in blocks] if blocks else [_plain(lines)]:
        if _does_something(parsed(body)):
            yield body.strip("\n") + "\n"
        elif blocks and _blocks(_lines(body)):  # a message in a block, which has blocks
            yield from _programs(body)


def _does_something(tree: ast.Module | int | None) -> bool:
    """Whether it is a program with a statement that is more than a value."""
    return isinstance(tree, ast.Module) and any(not isinstance(node, ast.Expr) for node in tree.body)


def _plain(lines: list[str]) -> str:
    """The longest program among the lines, from the first line that looks like the beginning of one."""
    begins = [first for first, line in enumerate(lines[:_MOST_LINES]) if _CODE_BEGINS.match(line)]
    return _longest(*(lines[first:_MOST_LINES] for first in begins))


def _longest(*tails: list[str]) -> str:
    """The longest program that the first of `tails` begins with, or else the second, and so on; "" if none does."""
    left = _MOST_PARSED
    for lines in tails:
        end = min(len(lines), _MOST_LINES)
        while end > 0:
            text = "\n".join(lines[:end])
            if (left := left - len(text)) < 0:
                return ""
            tree = _parse(text)
            if _does_something(tree):
                return text
            error = tree if isinstance(tree, int) and tree else end
            end = min(end, error) - 1  # what has the line of the error cannot be parsed either
    return ""


# --- names -----------------------------------------------------------------------------------------------------------


def _with_what_it_lacks(programs: Sequence[str], chosen: int, entry_point: str) -> str:
    """The chosen program behind those that define what it uses: the nearest before it, or else the nearest after it.

    An example of use gets imports only.
    """
    program = programs[chosen]
    others = [*reversed(programs[:chosen]), *programs[chosen + 1 :]]
    if not defines(program, entry_point):
        others = [other for other in others if _only_imports(other)]
    for _ in others:
        tree = parsed(program)
        lacking = _lacking(tree) if tree else set()
        for other in others:
            helper = parsed(other)
            if helper is not None and lacking & _bound(helper.body):
                others.remove(other)
                if parsed(joined := f"{other}\n{program}") is not None:
                    program = joined
                break
        else:
            break
    return program


def _only_imports(program: str) -> bool:
    tree = parsed(program)
    return tree is not None and all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)


def _bound(statements: Sequence[ast.stmt], imports: bool = True) -> set[str]:
    """The names that statements bind outside of functions and classes."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(statements)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names if imports}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            waiting += ast.iter_child_nodes(node)
    return names


def _lacking(tree: ast.Module) -> set[str]:
    """The names that a program reads and binds nowhere."""
    bound = {*dir(builtins), "__file__"}
    read: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.split(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
    return read - bound
