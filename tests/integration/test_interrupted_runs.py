"""Runs that are killed, interrupted or damaged, and what comes of them when they go on."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from conftest import ROOT, Runner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytestmark = pytest.mark.timeout(600)

SETTINGS = (
    "algorithm=grpo",
    "trainer.accelerator=cpu",
    "engine.deterministic=true",
    "logger=csv",
    "threads=1",
    "trainer.max_steps=4",
    "trainer.val_every=2",
    "checkpoint.every_n_steps=1",
    "sampler.group_size=4",
    "engine.max_batch=8",
    "task.metrics.bleu.target=commands.Early",
    "algorithm.schedule=linear",
    "algorithm.lr=0.05",
)


def policies(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())["policies"]


def transcripts(folder: Path) -> list[str]:
    return sorted((folder / "transcripts.jsonl").read_text().splitlines())


def rows(folder: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without what is measured by the clock."""
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "rollout_" not in k} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of a model that says letters, and learns within four steps which ones are wanted."""
    folder = tmp_path_factory.mktemp("letters")
    words = ["</s>", "<unk>", "user", "assistant", "system", *string.ascii_lowercase]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}assistant "
    tokenizer.save_pretrained(folder / "model")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(words), eos_token_id=0, initializer_range=0.5, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    goals = Runner(folder)
    return [*goals.training, *SETTINGS, f"model.path={folder / 'model'}"]


class Whole:
    """A run that nothing interrupts, and the seconds that it takes."""

    def __init__(self, overrides: Sequence[str], folder: Path) -> None:
        self.folder, log = folder / "whole", folder / "whole.log"
        commands.run("train", ["--help"], log)  # the server has started: what is timed is the run alone
        started = time.monotonic()
        code = commands.run("train", [*overrides, f"output_dir={self.folder}"], log)
        self.seconds = time.monotonic() - started
        assert code == 0, log.read_text()


@pytest.fixture(scope="module")
def whole(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(overrides, tmp_path_factory.mktemp("resume"))


def assert_ends_as(whole: Whole, folder: Path) -> None:
    assert policies(folder) == policies(whole.folder)
    assert transcripts(folder) == transcripts(whole.folder)
    assert rows(folder) == rows(whole.folder)


def until(found: Callable[[], bool], process: Any) -> None:
    """Wait for something that the process is to do."""
    while not found():
        assert process.is_alive(), "it has ended before"
        time.sleep(0.01)


def killed_after(seconds: float, overrides: Sequence[str], folder: Path) -> bool:
    """Start a run in `folder`, or go on with the one that is there; whether it ended before it could be killed."""
    there = (folder / "run.json").is_file()
    log = folder.parent / f"{folder.name}.log"
    process = commands.start("train", [f"resume={folder}"] if there else [*overrides, f"output_dir={folder}"], log)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
    return process.exitcode == 0


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(
    whole: Whole, overrides: list[str], tmp_path: Path
) -> None:
    moments = random.Random(0)
    folder = tmp_path / "run"
    for _ in range(3):
        if not (folder / "results.json").is_file():
            killed_after(moments.uniform(0.3, 0.8) * whole.seconds, overrides, folder)
    if not (folder / "results.json").is_file():
        assert killed_after(600, overrides, folder)
    assert_ends_as(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_never_was(
    number: int, whole: Whole, overrides: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    killed_after(random.Random(number).uniform(0, 1) * whole.seconds, overrides, folder)
    if not (folder / "results.json").is_file():
        assert killed_after(600, overrides, folder)
    assert_ends_as(whole, folder)


@pytest.mark.parametrize("wandb", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_signals_end_a_run_at_once_and_say_how_to_go_on(
    wandb: bool, whole: Whole, overrides: list[str], tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = [*overrides, *(["logger=wandb", "logger.wandb=offline"] if wandb else [])]
    typed = [*overrides, f"output_dir={folder}"]
    for number, line in ((signal.SIGTERM, "step 1/4"), (signal.SIGINT, "step 3/4")):
        process = commands.start("train", typed, log)
        until(lambda line=line: log.is_file() and line in log.read_text(), process)
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode == 128 + number, log.read_text()
        *_, last = log.read_text().splitlines()
        assert last == f"Interrupted. Go on with: python train.py resume={folder}"
        assert "Traceback" not in log.read_text()
        typed = [*overrides, f"output_dir={folder}", "resume=true"]
    assert commands.run("train", typed, log) == 0, log.read_text()
    assert_ends_as(whole, folder)
    ids = [path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")]
    assert ids == [json.loads((folder / "run.json").read_text())["id"]] * (3 if wandb else 0)


def test_a_damaged_and_a_foreign_checkpoint_are_refused_and_the_one_before_is_used(
    whole: Whole, overrides: list[str], tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    checkpoints = folder / "checkpoints"
    process = commands.start("train", [*overrides, f"output_dir={folder}"], log)
    until((checkpoints / "step-000003.ckpt").is_file, process)
    process.kill()
    process.join()
    newest = checkpoints / "step-000003.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    shutil.copy(whole.folder / "checkpoints" / "step-000004.ckpt", checkpoints)
    with (folder / "transcripts.jsonl").open("a") as file:
        file.write('{"phase": "tr')
    # The model is not asked again for anything that the killed process had: that was all of step 3.
    assert commands.run("train", [f"resume={folder}"], log) == 0, log.read_text()
    said = log.read_text()
    assert "step-000004.ckpt is of another run" in said and "step-000003.ckpt is truncated" in said
    assert f"going on from {checkpoints / 'step-000002.ckpt'}" in said
    assert_ends_as(whole, folder)


def test_a_disk_that_is_full_ends_a_run_with_one_message(overrides: list[str], tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    (folder / "transcripts.jsonl").symlink_to("/dev/full")
    assert commands.run("train", [*overrides, f"output_dir={folder}"], log) == 1
    *_, last = log.read_text().splitlines()
    assert last.startswith(f"error: Writing failed: {folder}/transcripts.jsonl: No space left on device.")
    assert last.endswith(f"go on with: python train.py resume={folder}") and "Traceback" not in log.read_text()
    assert not (folder / "results.json").exists()


@pytest.mark.slow
def test_an_evaluation_goes_on_with_the_row_that_it_was_at(whole: Whole, overrides: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    policies_of = f"policies=[base,trained:{whole.folder / 'policy'}]"
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        process = commands.start("evaluate", [*overrides, policies_of, f"output_dir={folder}"], log)
        if folder.name == "killed":
            until(lambda run=folder / "run.json": run.is_file() and '"base"' in run.read_text(), process)
            process.kill()
        process.join()
    assert commands.run("evaluate", [f"resume={folder}"], log) == 0, log.read_text()
    assert "base: played before" in log.read_text()
    assert policies(folder) == policies(tmp_path / "whole")
    assert transcripts(folder) == transcripts(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(whole: Whole, overrides: list[str], tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    process = commands.start("train", [*overrides, f"output_dir={folder}"], log)
    until((folder / "checkpoints" / "step-000002.ckpt").is_file, process)
    process.kill()
    process.join()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    places = ["--rdzv-endpoint=localhost:0", "train.py", f"resume={folder}", "strategy=ddp", "trainer.devices=2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    done = subprocess.run([*launch, *places], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert policies(folder)["base"] == policies(whole.folder)["base"]
    lines = [json.loads(line) for path in folder.glob("transcripts*.jsonl") for line in path.read_text().splitlines()]
    expected = [json.loads(line) for line in transcripts(whole.folder)]
    places_of = [
        sorted((r["phase"], r["policy"], r.get("step", 0), r["goal"], r.get("candidate", 0)) for r in found)
        for found in (lines, expected)
    ]
    assert places_of[0] == places_of[1]
