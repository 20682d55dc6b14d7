"""Runs the tools of a task in the sandbox: state in, state and results out. Nothing is left between two runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from collab.parsing.tool_calls import Call
from collab.sandbox.run import Limits, run_program

_MARK = "collab tool results: "
_LIMITS = Limits(seconds=10.0, cpu_seconds=5, memory_bytes=512 << 20)

# `state` goes in as JSON. A tool that raises has changed nothing.
_RUN = """\
import json

def check(candidate):
    tools = {{{tools}}}
    state, results = {state!r}, []
    for name, arguments in json.loads({calls!r}):
        held = json.loads(state)
        try:
            result = tools[name](held, **arguments)
            state, result = json.dumps(held), json.loads(json.dumps(result))
        except Exception as error:
            result = {{"error": f"{{type(error).__name__}}: {{error}}"}}
        results.append(result)
    print()
    print({mark!r} + json.dumps([json.loads(state), results]))
"""


async def run_tools(
    code: str, tools: Sequence[str], state: Any, calls: Sequence[Call], *, strict: bool = False
) -> tuple[Any, list[Any]]:
    """Run calls one after the other.

    Args:
        code: Python source with a function for each tool: `NAME(state, **arguments)` changes the state in place and
            returns a result.
        tools: Names of the functions that may be called.
        state: JSON-ready; it stays as it is.
        calls: As the policy wrote them.
        strict: As in `run_program`.

    Returns:
        The new state, and the result of each call. A call that cannot be read, of another tool, that raises, or that
        exceeds the limits has the result `{"error": ...}` and changes nothing.

    Raises:
        BadInput: As `run_program`.
    """
    found: dict[int, Any] = {}  # place of a call -> its result
    for place, call in enumerate(calls):
        if call.problem:
            found[place] = {"error": call.problem}
        elif call.name not in tools:
            found[place] = {"error": f"there is no tool {call.name}. The tools are {', '.join(tools)}"}
    good = [place for place in range(len(calls)) if place not in found]
    if good:
        tests = _RUN.format(
            tools=", ".join(f"{name!r}: {name}" for name in tools),
            state=json.dumps(state),
            calls=json.dumps([[calls[place].name, dict(calls[place].arguments)] for place in good]),
            mark=_MARK,
        )
        verdict = await run_program(code, tests, entry_point=tools[0], limits=_LIMITS, strict=strict)
        printed = [line for line in verdict.output.splitlines() if line.startswith(_MARK)]
        if verdict.passed and printed:
            state, results = json.loads(printed[-1].removeprefix(_MARK))
        else:
            results = [{"error": f"the tool did not end well ({verdict.outcome})"}] * len(good)
        found |= dict(zip(good, results, strict=True))
    return state, [found[place] for place in range(len(calls))]
