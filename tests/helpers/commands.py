"""Commands in processes of their own that start at once: forked from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collab.conversation import Conversation

ROOT = Path(__file__).parents[2]
_PLACES = (ROOT, ROOT / "tests" / "helpers", ROOT / "tests" / "integration")
# Of a command that is run as a user runs it, and finds what tests bring.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, _PLACES))}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["collab.app.build", "collab.callbacks.progress", "collab.callbacks.export"])


def start(entry: str, overrides: Sequence[str], log: Path) -> Any:
    """`python ENTRY.py OVERRIDES` as a `multiprocessing.Process`; what it says is appended to `log`."""
    process = _FORKSERVER.Process(target=_main, args=(entry, list(overrides), str(log)))
    process.start()
    return process


def run(entry: str, overrides: Sequence[str], log: Path) -> int:
    """The exit status of a whole command."""
    process = start(entry, overrides, log)
    process.join()
    return process.exitcode


class Early:
    """A metric of which a policy of few words can have more or less: the share of the alphabet's first half."""

    async def __call__(self, conversation: Conversation) -> float | None:
        letters = "".join(conversation.assistant_texts).replace(" ", "")
        return sum(letter < "n" for letter in letters) / max(1, len(letters))


class FailsOnTheSecond(Early):
    """Raises on the second of several processes, when the candidates of a step are scored."""

    async def __call__(self, conversation: Conversation) -> float | None:
        if os.environ.get("RANK") == "1" and conversation.goal.id.startswith("train"):
            raise RuntimeError(f"nothing to say about {conversation.goal.id}")
        return await super().__call__(conversation)


def _main(entry: str, overrides: list[str], log: str) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"{entry}.py", *overrides]
    from collab.app.cli import main

    main(entry)
