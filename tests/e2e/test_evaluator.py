"""`evaluate.py evaluator=...`: win rates in the table, judged once, refused before anything is written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import finished
from fault_server import FaultServer

if TYPE_CHECKING:
    from conftest import Runner

pytestmark = pytest.mark.timeout(600)


def command(runner: Runner, model: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    from conftest import SMALL

    return finished("evaluate", *SMALL, *runner.files, f"model.path={model}", *overrides, f"output_dir={folder}")


def test_a_server_compares_the_rows_with_the_baseline(runner: Runner, letters_model: Path, tmp_path: Path) -> None:
    cache = f"cache_file={tmp_path / 'replies.sqlite'}"
    with FaultServer(say=lambda call: "A") as server:
        judge = ("evaluator=pairwise", f"evaluator.endpoint.base_url={server.url}", cache)
        done = command(runner, letters_model, tmp_path / "run", *judge)
        assert done.returncode == 0, done.stderr
        assert len(server.calls) == 2 * 2 * 2  # two goals, two questions, two orders
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    row = results["policies"]["proactive"]
    assert row["wins"] == {"mean": 0.5, "ci95": [0.5, 0.5], "n": 2}  # a liking for A is a tie
    assert {"wins_asking", "wins_text"} <= row.keys() and "wins" not in results["policies"]["base"]
    assert "evaluator" in results["seconds"] and "wins" in done.stdout


def test_local_weights_compare_too(runner: Runner, tiny_model: Path, tmp_path: Path) -> None:
    done = command(runner, tiny_model, tmp_path / "run", "evaluator=local", f"evaluator.endpoint.model={tiny_model}")
    assert done.returncode == 0, done.stderr
    wins = json.loads((tmp_path / "run" / "results.json").read_text())["policies"]["proactive"]["wins"]
    assert 0 <= wins["mean"] <= 1 and wins["n"] == 2


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("evaluator=pairwise",), "evaluator.endpoint"),
        (("evaluator=local", "evaluator.endpoint.model=/nowhere/judge"), "evaluator.endpoint.model=/nowhere/judge"),
        (("evaluator=nobody",), "nobody"),
    ],
)
def test_a_judge_that_cannot_be_had_is_refused_before_anything_is_made(
    runner: Runner, letters_model: Path, tmp_path: Path, overrides: tuple[str, ...], told: str
) -> None:
    done = command(runner, letters_model, tmp_path / "run", *overrides)
    assert done.returncode == 1 and told in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_an_estimate_counts_the_comparisons(runner: Runner, letters_model: Path, tmp_path: Path) -> None:
    judge = ("evaluator=pairwise", "evaluator.endpoint.base_url=http://127.0.0.1:9/v1", "evaluator.endpoint.model=tiny")
    done = command(runner, letters_model, tmp_path / "run", *judge, "dry_run=true")
    assert done.returncode == 0 and "evaluator (tiny): 8 calls" in done.stdout, done.stdout + done.stderr
