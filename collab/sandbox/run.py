"""Runs programs that a policy has written, with their tests, in a sandbox; says whether the tests pass.

`run_program` starts each program in a process of its own under `supervisor.py`. The supervisor bounds its time and
memory and, as far as the kernel allows, shuts it off from other processes, files, the network, and this process's user
id and environment. A verdict's `enforced` names the locks that were in force; docs/sandbox.md explains the names.

Program and tests share one interpreter, because the tests of BigCodeBench and HumanEval call the program's functions,
pass them mocks and look into what they return. A verdict can therefore not be certain. `worker.py` says which tricks
fail; docs/sandbox.md says what is not prevented.
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
    """What one program may use: a limit for all its processes together, unless it says "each process".

    Attributes:
        seconds: Wall-clock time of program and tests, without the start of the interpreter.
        cpu_seconds: CPU time of each process, whole seconds.
        memory_bytes: Memory in use; also the address space of each process.
        processes: Processes and threads.
        file_bytes: Size of each file.
        disk_bytes: Size of all files together; enforced only in a mount namespace.
        output_bytes: Size of all that is printed.
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
    """The result of one program.

    Attributes:
        outcome: "passed": every test succeeded. "failed": the program does not run, a test did not succeed, or the
            program tampered with its tests. "ended early": its process ended before the tests were over. The others
            name the limit that it exceeded.
        detail: The reason, a traceback or a sentence; "" if it passed.
        output: What was printed, to stdout and stderr.
        seconds: Wall-clock time from the start of the program.
        enforced: Names of the limits and locks that were in force.
        missing: Names of the locks that this machine does not grant; empty under `strict`.
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
    """Run a program and then its tests in the sandbox. At most one program per CPU core runs at a time; others wait.

    Args:
        program: Python source, not trusted. A program that does not compile fails.
        tests: Python source, trusted: `unittest.TestCase` classes (BigCodeBench), `check(candidate)` (HumanEval), or
            both. It sees the program's global names. Its imports are imported before the program runs.
        entry_point: Name of the function that `check` is called with.
        limits: What the program may use; None takes the defaults.
        strict: Refuse to run unless everything can be enforced. Otherwise the verdict's `missing` names what was not.

    Raises:
        BadInput: The tests cannot be compiled, or contain neither kind; the sandbox cannot be set up here; with
            `strict`, something is missing. The program has not been run.
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
            answer = await supervised(request | {"folder": folder})
        finally:
            _remove(folder)
    if "refused" in answer:
        raise BadInput(
            f"A program of the policy was not run: {answer['refused']}. Run on a machine that allows it "
            f"(docs/sandbox.md says what it takes){', or set sandbox=auto, which enforces the rest' if strict else ''}."
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
            "The tests of a program hold no test; there must be one. Give unittest.TestCase classes, or a function "
            "check(candidate)."
        )
    return tree


def _imported(tests: ast.Module) -> list[str]:
    """Names of all modules that the tests may use; a name that they import from a module may be a module too."""
    names: list[str] = []
    known: dict[str, str] = {}  # name in the tests -> module
    for node in ast.walk(tests):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.append(alias.name)
                bound = alias.name if alias.asname else alias.name.split(".")[0]
                known[alias.asname or bound] = bound
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            for alias in node.names:
                names.append(f"{node.module}.{alias.name}")
                known[alias.asname or alias.name] = names[-1]
    for node in ast.walk(tests):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            names.append(f"{known[node.value.id]}.{node.attr}")
    return list(dict.fromkeys(names))


async def supervised(request: dict[str, Any]) -> dict[str, Any]:
    """The supervisor's answer; when this returns or is cancelled, its process and all below it have ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-B", str(Path(__file__).with_name("supervisor.py"))),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        start_new_session=True,  # an interrupt of this process must leave it the time to clear up
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        answer = await process.stdout.read()
        errors = await process.stderr.read()
    finally:
        process.stdin.close()  # says that nobody waits any more
        status = await process.wait()
    if answer:
        return json.loads(answer)
    if status > 0:
        raise RuntimeError(f"The supervisor of a program failed:\n{errors.decode(errors='replace')}")
    return {  # only a program without a pid namespace can have ended it, or the kernel when memory is short
        "outcome": "ended early",
        "detail": f"its supervisor was ended by signal {-status}",
        "output": "",
        "seconds": 0.0,
        "enforced": [],
        "missing": ["pid namespace"],
    }


_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def _slot() -> asyncio.Semaphore:
    """The semaphore of this event loop. With more programs than cores, all would exceed their wall-clock limits."""
    return _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(len(os.sched_getaffinity(0))))


def _packages() -> list[str]:
    """Folders of the interpreter and of its installed packages."""
    found = {sys.prefix, sys.base_prefix}
    found |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    found |= {os.path.realpath(path) for path in found}
    return sorted(found)


def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass  # with a mount namespace it stays empty, and the supervisor removes it
    except OSError:
        for command in (("chmod", "-R", "u+rwx"), ("rm", "-rf")):  # at any depth, unlike shutil
            subprocess.run([*command, "--", folder], stderr=subprocess.DEVNULL, check=False)
