"""Commands in processes of their own that start at once: forked from a server that has imported what they need."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collab.conversation import Conversation

ROOT = Path(__file__).parents[2]
_PLACES = (ROOT, ROOT / "tests" / "helpers", ROOT / "tests" / "integration")
# Of a command that is run as a user runs it, and finds what tests bring.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, _PLACES))}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
LIMIT = 500.0  # seconds that a command may take
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    [
        *("collab.app.cli", "collab.app.build", "collab.app.train", "collab.app.evaluate", "collab.app.synthesize"),
        *("collab.callbacks.progress", "collab.callbacks.export", "collab.rewards.metrics", "transformers", "peft"),
        *("transformers.models.llama.modeling_llama", "lightning.pytorch.loggers.wandb", "wandb", "datasets"),
        *("matplotlib.figure", "matplotlib.backends.backend_agg"),
    ]
)


def start(entry: str, overrides: Sequence[str], log: Path, env: Mapping[str, str | None] | None = None) -> Any:
    """`python ENTRY.py OVERRIDES` as a `multiprocessing.Process`; what it says is appended to `log`."""
    target = (entry, list(overrides), str(log), str(log), str(ROOT), dict(env or {}))
    process = _FORKSERVER.Process(target=_main, args=target)
    process.start()
    return process


def run(entry: str, overrides: Sequence[str], log: Path) -> int:
    """The exit status of a whole command."""
    process = start(entry, overrides, log)
    _wait([process], entry)
    return process.exitcode


def start_two(entry: str, overrides: Sequence[str], log: Path) -> list[Any]:
    """A command in two processes that find each other, as torchrun starts them; without what torchrun itself does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    common = {**address, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
    ranks = ({**common, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1"))
    return [start(entry, overrides, log, env) for env in ranks]


def joined(processes: Sequence[Any], log: Path) -> None:
    """Wait for all, which have to end well."""
    _wait(processes, "one of several")
    assert [process.exitcode for process in processes] == [0] * len(processes), log.read_text()


def finished(
    entry: str,
    *arguments: str,
    cwd: Path = ROOT,
    env: Mapping[str, str | None] | None = None,
    limit: float = LIMIT,
) -> subprocess.CompletedProcess[str]:
    """A whole command, with what it has written.

    Args:
        entry: Of `ENTRY.py`; "collab" for the console command; or the path of another script.
        arguments: As typed.
        cwd: Where it is typed.
        env: Changes of the environment; None takes a variable away.
        limit: Seconds that it may take.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = (f"{folder}/{name}" for name in ("out", "err"))
        target = (entry, list(arguments), out, err, str(cwd), dict(env or {}))
        process = _FORKSERVER.Process(target=_main, args=target)
        process.start()
        _wait([process], f"{entry} {' '.join(arguments)}", limit)
        said = [Path(file).read_text(encoding="utf-8", errors="replace") for file in (out, err)]
    return subprocess.CompletedProcess([entry, *arguments], process.exitcode, *said)


def _wait(processes: Sequence[Any], told: str, limit: float = LIMIT) -> None:
    """Wait for processes that have started. None is left when they take too long, here or for the test."""
    try:
        for process in processes:
            process.join(limit)
            assert process.exitcode is not None, f"{told} does not end"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


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


def _main(entry: str, arguments: list[str], out: str, err: str, cwd: str, env: dict[str, str | None]) -> None:
    gc.freeze()  # no collection looks at what the server has imported
    gc.set_threshold(20_000, 20, 20)
    for descriptor, path in ((1, out), (2, err)):
        with open(path, "ab", buffering=0) as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(cwd)
    sys.path += map(str, _PLACES)
    os.environ.pop("WANDB_SERVICE", None)  # of the process that runs the tests, which may have ended it
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if entry.endswith(".py"):
        sys.argv = [entry, *arguments]
        runpy.run_path(entry, run_name="__main__")
    elif entry == "collab":
        sys.argv = ["collab", *arguments]
        from collab.__main__ import main as console

        console()
    else:
        sys.argv = [f"{entry}.py", *arguments]
        from collab.app.cli import main

        main(entry)
