"""Sweeps by each launcher, with jobs of processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import program
import pytest
from commands import finished
from marks import slow

from collab.app import cli
from collab.app.compose import load_config
from collab.app.sweep import Job, Sweep, summary
from collab.util.errors import BadInput

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, sys
from collab.app.cli import main
from collab.util.errors import BadInput
from collab.util.processes import rank

SHOWN = ("SLURM_PROCID", "MASTER_PORT")

def run(config):
    found = {name: os.environ.get(name) for name in SHOWN}
    with open(f"{config.output_dir}/ran.jsonl", "a") as file:
        file.write(json.dumps({"seed": config.seed, **found}) + "\\n")
    if rank() == 0:
        with open(f"{config.output_dir}/run.json", "w") as file:
            json.dump({"entry": "train", "id": "x", "started": "", "scores": {}, "seconds": {}}, file)
    print("at work")
    if config.seed == 2:
        raise BadInput("seed two is refused.")
    if config.seed == 5:
        raise RuntimeError("a defect")

main("train", run)
"""


def command(*arguments, cwd, **environment):
    (cwd / "program.py").write_text(PROGRAM)
    return finished(str(cwd / "program.py"), *arguments, cwd=cwd, env={"PYTHONPATH": str(ROOT), **environment})


def command_alone(*arguments, cwd):
    """In an interpreter of its own: a process that is forked waits for the workers of joblib for ever."""
    (cwd / "program.py").write_text(PROGRAM)
    typed = [sys.executable, "program.py", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(typed, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def ran(folder):
    """Seed -> what its job wrote, over all of its processes."""
    found = {}
    for file in sorted(folder.glob("multirun/*/*/ran.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[lines[0]["seed"]] = lines
    return found


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        slow(["hydra/launcher=submitit_local"]),
        slow(["sweep=ray", "hydra.launcher.num_gpus=0"]),
    ],
)
def test_a_launcher_runs_the_jobs_and_all_are_told(launcher, tmp_path):
    done = command_alone("-m", "seed=1,2", "name=x", *launcher, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert set(ran(tmp_path)) == {1, 2}
    (sweep,) = tmp_path.glob("multirun/*")
    head, *lines = done.stdout[done.stdout.index("Sweep:") :].splitlines()
    assert head == "Sweep: 1 of 2 jobs finished, 1 failed."
    places = ("0-x-seed1", "1-x-seed2/output.log")
    endings = ("finished", "FAILED with exit status 1")
    for line, place, ending in zip(lines, places, endings, strict=True):
        assert ending in line and line.endswith(str((sweep / place).relative_to(tmp_path)))
    assert (sweep / places[1]).read_text().endswith("error: seed two is refused.\n")
    assert (sweep / places[0] / "output.log").read_text() == "at work\n"


def test_a_job_that_slurm_puts_back_goes_on_unless_it_is_done(tmp_path):
    typed = ["-m", "seed=1", "name=x", "hydra.sweep.dir=multirun/mine"]
    assert command(*typed, cwd=tmp_path).returncode == 0
    again = command(*typed, cwd=tmp_path)
    assert again.returncode == 1 and "has an unfinished run, which is not overwritten" in again.stderr
    assert command(*typed, cwd=tmp_path, SLURM_RESTART_COUNT="1").returncode == 0
    assert len(ran(tmp_path)[1]) == 2
    (tmp_path / "multirun" / "mine" / "0-x-seed1" / "results.json").write_text("{}")
    done = command(*typed, cwd=tmp_path, SLURM_RESTART_COUNT="2")
    assert "Sweep: 1 of 1 jobs finished" in done.stdout and len(ran(tmp_path)[1]) == 2


SECOND_TASK = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "3"}


def test_a_job_that_fails_on_the_second_task_leaves_it_to_the_next_job_with_a_port_of_its_own(tmp_path):
    done = command("-m", "seed=5,7", "name=x", cwd=tmp_path, **SECOND_TASK)
    assert done.returncode == 1 and "RuntimeError: a defect" in done.stderr
    assert list(ran(tmp_path)) == [5, 7]
    assert [found[0]["MASTER_PORT"] for found in ran(tmp_path).values()] == ["19568", "19569"]
    assert [place.name for place in tmp_path.glob("multirun/*")] == ["slurm-1234567.3"]


@pytest.mark.parametrize(
    ("typed", "rank", "error"),
    [
        ("seed=2", 1, "seed two is refused."),  # met by the run
        ("seed=2", 0, "seed two is refused."),
        ("task.train_file=nowhere.jsonl", 1, "There is no file nowhere.jsonl"),  # met before it
    ],
)
def test_what_the_second_process_refuses_is_told_once_the_first_has_had_the_time_to_speak(
    typed, rank, error, tmp_path, monkeypatch, capsys
):
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        assert not capsys.readouterr().err

    monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(sys, "argv", ["train.py", typed])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main("train", program.run)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith(f"error: {error}") and "Traceback" not in said
    assert [seconds > 5 for seconds in waits] == [True] * rank


@pytest.mark.parametrize(
    ("name", "extra"),
    [("joblib", "sweep"), ("submitit_local", "sweep"), ("submitit_slurm", "sweep"), ("ray", "ray")],
)
def test_a_launcher_that_is_not_installed_is_told_by_its_extra(name, extra, monkeypatch):
    from hydra.core.config_store import ConfigStore

    load_config("train")  # Hydra looks for plugins once
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{name}.yaml")
    with pytest.raises(
        BadInput, match=rf"^hydra/launcher/{name} comes with the extra `{extra}`.*pip install 'collab-llm\[{extra}\]'"
    ):
        load_config("train", [f"hydra/launcher={name}"])
    if name != "submitit_local":
        with pytest.raises(BadInput, match=rf"pip install 'collab-llm\[{extra}\]'"):
            load_config("train", [f"sweep={name.removeprefix('submitit_')}"])


def test_jobs_without_a_result_are_counted(tmp_path):
    sweep = Sweep([], tmp_path, num_jobs=4, jobs=[Job(["seed=1"], Path("a"), 0), Job(["seed=20"], Path("b"), -9)])
    assert summary(sweep).splitlines() == [
        "Sweep: 1 of 4 jobs finished, 1 failed, 2 without a result.",
        "  seed=1   finished            a",
        "  seed=20  FAILED by signal 9  b",
    ]
    nothing = Sweep([], tmp_path, num_jobs=2)
    assert summary(nothing) == "Sweep: 0 of 2 jobs finished, 0 failed, 2 without a result." and not nothing.went_well()
