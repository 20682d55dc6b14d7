"""Two processes on the CPU against one; by torchrun, as a user would launch them, where its part matters."""

from __future__ import annotations

import csv
import functools
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import joined, start, start_two
from safetensors.torch import load_file

STRATEGIES = {
    "ddp": ["strategy=ddp"],
    "fsdp": ["strategy=fsdp"],
    "shards": ["strategy=fsdp", "strategy.sharded_checkpoints=true"],
}

pytestmark = pytest.mark.timeout(600)


def launch(processes: int, entry: str, arguments: Sequence[str], log: Path) -> list[Any]:
    return start_two(entry, arguments, log) if processes == 2 else [start(entry, arguments, log)]


@pytest.fixture(scope="module")
def overrides(letters: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small run with three goals to validate and to test on, which two processes cannot share evenly."""
    files = []
    for split, names in (("val", ("heron", "plum", "drum")), ("test", ("mill", "fig", "horn"))):
        file = tmp_path_factory.mktemp("goals") / f"{split}.jsonl"
        records = [
            {
                "id": f"{split}-{name}",
                "single_turn_prompt": f"Write a notice about the {name}.",
                "single_turn_completion": f"The {name} is here.",
                "single_turn_metadata": {"title": f"the {name}", "form": "notice"},
            }
            for name in names
        ]
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        files.append(f"task.{split}_file={file}")
    return [*letters, *files, "model.lora.enabled=false"]


@pytest.fixture(scope="module")
def alone(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    log = folder.parent / "log"
    joined(launch(1, "train", [*overrides, f"output_dir={folder}"], log), log)
    return folder


def assert_same_run(found: Path, expected: Path) -> None:
    """All that is logged, the evaluations, what was said, and the policies."""
    assert_same(metrics(found), metrics(expected))
    assert_same(*(json.loads((folder / "results.json").read_text())["policies"] for folder in (found, expected)))
    assert said(found) == said(expected)
    for name in ("policy", "policy_last"):
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (found, expected))
        assert ours.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-4, rtol=1e-4, msg=f"{name}: {key}")


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif expected is None or isinstance(expected, str):
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)


def metrics(folder: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv, without what is measured by the clock; the KL is read off other tokens."""
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    timed = re.compile("rollout_|_seconds|train/kl$")
    return [{k: float(v) for k, v in row.items() if v and not timed.search(k)} for row in rows]


def said(folder: Path) -> list[str]:
    lines = [json.loads(line) for path in folder.glob("transcripts*.jsonl") for line in path.read_text().splitlines()]
    assert lines
    return sorted(f"{r['phase']} {r['policy']} {r.get('step')} {r['goal']} {r['messages']}" for r in lines)


@pytest.mark.parametrize(
    "strategy", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "fsdp")), "shards"]
)
def test_two_processes_train_as_one_does(strategy: str, alone: Path, overrides: list[str], tmp_path: Path) -> None:
    typed = [*overrides, *STRATEGIES[strategy], f"output_dir={tmp_path / 'two'}"]
    joined(launch(2, "train", typed, tmp_path / "log"), tmp_path / "log")
    assert_same_run(tmp_path / "two", alone)
    learned, base = (metrics_of(alone, name) for name in ("trained", "base"))
    assert learned > base + 0.1


@pytest.mark.slow
def test_two_processes_overlap_rollouts_and_updates_as_one_does(overrides: list[str], tmp_path: Path) -> None:
    """No process waits for another in the thread that plays, and goals of the next steps are dealt out as theirs."""
    overlapped = [*overrides, "rollout.max_staleness=2"]
    for processes, name in ((1, "one"), (2, "two")):
        typed = [*overlapped, *STRATEGIES["ddp"], f"output_dir={tmp_path / name}"]
        joined(launch(processes, "train", typed, tmp_path / "log"), tmp_path / "log")
    assert_same_run(tmp_path / "two", tmp_path / "one")
    ages = [row["train/staleness"] for row in metrics(tmp_path / "two") if "train/staleness" in row]
    assert ages == [0, 1, 2, 2]


def metrics_of(folder: Path, policy: str) -> float:
    found: float = json.loads((folder / "results.json").read_text())["policies"][policy]["reward"]["mean"]
    return found


