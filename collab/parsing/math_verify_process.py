"""The process in which math-verify compares answers; `answers.py` starts it.

It imports nothing of the package, so that it starts fast and from any folder.
"""

from __future__ import annotations

import json
import sys

MEMORY = 4 * 2**30  # bytes of address space


def serve(cpu_seconds: float) -> None:
    """Answer the requests of standard input until it ends.

    A request is a line with a JSON list `[reference, text]`, the reference in a box. A text of null asks whether the
    reference can be read.
    """
    import logging
    import os
    import resource
    import signal

    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that nothing a library prints counts as a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of standard input ends the process
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # its signal ends the process
        reference, text = json.loads(line)
        result: bool | None
        try:
            wanted = parse(reference, parsing_timeout=None)
            if text is None:
                # What math-verify does not understand stays a text. Repeating decimals are compared as texts.
                result = any(not isinstance(one, str) for one in wanted) or "\\overline" in reference
            else:
                given = parse(text, parsing_timeout=None)
                result = verify(wanted, given, timeout_seconds=None) if given else None
        except (MemoryError, RecursionError):
            result = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(result) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve(float(sys.argv[1]))
