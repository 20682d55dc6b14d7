"""How a side that runs in a process of its own answers the driver: one line of JSON for each line of JSON.

Only the standard library, since every environment imports it. `peer.py` is the driver's end.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def answer(start: Callable[..., tuple[dict[str, Any], dict[str, Callable[..., dict[str, Any]]]]]) -> None:
    """Run as a peer until the driver closes the pipe.

    `start` is called with the JSON object of the command line's only argument. It loads whatever is slow to load and
    returns what the driver should know about it, and its operations by name. Every further line of stdin
    `{"do": name, ...}` runs one, and its result, or `{"error": ...}`, is a line on stdout.
    """
    # Libraries print to stdout, from C too: what they write goes to stderr, and the answers to a copy of stdout.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(found: dict[str, Any]) -> None:
        out.write(json.dumps(found) + "\n")
        out.flush()

    def tried(work: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> bool:
        try:
            say(work(**arguments))
        except Exception as error:
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            say({"error": f"{type(error).__name__}: {first}"})
            return False
        return True

    operations: dict[str, Callable[..., dict[str, Any]]] = {}

    def begin(**arguments: Any) -> dict[str, Any]:
        told, found = start(**arguments)
        operations.update(found)
        return told

    if not tried(begin, json.loads(sys.argv[1])):
        sys.exit(1)
    for line in sys.stdin:
        request = json.loads(line)
        tried(operations[request.pop("do")], request)