@pytest.mark.parametrize(
    ("before", "after", "strategy"),
    [
        (1, 2, "fsdp"),
        pytest.param(2, 1, "shards", marks=pytest.mark.slow),
        pytest.param(1, 2, "ddp", marks=pytest.mark.slow),
        pytest.param(2, 1, "fsdp", marks=pytest.mark.slow),
        pytest.param(2, 2, "shards", marks=pytest.mark.slow),
        pytest.param(1, 2, "shards", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(
    before: int, after: int, strategy: str, alone: Path, overrides: list[str], tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    given = {1: [], 2: STRATEGIES[strategy]}
    processes = launch(before, "train", [*overrides, *given[before], f"output_dir={folder}"], log)
    while not (folder / "checkpoints" / "step-000002.ckpt").exists():
        assert all(process.is_alive() for process in processes), log.read_text()
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.join()
    assert not (folder / "results.json").exists()
    strategies = given[after] or ["strategy=auto", "strategy.sharded_checkpoints=false"]
    again = tmp_path / "again"
    joined(launch(after, "train", [f"resume={folder}", *strategies], again), again)
    assert "going on from" in again.read_text() and "not used" not in again.read_text()
    assert_same(*(json.loads((path / "results.json").read_text())["policies"] for path in (folder, alone)))


# torchrun, whose two processes are forked from one that has imported everything.
LAUNCHED = """
from commands import TORCHRUN
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args
from collab.app.cli import main

config, _, _ = config_from_args(parse_args([*TORCHRUN[2:], "--start-method=fork", "train.py"]))
elastic_launch(config, main)("train")
"""


def test_a_process_that_fails_ends_all_with_its_message(overrides: list[str], tmp_path: Path) -> None:
    script, log = tmp_path / "launch.py", tmp_path / "log"
    script.write_text(LAUNCHED)
    failing = "task.metrics.bleu.target=commands.FailsOnTheSecond"
    process = start(str(script), [*overrides, "strategy=fsdp", failing, f"output_dir={tmp_path / 'run'}"], log)
    while "nothing to say about train" not in (log.read_text() if log.is_file() else ""):
        assert process.is_alive(), log.read_text()
        time.sleep(0.05)
    process.join(120)  # a collective that waits for the other one gives up later
    assert process.exitcode == 1, log.read_text()


def test_input_that_is_refused_is_told_once(overrides: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    typed = [*overrides, "strategy=fsdp", "trainer.goals_per_step=3", f"output_dir={tmp_path / 'run'}"]
    first, second = start_two("train", typed, log)
    first.join()
    second.kill()  # as torchrun does; it would wait for that
    second.join()
    assert first.exitcode == 1
    said = log.read_text()
    assert said.count("must be a multiple of the number of processes (2") == 1, said
    assert not (tmp_path / "run").exists()


STEPS = """
import dataclasses, os, sys, torch
import re
from datetime import timedelta
from stepping import fit, whole
from test_update import ALGORITHMS, TEMPERATURE, make_groups, make_lm, moved
from collab.lm.loading import checkpoint_activations
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
    for case in sys.argv[3:]:
        name, adapter = case.split("-")[0], case.endswith("lora")
        target, config, _ = ALGORITHMS[name]
        config = dataclasses.replace(config, max_grad_norm=0.5, target_kl=1e-4)
        sharding, made = None, "auto" if processes == 1 else "ddp"
        if strategy == "fsdp":
            sharding = Sharding(lambda: empty(adapter))
            made = ShardedStrategy(processes, False, timedelta(minutes=1))
        def load():
            lm = moved(make_lm("Llama", adapter))
            if strategy == "fsdp":  # what is recomputed has to be gathered again
                checkpoint_activations(lm)
            return lm

        module = with_sgd(target)(config, load, None, TEMPERATURE, 3, sharding)
        trainer, scored = fit(module, share, steps=3, devices=processes, strategy=made)
        weights = whole({n: p.detach() for n, p in module.named_parameters() if p.requires_grad})
        kept = {"gradients": scored.gradients, "logged": scored.logged, "weights": weights}
        torch.save(kept, f"{sys.argv[1]}/{strategy}-{case}-{rank}.pt")
"""
# Units of four kinds: tokens, pairs, tokens scaled over the whole rollout, replies.
STEPPED = [f"{name}-{kind}" for name in ("grpo_kl", "dpo", "ppo", "sft") for kind in ("lora", "full")]
FEW = [("ddp", "grpo_kl-lora"), ("ddp", "sft-full"), ("fsdp", "grpo_kl-lora"), ("fsdp", "ppo-full")]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """What three steps on the same scored groups make of the same policies, with one process and with two."""

    @functools.cache
    def made(few: bool) -> Path:
        folder = tmp_path_factory.mktemp("steps")
        script, log = folder / "steps.py", folder / "log"
        script.write_text(STEPS)
        cases = {strategy: [c for s, c in FEW if s == strategy] if few else STEPPED for strategy in ("ddp", "fsdp")}
        joined(launch(1, str(script), [str(folder), "alone", *dict.fromkeys(sum(cases.values(), []))], log), log)
        for strategy, wanted in cases.items():
            joined(launch(2, str(script), [str(folder), strategy, *wanted], log), log)
        return folder

    return made


@pytest.mark.parametrize(
    ("strategy", "case"),
    [
        pytest.param(strategy, case, marks=[] if (strategy, case) in FEW else pytest.mark.slow)
        for strategy in ("ddp", "fsdp")
        for case in STEPPED
    ],
)
def test_processes_with_unequal_shares_of_a_step_learn_as_one_does(
    steps: Callable[[bool], Path], strategy: str, case: str
) -> None:
    folder = steps((strategy, case) in FEW)
    files = [folder / f"{strategy}-{case}-{rank}.pt" for rank in (0, 1)]
    one = torch.load(folder / f"alone-{case}-0.pt", weights_only=True)
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
            names = sorted(expected.keys() - ({"kl"} if case.startswith(("ppo", "sft")) else set()))
            assert [found[n] for n in names] == pytest.approx([expected[n] for n in names], rel=1e-4, abs=1e-6)
