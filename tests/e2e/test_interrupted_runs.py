"""Runs that are killed, interrupted or damaged, and what comes of them when they go on."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import commands
import pytest

pytestmark = pytest.mark.timeout(600)


def policies(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())["policies"]


def transcripts(folder: Path) -> list[str]:
    return sorted((folder / "transcripts.jsonl").read_text().splitlines())


def rows(folder: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without what is measured by the clock."""
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not re.search("rollout_|_seconds", k)} for row in csv.DictReader(file)]


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
def overrides(letters: list[str]) -> list[str]:
    return letters


@pytest.fixture(scope="module")
def whole(letters: list[str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(letters, tmp_path_factory.mktemp("resume"))


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


@pytest.mark.slow  # one that is killed, and one that is interrupted twice, are below
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(
    whole: Whole, overrides: list[str], tmp_path: Path
) -> None:
    moments = random.Random(0)
    folder = tmp_path / "run"
    for _ in range(2):
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


@pytest.mark.slow  # in process, tests/integration/test_overlap.py does it too
def test_an_overlapped_run_goes_on_with_the_policies_that_were_playing(letters: list[str], tmp_path: Path) -> None:
    overrides = [*letters, "rollout.max_staleness=2"]
    whole, folder, log = Whole(overrides, tmp_path), tmp_path / "run", tmp_path / "run.log"
    process = commands.start("train", [*overrides, f"output_dir={folder}"], log)
    until((folder / "checkpoints" / "step-000002.ckpt").exists, process)
    process.kill()
    process.join()
    assert not (folder / "results.json").exists()
    assert commands.run("train", [f"resume={folder}"], log) == 0, log.read_text()
    assert_ends_as(whole, folder)
