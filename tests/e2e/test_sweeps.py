"""Sweeps that train: several jobs at once, and jobs of several processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import ROOT, TORCHRUN

if TYPE_CHECKING:
    from conftest import Runner

TWO = ("strategy=ddp", "trainer.devices=2")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("start", "places"),
    [
        pytest.param((), ("hydra/launcher=joblib",), id="joblib"),
        pytest.param((), ("sweep=joblib", *TWO), id="joblib, two processes each"),
        pytest.param((), ("hydra/launcher=submitit_local", *TWO), id="submitit_local, two processes each"),
        pytest.param((), ("sweep=ray", "hydra.launcher.num_gpus=0"), id="ray"),
        pytest.param((), TWO, id="one after the other, two processes each"),
        pytest.param(TORCHRUN, ("strategy=ddp",), id="one after the other, in those of torchrun"),
    ],
)
def test_the_jobs_train(
    start: tuple[str, ...], places: tuple[str, ...], runner: Runner, tiny_model: Path, tmp_path: Path
) -> None:
    small = [*runner.training, f"model.path={tiny_model}", "algorithm=grpo", "trainer.accelerator=cpu"]
    small += ["trainer.max_steps=1", "threads=1", "trainer.goals_per_step=2"]
    typed = [sys.executable, *start, "train.py", *small, "-m", "seed=1,2", *places, f"hydra.sweep.dir={tmp_path}/jobs"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(typed, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sweep: 2 of 2 jobs finished, 0 failed." in done.stdout
    several = bool(start) or "trainer.devices=2" in places
    for seed in (1, 2):
        (folder,) = (tmp_path / "jobs").glob(f"*-seed{seed}")
        assert json.loads((folder / "results.json").read_text())["policies"]["trained"]["reward"]["n"] == 2
        with (folder / "csv" / "metrics.csv").open() as file:
            assert sum(bool(row["train/mr"]) for row in csv.DictReader(file)) == 1
        assert (folder / "transcripts-rank1.jsonl").is_file() == several
