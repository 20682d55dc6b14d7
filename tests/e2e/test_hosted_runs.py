"""A server as one more row of an evaluation; and its key, which is in nothing that a run leaves behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from commands import finished, start
from fault_server import FaultServer

if TYPE_CHECKING:
    from conftest import Runner

pytestmark = pytest.mark.timeout(900)
SECRET = "sk-test-5d1f0a9c7e3b2468"


def command(runner: Runner, model: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    from conftest import SMALL

    hosted = [
        f"model.path={model}",
        "evaluation.endpoint.key_env=TEST_KEY",
        f"cache_file={folder.parent / 'replies.sqlite'}",
    ]
    arguments = [*SMALL, *runner.files, *hosted, *overrides, f"output_dir={folder}"]
    return finished("evaluate", *arguments, env={"TEST_KEY": SECRET})


def test_a_server_is_one_more_row_and_is_asked_once(runner: Runner, letters_model: Path, tmp_path: Path) -> None:
    def plan(number: int, call: object) -> str:
        return "ok" if number else "500"

    with FaultServer(plan, say=lambda call: f"We bake rye bread daily. Bearer {SECRET}") as server:
        rows = f"policies=[base,tiny@{server.url}]"
        first = command(runner, letters_model, tmp_path / "first", rows)
        assert first.returncode == 0, first.stderr
        assert 2 <= len(server.calls) - 1 <= 4  # two goals, two turns at most
        called = len(server.calls)
        second = command(runner, letters_model, tmp_path / "second", rows)
        assert len(server.calls) == called
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second")]
    assert results[0]["policies"] == results[1]["policies"] and list(results[0]["policies"]) == ["base", "tiny"]
    assert results[0]["policies"]["tiny"]["assistant_tokens"]["mean"] > 0
    spend = json.loads((tmp_path / "first" / "spend.json").read_text())["policy"]
    assert (spend["calls"], spend["retries"]) == (called - 1, 1)
    assert f"policy: {called - 1} calls (0 more from the cache, 1 retries" in first.stdout
    assert f"policy: 0 calls ({called - 1} more from the cache" in second.stdout
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in first.stdout + first.stderr + second.stdout + second.stderr


def test_what_is_wrong_with_a_server_is_said_before_anything_is_written(
    runner: Runner, letters_model: Path, tmp_path: Path
) -> None:
    with FaultServer() as server:
        wrong = command(runner, letters_model, tmp_path / "run", f"policies=[tine@{server.url}]")
        estimated = command(runner, letters_model, tmp_path / "run", f"policies=[tiny@{server.url}]", "dry_run=true")
    assert wrong.returncode == 1 and "policies: tine: " in wrong.stderr and "Did you mean tiny?" in wrong.stderr
    assert estimated.returncode == 0 and "policy (tiny): 4 calls" in estimated.stdout
    assert not (tmp_path / "run").exists() and not server.calls


def test_an_estimate_takes_no_key_and_comes_before_the_refusal_of_a_budget(runner: Runner, tmp_path: Path) -> None:
    hosted = ["experiment=doc_edit", "user=openai", "judge=openai", f"output_dir={tmp_path / 'run'}"]
    no_key = {"OPENAI_API_KEY": None}
    done = finished("train", *hosted, "dry_run=true", "budget.max_usd=0.001", env=no_key)
    assert "user (gpt-6-luna): " in done.stdout and "judge (gpt-6-luna): " in done.stdout
    assert done.returncode == 1 and "budget.max_usd (0.001) must be at least what one training step" in done.stderr
    done = finished("train", *hosted, env=no_key)
    assert done.returncode == 1 and "environment variable OPENAI_API_KEY is not set" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_refusal_in_the_middle_is_told_without_a_trace_or_a_key(
    runner: Runner, letters_model: Path, tmp_path: Path
) -> None:
    with FaultServer(lambda number, call: "401") as server:
        stopped = command(runner, letters_model, tmp_path / "run", f"policies=[tiny@{server.url}]")
    assert stopped.returncode == 1 and "HTTP 401: refused Bearer [key]" in stopped.stderr
    assert "Traceback" not in stopped.stderr and SECRET not in stopped.stdout + stopped.stderr


# --- training with a hosted user and judge ---------------------------------------------------------------------------


def play(call: dict[str, Any]) -> str:
    """What the user or the judge says, a function of what it was asked."""
    system = call["messages"][0]["content"]
    number = zlib.crc32(json.dumps(call, sort_keys=True).encode())
    if mark := re.search(r'"score_([0-9a-f]{8})"', system):
        return json.dumps({"reasons": "as it is", f"score_{mark[1]}": number % 101 / 100})
    return json.dumps({"current_answer": "none", "thought": "hm", "message": f"it is about number {number}"})


class Training:
    """`train.py` with a user and a judge at one server, nothing kept but by the run itself."""

    def __init__(self, server: FaultServer, runner: Runner, model: Path, folder: Path) -> None:
        hosted = [
            f"{who}.endpoint.{field}"
            for who in ("user", "judge")
            for field in (f"base_url={server.url}", "key_env=TEST_KEY", "max_concurrency=2")
        ]
        self.overrides = [
            *runner.training,
            "user=llm",
            "judge=llm",
            *hosted,
            "cache=off",
            "algorithm=grpo",
            "threads=1",
        ]
        self.overrides += [f"model.path={model}", "engine.deterministic=true", "trainer.accelerator=cpu"]
        self.log = folder / "log"

    def start(self, *overrides: str) -> Any:
        """A process, whose words are added to the log."""
        return start("train", overrides, self.log, {"TEST_KEY": SECRET})

    def run(self, *overrides: str) -> int:
        process = self.start(*overrides)
        process.join()
        return process.exitcode


def test_an_interrupted_training_pays_for_no_reply_twice_and_leaves_no_key(
    runner: Runner, letters_model: Path, tmp_path: Path
) -> None:
    with FaultServer(say=play) as server:
        training = Training(server, runner, letters_model, tmp_path)
        code = training.run(*training.overrides, f"output_dir={tmp_path / 'whole'}")
        assert code == 0, training.log.read_text()
    whole = Counter(json.dumps(call) for call in server.calls)
    total, folder, killed = whole.total(), tmp_path / "pieces", threading.Event()

    def plan(number: int, call: object) -> str:
        if number == total // 3:
            killed.set()
        return "401" if refusing and number >= 2 * total // 3 else "ok"

    refusing = True
    with FaultServer(plan, say=play) as server:
        training = Training(server, runner, letters_model, tmp_path)
        process = training.start(*training.overrides, "logger=wandb", f"output_dir={folder}")
        assert killed.wait(300)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert training.run(f"resume={folder}", "logger=csv") == 1
        said = training.log.read_text()
        assert f"Go on with: python train.py resume={folder}" in said, said
        refusing = False
        assert training.run(f"resume={folder}", "logger=csv") == 0, training.log.read_text()
    asked = Counter(json.dumps(call) for call, how in zip(server.calls, server.behaved, strict=True) if how == "ok")
    # By set: two candidates of equal words make equal calls, and after a resume one reply in the journal serves both.
    assert set(whole) <= set(asked)
    # Two may be under way to each of user and judge when it is killed, and again when it is stopped.
    assert (asked - whole).total() <= 8
    ends = [json.loads((run / "results.json").read_text())["policies"] for run in (tmp_path / "whole", folder)]
    assert ends[0] == ends[1] and ends[0]["trained"]["interactivity"]["n"] == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".wandb", ".ckpt", ".jsonl", ".yaml", ".csv"} <= {path.suffix for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert "Traceback" not in training.log.read_text()
