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
import dataclasses, os, sys, torch
from datetime import timedelta
from stepping import fit, whole
from test_update import ALGORITHMS, TEMPERATURE, make_groups, make_lm, moved
from collab.modules.sharding import Sharding, ShardedStrategy

processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
groups = make_groups()
shares = [[groups[:3], groups[3:]], [groups, []], [groups[:1], groups[1:]]]  # of each step, of the two processes


def share(step):
    return sum(shares[step], []) if processes == 1 else shares[step][rank]


def empty(adapter):
    with torch.device("meta"):
        return make_lm("Llama", adapter)


def with_sgd(target):
    class Descending(target):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.05)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)]

    return Descending


for strategy in sys.argv[2].split(","):
    for name in sys.argv[3:]:
        for adapter in (True, False):
            target, config, _ = ALGORITHMS[name]
            config = dataclasses.replace(config, max_grad_norm=0.5)
            sharding, made = None, "auto" if processes == 1 else "ddp"
            if strategy.startswith("fsdp"):
                sharding = Sharding(lambda: empty(adapter), replicas=2 if strategy == "fsdp_replicas" else 1)
                made = ShardedStrategy(processes, False, timedelta(minutes=1))
            load = lambda: moved(make_lm("Llama", adapter))
            module = with_sgd(target)(config, load, None, TEMPERATURE, 3, sharding)
            passes = []
            module.configure_model() if sharding is None else None
            trainer, scored = fit(module, share, steps=3, devices=processes, strategy=made)
            weights = whole({n: p.detach() for n, p in module.named_parameters() if p.requires_grad})
            kept = {"gradients": scored.gradients, "logged": scored.logged, "weights": weights}
            torch.save(kept, f"{sys.argv[1]}/{strategy}-{name}-{adapter}-{rank}.pt")
"""
# Units of four kinds: tokens, pairs, tokens scaled over the whole rollout, replies.
STEPPED = ("grpo_kl", "dpo", "ppo", "sft")


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three steps on the same scored groups make of the same policies, with one process and with two."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "steps.py").write_text(STEPS)
    for processes, strategies in ((1, "alone"), (2, "ddp,fsdp,fsdp_replicas")):
        places = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "unit")])
        run([*launch(processes), str(folder / "steps.py"), str(folder), strategies, *STEPPED], PYTHONPATH=places)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("algorithm", STEPPED)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp_replicas"])
def test_processes_with_unequal_shares_of_a_step_learn_as_one_does(
    steps: Path, strategy: str, algorithm: str, adapter: bool
) -> None:
    files = [steps / f"{strategy}-{algorithm}-{adapter}-{rank}.pt" for rank in (0, 1)]
    one = torch.load(steps / f"alone-{algorithm}-{adapter}-0.pt", weights_only=True)
    for process in (torch.load(file, weights_only=True) for file in files):
        assert len(process["gradients"]) == len(one["gradients"]) == 3
        pairs = zip([*process["gradients"], process["weights"]], [*one["gradients"], one["weights"]], strict=True)
        for found, expected in pairs:
            assert found.keys() == expected.keys()
            for name in expected:
                largest = float(expected[name].abs().max())
                torch.testing.assert_close(found[name], expected[name], atol=1e-4 * largest, rtol=0, msg=name)
        assert max(float(gradient.abs().max()) for gradient in one["gradients"][0].values()) > 1e-3
        for found, expected in zip(process["logged"], one["logged"], strict=True):
            # Where no loss needs the KL, each process reads it off one micro-batch.
            names = sorted(expected.keys() - ({"kl"} if algorithm in ("ppo", "sft") else set()))
            assert [found[n] for n in names] == pytest.approx([expected[n] for n in names], rel=1e-4, abs=1e-6)
