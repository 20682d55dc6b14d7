"""Tool calls in messages, in the form of Hermes, which Qwen and others are trained on.

The system prompt lists the tools as JSON, the assistant writes calls as `<tool_call>{"name": ..., "arguments": ...}
</tool_call>`, and the results come back as `<tool_response>...</tool_response>` in a message of the user's side, as the
chat templates of these models render the role `tool`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)  # one that was cut has no end

_SYSTEM = """\
You can call these tools. Each line is one tool, with its arguments as a JSON schema.
<tools>
{tools}
</tools>
To call one, write nothing but this, with its name and arguments as JSON:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>
The result comes back between <tool_response> and </tool_response>."""


@dataclass(frozen=True)
class Call:
    """One call of a message.

    Attributes:
        name: Of the tool; "" if the call cannot be read.
        arguments: Name -> value.
        problem: Why it cannot be read; "" if it can.
    """

    name: str
    arguments: Mapping[str, Any]
    problem: str = ""


def calls_in(text: str) -> list[Call]:
    """The calls of an assistant's message in order; empty if it is for the user."""
    return [_call(found) for found in _CALL.findall(text)]


def _call(text: str) -> Call:
    try:
        read = json.loads(text)
        name, arguments = read["name"], read.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise TypeError("name must be text, and arguments an object")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return Call("", {}, f'this is no call: {error}. Write {{"name": "...", "arguments": {{...}}}}')
    return Call(name, arguments)


def response(results: Sequence[Any]) -> str:
    """The message that brings the results of a message's calls, in order."""
    said = "\n".join(f"<tool_response>\n{json.dumps(one, ensure_ascii=False)}\n</tool_response>" for one in results)
    return said.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair, from a call, cannot be written


def told(functions: Mapping[str, Mapping[str, Any]]) -> str:
    """What a system prompt says about tools.

    Args:
        functions: Name -> description and parameters, a JSON schema.
    """
    tools = ({"type": "function", "function": {"name": name, **entry}} for name, entry in functions.items())
    return _SYSTEM.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
