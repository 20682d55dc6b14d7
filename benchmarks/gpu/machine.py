"""Parts of the GPU check on the machine: what it has, how fast it is, and the tests marked gpu."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.process import ROOT, Check, Child, Figure, Figures, last_lines, tried

GPU_TESTS = ("integration/test_graphs.py", "integration/test_attention.py", "integration/test_benchmarks.py")
TEST_SECONDS = 80  # for each test
TESTS_SECONDS = 100  # for all of these files, which run beside each other; less than the part's limit
_RESULT = re.compile(r"^\S+::(\S+) *(PASSED|FAILED|SKIPPED|ERROR)?", re.MULTILINE)  # no word: the test still ran
_REASON = re.compile(r"^(?:FAILED|ERROR) \S+::(\S+) - (.*)", re.MULTILINE)
_RUNS = 10  # of what is timed


def prepare(check: Check) -> Figures:
    """Make the default model's folder; say where everything runs."""
    import torch

    from benchmarks.gpu.models import default_model

    tokenizer = Path(check.tokenizer) if check.tokenizer else None
    weights = default_model(check.folder / "cache", tokenizer, check.tiny)
    (check.folder / "weights.txt").write_text(weights, encoding="utf-8")
    yield Figure("default model", weights)
    if check.device == "cuda":
        yield from tried("device", _gpu)
    else:
        yield Figure("device", f"CPU, {torch.get_num_threads()} threads")
    yield Figure("Python", platform.python_version())
    for name in ("torch", "transformers", "lightning", "peft", "tokenizers", "numpy", "trl", "flash-attn", "vllm"):
        yield Figure(name, _version(name) or "not installed")


def _gpu() -> Figures:
    import torch
    from torch.cuda import nccl

    yield Figure("device", torch.cuda.get_device_name())
    yield Figure("memory", torch.cuda.get_device_properties(0).total_memory / 1e9, "GB")
    yield Figure("CUDA", str(torch.version.cuda))
    yield Figure("NCCL", ".".join(map(str, nccl.version())))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(check: Check) -> Figures:
    """Requirements, imports, how fast memory and matrix products are."""
    import torch

    from benchmarks.gpu.wheels import requirements

    for requirement in requirements():
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield Figure(f"requirement {requirement}", found or "not installed", note="not as setup.cfg wants it")
    modules = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "collab").rglob("*.py"))
    for name in modules:
        if name.endswith(("__main__", "sandbox.worker", "sandbox.supervisor")):  # programs
            continue
        try:
            importlib.import_module(name.removesuffix(".__init__"))
        except Exception as error:
            yield Figure(f"import {name}", None, ok=False, note=f"{type(error).__name__}: {error}")
    yield Figure("modules imported", len(modules))
    yield Figure("copy bandwidth, read and written", copy_bandwidth(check.device) / 1e9, "GB/s")
    size = 256 if check.tiny else 8192
    a, b = (torch.randn(size, size, device=check.device, dtype=check.dtype) for _ in range(2))
    yield Figure("matrix product", 2 * size**3 / _seconds(lambda: a @ b) / 1e12, "TFLOP/s", note=str(check.dtype))


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a copy on the device."""
    import torch

    source = torch.ones((4 if device == "cpu" else 4096) << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _seconds(work: Any) -> float:
    """Of one call, the mean of several after two that do not count."""
    from benchmarks.measure import seconds

    for _ in range(2):
        work()
    return seconds(lambda: [work() for _ in range(_RUNS)]) / _RUNS


def gpu_tests(check: Check) -> Figures:
    """The tests that are marked `gpu`, a process for each file; a rehearsal only collects them."""
    files = [GPU_TESTS] if check.tiny else [(name,) for name in GPU_TESTS]
    running, end = [], time.monotonic() + TESTS_SECONDS
    for number, names in enumerate(files):
        log = check.folder / f"tests{number}.log"
        options = ["--collect-only", "-q"] if check.tiny else ["-v", f"--timeout={TEST_SECONDS}"]
        places = [f"tests/{name}" for name in names]
        # A deprecation in other versions must not hide what a test says.
        common = ["-m", "gpu", "-p", "no:cacheprovider", "-W", "default::FutureWarning"]
        wide = {"COLUMNS": "300"}  # so that pytest does not cut what it says
        running.append((names, log, Child(["-m", "pytest", *common, *options, *places], log, wide, check.fork)))
    for names, log, child in running:
        code = child.wait(end - time.monotonic())
        child.kill()
        if check.tiny:
            found = [name for name in names if f"tests/{name}::" in log.read_text()]
            yield Figure("files with marked tests", len(found), ok=code == 0 and len(found) == len(names))
        else:
            yield from _results(names[0], code, log)


def _results(file: str, code: int | None, log: Path) -> Figures:
    """A figure for each test of a file, from the lines that pytest printed, and one for a pytest that failed."""
    text = log.read_text(encoding="utf-8", errors="replace")
    reasons = dict(_REASON.findall(text))
    for name, word in _RESULT.findall(text):
        yield Figure(name, word.lower() or "not finished", ok=word == "PASSED", note=reasons.get(name, "")[:200])
    if code != 0:
        print(last_lines(log, 40))
        ended = f"was stopped after {TESTS_SECONDS} s" if code is None else f"ended with {code}"
        yield Figure(file, None, ok=False, note=f"pytest {ended}: {last_lines(log)[:200]}")
