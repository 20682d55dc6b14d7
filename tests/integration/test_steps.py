"""`benchmarks/steps.py` on commands that take no time."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import steps
from benchmarks.steps import Step, StepFailed, run_steps
from collab.util.errors import BadInput

# Appends its name to a file and makes its folder, as a command of ours would.
CODE = """
import os, sys
folder, code = sys.argv[1], int(sys.argv[2])
os.makedirs(folder, exist_ok=True)
open(folder + "/made", "a").write(os.environ["OMP_NUM_THREADS"] + "\\n")
open(os.path.dirname(folder) + "/order", "a").write(os.path.basename(folder) + "\\n")
print("one line\\nand another")
sys.exit(code)
"""
# A job for each value of its last argument; the one of the value 2 fails.
SWEEP = """
import os, sys
folder, values = sys.argv[1], sys.argv[2].partition("=")[2].split(",")
open(os.path.dirname(folder) + "/order", "a").write(" ".join(values) + "\\n")
for value in values:
    os.makedirs(folder + "/" + value)
    if not (value == "2" and os.path.exists(os.path.dirname(folder) + "/broken")):
        open(folder + "/" + value + "/results.json", "w").write("{}")
sys.exit(os.path.exists(os.path.dirname(folder) + "/broken"))
"""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "POLL", 0.005)
    monkeypatch.setattr(steps, "cores", lambda: 4)


def step(folder: Path, name: str, *needs: str, code: int = 0, resumes: bool = False) -> Step:
    return Step(name, ("-c", CODE, str(folder / name), str(code)), needs, resumes)


def order(folder: Path) -> list[str]:
    return (folder / "order").read_text().splitlines()


def test_needs_come_first_and_what_is_finished_is_left_alone(tmp_path: Path, capsys: Any) -> None:
    todo = [step(tmp_path, "a"), step(tmp_path, "b", "a"), step(tmp_path, "c"), step(tmp_path, "d", "b", "c")]
    records = run_steps(todo, tmp_path, jobs=2)
    assert sorted(order(tmp_path)[:2]) == ["a", "c"] and order(tmp_path)[2:] == ["b", "d"]
    assert (tmp_path / "a/made").read_text() == "2\n" and (tmp_path / "d/made").read_text() == "4\n"  # alone at last
    assert (tmp_path / "b.log").read_text() == "one line\nand another\n"
    assert records["d"]["command"] == shlex.join(("python", *todo[3].command)) and records["d"]["threads"] == 4
    assert 0 < steps.step_seconds(records["a"]) <= steps.wall_seconds(records) < 60
    assert run_steps(todo, tmp_path, jobs=2) == records and len(order(tmp_path)) == 4
    assert capsys.readouterr().out.count("finished before") == 4


def test_what_was_cut_off_is_begun_again_with_all_that_needs_it(tmp_path: Path) -> None:
    todo = [step(tmp_path, "a"), step(tmp_path, "b", resumes=True), step(tmp_path, "c", "a")]
    run_steps(todo, tmp_path, jobs=1)
    for name in ("a", "b"):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps({**record, "finished": False}))
    run_steps(todo, tmp_path, jobs=1)
    assert order(tmp_path) == ["a", "b", "c"] * 2
    lines = {name: len((tmp_path / name / "made").read_text().splitlines()) for name in "abc"}
    assert lines == {"a": 1, "b": 2, "c": 1}  # the command of b goes on by itself, the others start from nothing


def test_a_step_of_another_command_is_refused_before_anything_runs(tmp_path: Path) -> None:
    run_steps([step(tmp_path, "a")], tmp_path, jobs=1)
    other = [step(tmp_path, "new"), Step("a", (*step(tmp_path, "a").command, "seed=2"))]
    with pytest.raises(BadInput, match=r"a was made with another command: '' there, 'seed=2' here"):
        run_steps(other, tmp_path, jobs=1)
    assert order(tmp_path) == ["a"]
    (tmp_path / "b").mkdir()
    with pytest.raises(BadInput, match=r"b is there, and b\.json, which says what made it, is not"):
        run_steps([step(tmp_path, "b")], tmp_path, jobs=1)


def test_a_failure_tells_its_log_and_starts_nothing_else(tmp_path: Path) -> None:
    todo = [step(tmp_path, "a", code=3), step(tmp_path, "b", "a"), step(tmp_path, "c")]
    with pytest.raises(StepFailed, match=r"(?s)a ended with exit status 3:\n  one line\n  and another\nAll that it"):
        run_steps(todo, tmp_path, jobs=1)
    assert order(tmp_path) == ["a"]
    # What was refused before it made its folder may be given another command.
    (tmp_path / "a/made").unlink()
    (tmp_path / "a").rmdir()
    run_steps([step(tmp_path, "a")], tmp_path, jobs=1)


def test_a_sweep_goes_on_with_the_jobs_that_it_lacks(tmp_path: Path) -> None:
    todo = [Step("sweep", ("-c", SWEEP, str(tmp_path / "sweep")), sweep=("seed", (1, 2, 3)))]
    (tmp_path / "broken").touch()
    with pytest.raises(StepFailed):
        run_steps(todo, tmp_path, jobs=1)
    (tmp_path / "broken").unlink()
    records = run_steps(todo, tmp_path, jobs=1)
    assert order(tmp_path) == ["1 2 3", "2"]
    assert records["sweep"]["command"].endswith("seed=1,2,3") and len(records["sweep"]["spans"]) == 2


def test_two_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="Another process is writing into"):
            run_steps([step(tmp_path, "a")], tmp_path, jobs=1)


def test_the_wall_counts_what_ran_beside_each_other_once() -> None:
    spans = {"a": [[0, 10]], "b": [[2, 4], [8, 15]], "c": [[20, 21]]}
    assert steps.wall_seconds({name: {"spans": found} for name, found in spans.items()}) == 16


def test_figures_name_the_commit_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert steps.commit() == ""
    (tmp_path / "file").write_text("one")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "first"], ["tag", "v1"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    clean = steps.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "file").write_text("two")
    assert steps.commit() == f"{clean}-dirty"


def test_a_folder_has_a_name_that_needs_no_quotes(tmp_path: Path) -> None:
    assert steps.output_folder(steps.ROOT / "outputs" / "table") == Path("outputs/table")
    with pytest.raises(BadInput, match="must have nothing but letters"):
        steps.output_folder(tmp_path / "a=b")
