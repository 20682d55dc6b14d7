"""Whole runs with engine=vllm, over a server on loopback that computes with real adapters."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ENVIRONMENT, ROOT, TORCHRUN, run
from tiny_vllm import TinyVLLM


@pytest.fixture
def server(letters: list[str]) -> Iterator[TinyVLLM]:
    (folder,) = (text.removeprefix("model.path=") for text in letters if text.startswith("model.path="))
    with TinyVLLM(Path(folder)) as there:
        yield there


def given(letters: list[str], servers: TinyVLLM | list[TinyVLLM], folder: Path) -> list[str]:
    urls = f"[{','.join(each.url for each in servers)}]" if isinstance(servers, list) else servers.url
    ours = [f"engine.base_url={urls}", f"output_dir={folder}", "model.lora.enabled=true", "model.lora.r=4"]
    return [text for text in letters if not text.startswith("engine.")] + ["engine=vllm", *ours]


def in_two(overrides: list[str]) -> subprocess.CompletedProcess[str]:
    """`train.py` in two processes."""
    command = [sys.executable, *TORCHRUN, "train.py", *overrides]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def assert_verified(server: TinyVLLM, folder: Path) -> None:
    """Each update is loaded under a name of its own, seen to be in effect, and gone in the end."""
    with (folder / "csv" / "metrics.csv").open() as file:
        gaps = [float(row["train/logprob_gap"]) for row in csv.DictReader(file) if row["train/logprob_gap"]]
    known = [gap for gap in gaps if not math.isnan(gap)]  # a step without spread learns from nothing
    assert len(known) >= 2 and max(known) < 1e-4
    assert len(set(server.loaded)) == len(server.loaded) > len(gaps) + 1  # and for validations and the test
    assert not server.adapters and not (folder / "adapters").exists()
    asked = {call["model"] for call in server.calls if "prompt_logprobs" not in call}
    assert asked == {"tiny", *server.loaded[1:]}  # but for the one that was tried before the start


def test_a_run_has_each_update_loaded_verified_and_played(letters: list[str], server: TinyVLLM, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert run("train", given(letters, server, folder), log) == 0, log.read_text()
    assert_verified(server, folder)
    assert (folder / "results.json").is_file() and (folder / "policy" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_loses_one_of_two_servers_learns_what_a_run_with_one_does(
    letters: list[str], server: TinyVLLM, tmp_path: Path
) -> None:
    assert run("train", given(letters, server, tmp_path / "one"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    log = tmp_path / "log_two"
    with TinyVLLM(server.folder) as other:
        other.kill_at(20)  # the step's checks and its first requests are before it
        assert run("train", given(letters, [server, other], tmp_path / "two"), log) == 0, log.read_text()
    assert f"{other.url} gets no requests: RemoteProtocolError" in log.read_text()
    one, two = (list(csv.DictReader((tmp_path / name / "csv" / "metrics.csv").open())) for name in ("one", "two"))
    assert [row["train/mr"] for row in one] == [row["train/mr"] for row in two]
    rows = [row for row in two if row["train/server_1_share"]]
    out = [float(row["train/server_2_left_out"]) for row in rows]
    assert len(out) == 4 and out[-1] == 1 and float(rows[0]["train/server_2_requests"]) > 0
    assert float(rows[-1]["train/server_1_share"]) == 1
    assert not server.adapters and not (tmp_path / "two" / "adapters").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_share_what_the_first_has_loaded(
    strategy: str, letters: list[str], server: TinyVLLM, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = in_two([*given(letters, server, folder), f"strategy={strategy}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert_verified(server, folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_adapter_that_is_not_in_effect_ends_both_processes_with_one_message(
    letters: list[str], server: TinyVLLM, tmp_path: Path
) -> None:
    server.faults = {"ignores adapters"}
    done = in_two([*given(letters, server, tmp_path / "run"), "strategy=ddp", "engine.tolerance=0.001"])
    assert done.returncode != 0
    assert done.stderr.count("is not in effect") == done.stderr.count("error: ") == 1, done.stderr
    assert not server.adapters and (tmp_path / "run" / "checkpoints").is_dir()  # of the step before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_without_adapters_is_refused_by_both_processes(
    letters: list[str], server: TinyVLLM, tmp_path: Path
) -> None:
    server.faults = {"no lora"}
    started = time.monotonic()
    done = in_two([*given(letters, server, tmp_path / "run"), "strategy=ddp"])
    assert done.returncode != 0 and "error: engine=vllm: LoRA is switched off" in done.stderr, done.stderr
    assert time.monotonic() - started < 120  # and not when a collective gives up
    assert not (tmp_path / "run").exists()
