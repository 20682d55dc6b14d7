"""Sweeps by each launcher, with jobs of processes of their own; SLURM is played by two scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from collab.app.compose import load_config
from collab.app.sweep import BASIC, LOCAL, SLURM, Job, Sweep, check_launcher, summary
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

main("train", run)
"""


def command(*arguments, cwd, **environment):
    (cwd / "program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    typed = [sys.executable, "program.py", *arguments]
    return subprocess.run(typed, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def ran(folder):
    """Seed -> what its job wrote, over all of its processes."""
    found = {}
    for file in sorted(folder.glob("multirun/*/*/ran.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[lines[0]["seed"]] = lines
    return found


@pytest.mark.parametrize(
    "launcher", [["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], ["hydra/launcher=submitit_local"]]
)
def test_a_launcher_runs_the_jobs_and_all_are_told(launcher, tmp_path):
    done = command("-m", "seed=1,2", "name=x", *launcher, cwd=tmp_path)
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


def test_a_sweep_is_submitted_to_slurm_with_a_task_for_each_process(slurm, tmp_path):
    places = ["trainer.devices=1", "trainer.num_nodes=2", "strategy=ddp", "hydra.launcher.partition=gpu"]
    done = command("-m", "sweep=slurm", "seed=1,7", "name=x", *places, cwd=tmp_path, PATH=slurm)
    assert done.returncode == 0, done.stderr
    assert "Sweep: 2 of 2 jobs finished, 0 failed." in done.stdout
    found = ran(tmp_path)
    for seed in (1, 7):
        assert sorted(line["SLURM_PROCID"] for line in found[seed]) == ["0", "1"]
    script, *_ = tmp_path.glob("multirun/*/.submitit/**/*_submission.sh")  # the same for each job
    options = dict(line[10:].partition("=")[::2] for line in script.read_text().splitlines() if "#SBATCH" in line)
    asked = ("nodes", "ntasks-per-node", "gpus-per-node", "partition", "time", "array", "cpus-per-task")
    assert [options[name] for name in asked] == ["2", "1", "1", "gpu", "1440", "0-1%2", "8"]
    assert not {"account", "qos", "mem"} & options.keys()  # the cluster's own


def test_a_job_that_slurm_puts_back_goes_on_unless_it_is_done(tmp_path):
    typed = ["-m", "seed=1", "name=x", "hydra.sweep.dir=multirun/mine"]
    assert command(*typed, cwd=tmp_path).returncode == 0
    again = command(*typed, cwd=tmp_path)
    assert again.returncode == 1 and "holds an unfinished run, which stays as it is" in again.stderr
    assert command(*typed, cwd=tmp_path, SLURM_RESTART_COUNT="1").returncode == 0
    assert len(ran(tmp_path)[1]) == 2
    (tmp_path / "multirun" / "mine" / "0-x-seed1" / "results.json").write_text("{}")
    done = command(*typed, cwd=tmp_path, SLURM_RESTART_COUNT="2")
    assert "Sweep: 1 of 1 jobs finished" in done.stdout and len(ran(tmp_path)[1]) == 2


SECOND_TASK = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "3"}


def test_a_job_that_fails_on_the_second_task_leaves_it_to_the_next_job(tmp_path):
    done = command("-m", "seed=2,7", "name=x", cwd=tmp_path, **SECOND_TASK)
    assert done.returncode == 1 and "error: seed two is refused." in done.stderr
    assert list(ran(tmp_path)) == [2, 7]


def test_jobs_of_several_tasks_in_one_allocation_have_ports_of_their_own(tmp_path):
    done = command("-m", "seed=1,7", "name=x", cwd=tmp_path, **SECOND_TASK)
    assert done.returncode == 0, done.stderr
    assert [found[0]["MASTER_PORT"] for found in ran(tmp_path).values()] == ["19568", "19569"]
    assert [place.name for place in tmp_path.glob("multirun/*")] == ["slurm-1234567.3"]


def refusal(launcher, *jobs):
    with pytest.raises(BadInput) as error:
        check_launcher(OmegaConf.create(launcher), [OmegaConf.create({"trainer": job}) for job in jobs])
    return str(error.value)


ONE = {"devices": 1, "num_nodes": 1}


def test_a_job_in_slurm_has_as_many_tasks_as_processes(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    launcher = {"_target_": SLURM, "tasks_per_node": 2, "nodes": 1}
    two = {"devices": 2, "num_nodes": 1}
    for job in (two, {"devices": "auto", "num_nodes": 1}):  # a job takes what SLURM has started
        check_launcher(OmegaConf.create(launcher), [OmegaConf.create({"trainer": job})])
    for job in (ONE, {"devices": 2, "num_nodes": 2}, {"devices": [0, 1], "num_nodes": 1}):
        said = refusal(launcher, two, job)
        assert f"trainer.devices={job['devices']}" in said and "Take sweep=slurm" in said
    assert "trainer.devices (a number)" in refusal(launcher | {"tasks_per_node": "auto"}, ONE | {"devices": "auto"})


@pytest.mark.parametrize(
    ("environment", "who"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, "torchrun"),
        ({"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "x"}, "SLURM"),
    ],
)
def test_a_command_that_is_several_processes_launches_no_jobs_elsewhere(environment, who, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joblib = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}
    said = refusal(joblib, ONE)
    assert (
        f"{who} has started this command 2 times" in said and "`python train.py -m ...`" in said and "(joblib)" in said
    )
    check_launcher(OmegaConf.create({"_target_": BASIC}), [OmegaConf.create({"trainer": ONE})])


def test_other_launchers_say_what_they_cannot(monkeypatch):
    assert "must be 1 for submitit_local" in refusal({"_target_": LOCAL, "tasks_per_node": 2, "nodes": 1}, ONE)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "there is none here" in refusal({"_target_": SLURM, "tasks_per_node": 1, "nodes": 1}, ONE)


@pytest.mark.parametrize("name", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_told_by_its_extra(name, monkeypatch):
    from hydra.core.config_store import ConfigStore

    load_config("train")  # Hydra looks for plugins once
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{name}.yaml")
    with pytest.raises(BadInput, match=rf"^hydra/launcher/{name} comes with the extra `sweep`.*pip install -e"):
        load_config("train", [f"hydra/launcher={name}"])
    if name != "submitit_local":
        with pytest.raises(BadInput, match=r"pip install -e '\.\[sweep\]'"):
            load_config("train", [f"sweep={name.removeprefix('submitit_')}"])


def test_jobs_that_left_no_word_are_counted(tmp_path):
    sweep = Sweep([], tmp_path, num_jobs=4, jobs=[Job(["seed=1"], Path("a"), 0), Job(["seed=20"], Path("b"), -9)])
    assert summary(sweep).splitlines() == [
        "Sweep: 1 of 4 jobs finished, 1 failed, 2 left no word.",
        "  seed=1   finished            a",
        "  seed=20  FAILED by signal 9  b",
    ]
    nothing = Sweep([], tmp_path, num_jobs=2)
    assert summary(nothing) == "Sweep: 0 of 2 jobs finished, 0 failed, 2 left no word." and not nothing.went_well()
