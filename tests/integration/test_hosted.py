"""A server as one more row of an evaluation; and its key, which is in nothing that a run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from fault_server import FaultServer  # noqa: E402

if TYPE_CHECKING:
    from conftest import Runner

pytestmark = pytest.mark.timeout(900)
SECRET = "sk-test-5d1f0a9c7e3b2468"


def command(runner: Runner, model: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    from conftest import ROOT, SMALL

    hosted = [
        f"model.path={model}",
        "evaluation.endpoint.key_env=TEST_KEY",
        f"cache_file={folder.parent / 'replies.sqlite'}",
    ]
    arguments = [*SMALL, *runner.files, *hosted, *overrides, f"output_dir={folder}"]
    env = {**os.environ, "TEST_KEY": SECRET}
    return subprocess.run(
        [sys.executable, "evaluate.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )


def test_a_server_is_one_more_row_and_is_asked_once(runner: Runner, tiny_model: Path, tmp_path: Path) -> None:
    def plan(number: int, call: object) -> str:
        return "ok" if number else "500"

    with FaultServer(plan, say=lambda call: f"We bake rye bread daily. Bearer {SECRET}") as server:
        rows = f"policies=[base,tiny@{server.url}]"
        first = command(runner, tiny_model, tmp_path / "first", rows)
        assert first.returncode == 0, first.stderr
        assert 2 <= len(server.calls) - 1 <= 4  # two goals, two turns at most
        called = len(server.calls)
        second = command(runner, tiny_model, tmp_path / "second", rows)
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
    runner: Runner, tiny_model: Path, tmp_path: Path
) -> None:
    with FaultServer() as server:
        wrong = command(runner, tiny_model, tmp_path / "run", f"policies=[tine@{server.url}]")
        estimated = command(runner, tiny_model, tmp_path / "run", f"policies=[tiny@{server.url}]", "dry_run=true")
    assert wrong.returncode == 1 and "policies: tine: " in wrong.stderr and "Did you mean tiny?" in wrong.stderr
    assert estimated.returncode == 0 and "policy (tiny): 4 calls" in estimated.stdout
    assert not (tmp_path / "run").exists() and not server.calls


def test_a_refusal_in_the_middle_is_told_without_a_trace_or_a_key(
    runner: Runner, tiny_model: Path, tmp_path: Path
) -> None:
    with FaultServer(lambda number, call: "401") as server:
        stopped = command(runner, tiny_model, tmp_path / "run", f"policies=[tiny@{server.url}]")
    assert stopped.returncode == 1 and "HTTP 401: refused Bearer [key]" in stopped.stderr
    assert "Traceback" not in stopped.stderr and SECRET not in stopped.stdout + stopped.stderr
