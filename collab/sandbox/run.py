"""Runs programs that a policy has written, with their tests, locked in; tells whether the tests pass.

`run_program` is the one entry. Each program gets a process of its own under `supervisor.py`, which takes from it what
the kernel lets us take: other processes, files, the network, our user id, our environment, time, memory. `enforced`
of a verdict names what was; docs/sandbox.md says what each name means, and what is not prevented.

Program and tests share one interpreter, because the tests of BigCodeBench and HumanEval call the program's functions,
hand them mocks and look into what they return. A verdict therefore cannot be beyond all doubt. No fake is a pass that
ends the process, at any time and with any status, prints anything, skips tests or lines of them, changes `unittest`,
the builtins or the functions of another module and leaves them changed, returns objects that equal anything, or reads
the whole memory of the process before the tests are over; `worker.py` tells why. In principle, a program written
against `worker.py` can read and write the socket of the report itself, change the variables of the running test, undo
its changes before they are looked for, or read the expected values off a running test.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from collab.util.errors import BadInput

Outcome = Literal["passed", "failed", "ended early", "wall time", "cpu time", "memory", "output"]


@dataclass(frozen=True)
class Limits:
    """What one program may use, with all processes that it starts, unless said otherwise.

    Attributes:
        seconds: Wall-clock time of program and tests, the start of the interpreter not included.
        cpu_seconds: CPU time of each process, whole seconds.
        memory_bytes: Address space of each process; also the memory in use by all of them together.
        processes: Processes and threads.
        file_bytes: Size of each file.
        disk_bytes: Size of all files together; bound only in a mount namespace.
        output_bytes: What may be printed.
    """

    seconds: float = 20.0
    cpu_seconds: int = 10
    memory_bytes: int = 2 << 30
    processes: int = 64
    file_bytes: int = 32 << 20
    disk_bytes: int = 64 << 20
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """How a program did.

    Attributes:
        outcome: "passed": every test succeeded. "failed": the program does not run, a test did not succeed, or the
            program tampered with what it is measured by. "ended early": its process ended before the tests were over.
            The others name the limit that it ran into.
        detail: Why, for people: a traceback or a sentence; "" if it passed.
        output: What was printed, to stdout and stderr.
        seconds: Wall-clock time from the start of the program.
        enforced: What was kept from the program, by name.
        missing: What could not be; empty under `strict`.
    """

    outcome: Outcome
    detail: str
    output: str
    seconds: float
    enforced: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


async def run_program(
    program: str, tests: str, *, entry_point: str = "task_func", limits: Limits | None = None, strict: bool = False
) -> Verdict:
    """Run a program and then its tests, locked in. As many at a time as there are CPU cores; the others wait.

    Args:
        program: Python source, not to be trusted. What cannot be compiled fails.
        tests: Python source that is: `unittest.TestCase` classes (BigCodeBench), `check(candidate)` (HumanEval), or
            both. It sees the program's global names. What it imports is imported before the program runs.
        entry_point: Name of the function that `check` is called with.
        limits: What the program may use; None takes the defaults.
        strict: Refuse where not everything can be enforced; else the verdict's `missing` names what was not.

    Raises:
        BadInput: The tests cannot be compiled or hold neither kind; the sandbox cannot be set up here; with `strict`,
            something is missing. The program has not been run.
    """
    request = {
        "program": program,
        "tests": tests,
        "used": _imported(_parsed_tests(tests)),
        "entry_point": entry_point,
        "limits": asdict(limits or Limits()),
        "strict": strict,
        "python": sys.executable,
        "packages": _packages(),
    }
    async with _slot():
        folder = tempfile.mkdtemp(prefix="collab-sandbox-")
        try:
            answer = await _supervised(request | {"folder": folder})
        finally:
            _remove(folder)
    if "refused" in answer:
        raise BadInput(
            f"A program of the policy was not run: {answer['refused']}. Run where it can be had (docs/sandbox.md tells "
            f"what it takes){', or set sandbox=auto, which enforces what is left' if strict else ''}."
        )
    answer |= {"enforced": tuple(answer["enforced"]), "missing": tuple(answer["missing"])}
    return Verdict(**answer)


def check_strict() -> None:
    """Run an empty program under `strict`; not to be called from a coroutine.

    Raises:
        BadInput: Names what cannot be enforced on this machine.
    """
    asyncio.run(run_program("def task_func(): pass", "def check(candidate): candidate()", strict=True))


def _parsed_tests(tests: str) -> ast.Module:
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError) as error:
        raise BadInput(f"The tests of a program are not Python: {error}. Give source that compiles.") from error
    has_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    if not has_check and not any(isinstance(node, ast.ClassDef) for node in tree.body):
        raise BadInput(
            "The tests of a program hold no test. Give unittest.TestCase classes, or a function check(candidate)."
        )
    return tree


def _imported(tests: ast.Module) -> list[str]:
    """Names of all modules that the tests use; what they take from one may be a module too."""
    found: dict[str, None] = {}
    known: dict[str, str] = {}  # name in the tests -> module
    for node in ast.walk(tests):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
            known |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= dict.fromkeys([node.module, *names.values()])
            known |= names
    for node in ast.walk(tests):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            found[f"{known[node.value.id]}.{node.attr}"] = None
    return list(found)


async def _supervised(request: dict[str, Any]) -> dict[str, Any]:
    """The supervisor's answer; when this returns or is cancelled, its process and all below it have ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-B", str(Path(__file__).with_name("supervisor.py"))),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        start_new_session=True,  # what interrupts us must leave it the time to clear up
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        answer = await process.stdout.read()
        errors = await process.stderr.read()
    finally:
        process.stdin.close()  # tells it that nobody waits any more
        status = await process.wait()
    if answer:
        return json.loads(answer)
    if status > 0:
        raise RuntimeError(f"The supervisor of a program failed:\n{errors.decode(errors='replace')}")
    return {  # only a program without a pid namespace of its own can reach it, or the kernel where memory is short
        "outcome": "ended early",
        "detail": f"its supervisor was ended by signal {-status}",
        "output": "",
        "seconds": 0.0,
        "enforced": [],
        "missing": ["pid namespace"],
    }


_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def _slot() -> asyncio.Semaphore:
    """Of this event loop. More programs than cores would make each other run into their wall-clock limits."""
    cores = len(os.sched_getaffinity(0))
    return _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(cores))


def _packages() -> list[str]:
    """Folders of the interpreter and of what is installed for it."""
    found = {sys.prefix, sys.base_prefix}
    found |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    found |= {os.path.realpath(path) for path in found}
    return sorted(found)


def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass  # in a mount namespace it has stayed empty, and the supervisor has removed it
    except OSError:
        for command in (("chmod", "-R", "u+rwx"), ("rm", "-rf")):  # at any depth, which shutil does not manage
            subprocess.run([*command, "--", folder], stderr=subprocess.DEVNULL, check=False)
