"""Two processes on the CPU, launched by torchrun as a user would, against one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from conftest import Runner

ROOT = Path(__file__).parents[2]


def first_step(folder: Path) -> dict[str, float]:
    with (folder / "csv" / "metrics.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["train/mr"])
    return {name: float(row[name]) for name in ("train/mr", "train/interactivity", "train/reply_tokens")}


def launch(processes: int) -> list[str]:
    """What comes before a script's name."""
    if processes == 1:
        return [sys.executable]
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    return [*run, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


def run(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_two_processes_roll_out_and_learn_as_one_does(runner: Runner, tiny_model: Path, tmp_path: Path) -> None:
    overrides = [*runner.training, "algorithm=grpo", f"model.path={tiny_model}", "logger=csv"]
    for name, processes in (("one", 1), ("two", 2)):
        places = [] if processes == 1 else ["strategy=ddp", "trainer.devices=2"]
        given = [*overrides, *places, "trainer.accelerator=cpu", f"output_dir={tmp_path / name}"]
        run([*launch(processes), "train.py", *given])
    # The same contexts, candidates and futures, wherever they are played; the mean is over both processes.
    assert first_step(tmp_path / "two") == pytest.approx(first_step(tmp_path / "one"), rel=1e-5)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["policies"] for name in ("one", "two"))
    assert two["base"] == one["base"]
    assert two["trained"]["mr"]["n"] == one["trained"]["mr"]["n"] == 2
    train = {
        name: sorted(
            (row["step"], row["goal"], row["candidate"])
            for path in (tmp_path / name).glob("transcripts*.jsonl")
            for row in map(json.loads, path.read_text().splitlines())
            if row["phase"] == "train"
        )
        for name in ("one", "two")
    }
    assert len(train["two"]) == 2 * (3 + 6)  # steps, candidates of a first and of a last turn
    assert train["two"] == train["one"]  # each goal of a step at its turn


STEPS = """
import os, sys, torch
from stepping import fit
from test_update import ALGORITHMS, TEMPERATURE, make_groups, make_lm, moved, with_head

processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
groups = make_groups()
shares = [[groups[:3], groups[3:]], [groups, []]]  # of each step, what the two processes get


def share(step):
    return sum(shares[step], []) if processes == 1 else shares[step][rank]


for name in sys.argv[2:]:
    target, config, _ = ALGORITHMS[name]
    module = target(config, lambda: make_lm("Llama", True), None, TEMPERATURE, 2)
    module.configure_model()
    moved(with_head(module).policy.lm)
    passes = []
    module.policy.register_forward_hook(lambda *_: passes.append(1))
    _, scored = fit(module, share, steps=2, devices=processes)
    kept = {"gradients": scored.gradients, "logged": scored.logged, "passes": len(passes)}
    torch.save(kept, f"{sys.argv[1]}/{name}-{processes}-{rank}.pt")
"""


@pytest.mark.timeout(600)
def test_processes_with_unequal_shares_of_a_step_learn_as_one_does(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text(STEPS)
    names = ("grpo_kl", "dpo", "ppo")  # units of three kinds: tokens, pairs, and tokens scaled over the whole rollout
    for processes in (1, 2):
        places = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "unit")])
        run([*launch(processes), str(tmp_path / "steps.py"), str(tmp_path), *names], PYTHONPATH=places)
    for name in names:
        files = [tmp_path / f"{name}-{where}.pt" for where in ("1-0", "2-0", "2-1")]
        assert_same_steps(*(torch.load(file, weights_only=True) for file in files))


def assert_same_steps(one: dict[str, Any], *two: dict[str, Any]) -> None:
    assert two[0]["passes"] > two[1]["passes"] > 0
    for process in two:
        assert len(process["gradients"]) == len(one["gradients"]) == 2
        for found, expected in zip(process["gradients"], one["gradients"], strict=True):
            largest = max(float(gradient.abs().max()) for gradient in expected.values())
            assert found.keys() == expected.keys() and largest > 1e-3
            for name in expected:
                torch.testing.assert_close(found[name], expected[name], atol=1e-5 * largest, rtol=1e-4, msg=name)
        for found, expected in zip(process["logged"], one["logged"], strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
