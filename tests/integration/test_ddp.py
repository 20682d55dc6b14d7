"""Two processes on the CPU, launched by torchrun as a user would, against one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Runner

ROOT = Path(__file__).parents[2]


def first_step(folder: Path) -> dict[str, float]:
    with (folder / "csv" / "metrics.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["train/mr"])
    return {name: float(row[name]) for name in ("train/mr", "train/interactivity", "train/reply_tokens")}


@pytest.mark.timeout(600)
def test_two_processes_roll_out_and_learn_as_one_does(runner: Runner, tiny_model: Path, tmp_path: Path) -> None:
    overrides = [*runner.training, "algorithm=grpo", f"model.path={tiny_model}", "logger=csv"]
    commands = {
        "one": [sys.executable, "train.py", *overrides],
        "two": [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"),
            *("--rdzv-endpoint=localhost:0", "train.py", *overrides, "strategy=ddp", "trainer.devices=2"),
        ],
    }
    for name, command in commands.items():
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "trainer.accelerator=cpu", f"output_dir={tmp_path / name}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    # The same contexts, candidates and futures, wherever they are played; the mean is over both processes.
    assert first_step(tmp_path / "two") == pytest.approx(first_step(tmp_path / "one"), rel=1e-5)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["policies"] for name in commands)
    assert two["base"] == one["base"]
    assert two["trained"]["mr"]["n"] == one["trained"]["mr"]["n"] == 2
    lines = [(tmp_path / "two" / f"transcripts{part}.jsonl").read_text() for part in ("", "-rank1")]
    train = [json.loads(line) for text in lines for line in text.splitlines() if json.loads(line)["phase"] == "train"]
    assert len(train) == 2 * 2 * 3  # steps, goals, candidates
