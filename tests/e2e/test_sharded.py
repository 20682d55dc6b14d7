"""`evaluate.py experiment=lost`: the same goals told at once, as a list and one shard a turn, up to the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import finished
from marks import slow

from collab.config.schema import ShardedUserConfig
from collab.conversation import Goal
from collab.datamodules.sharded import ShardedGoals
from collab.parsing.agenda_items import shards_of
from collab.reports.results import validate_results
from collab.simulation.sharded import messages_of

pytestmark = pytest.mark.timeout(600)

SMALL = (
    *("experiment=lost", "precision=fp32", "seed=3", "trainer.accelerator=cpu", "callbacks=quiet", "logger=csv"),
    "threads=1",
    *("task.num_test=2", "task.max_new_tokens=8", "evaluation.num_conversations=2"),
)
TASKS = "task.options.tasks=[math,data2text]"  # of the first goal of each


@pytest.mark.parametrize("model", ["tiny_model", slow("smollm2")])
def test_a_model_meets_all_conditions(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given = f"model.path={request.getfixturevalue(model)}"
    done = finished("evaluate", *SMALL, given, "policies=[base]", TASKS, f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    validate_results(results)
    assert list(results["policies"]) == ["base", "base@full", "base@concat"]
    found = results["conditions"]
    assert list(found) == ["reward", "accuracy", "bleu"]
    base = found["reward"]["policies"]["base"]
    assert list(base) == ["full", "concat", "sharded"]
    for condition, row in (("sharded", "base"), ("full", "base@full"), ("concat", "base@concat")):
        assert base[condition]["score"]["mean"] == results["policies"][row]["reward"]["mean"]
        assert base[condition]["score"]["n"] == 2
        assert base[condition]["aptitude"]["mean"] >= base[condition]["unreliability"]["mean"] >= 0
    assert "unreliability" in done.stdout and "2 goals, 2 conversations of each a condition" in done.stdout

    goals: dict[str, Goal] = {goal.id: goal for goal in ShardedGoals().shipped("test")}
    records: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").open()]
    assert len(records) == 2 * 2 * 3
    for record in records:
        told = [message["content"] for message in record["messages"] if message["role"] == "user"]
        condition = record["policy"].partition("@")[2] or ShardedUserConfig.told
        expected = messages_of(goals[record["goal"]], condition)
        assert told[: len(expected)] == expected and len(told) <= len(expected) + 1
        assert set(record["parts"]) == ({"accuracy"} if "orchard" in record["goal"] else {"bleu"})


def test_too_many_shards_are_refused_before_a_model_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = finished("evaluate", *SMALL, "task.max_turns=6", "model=smollm2", TASKS, f"output_dir={folder}")
    assert done.returncode == 1 and "in 6 turns; task.max_turns (6) must be larger" in done.stderr, done.stderr
    assert not folder.exists()


def test_a_model_words_the_shards(tiny_model: Path, tmp_path: Path) -> None:
    """A random model words nothing that can be used, so each shard is said once, as it stands."""
    goals = ShardedGoals(["math"]).shipped("test")[:2]
    user = ("user=sharded_llm", "user.retries=0")
    small = ("user.max_new_tokens=16", "task.options.tasks=[math]", "users=none", "policies=[base]")
    done = finished("evaluate", *SMALL, *user, *small, f"model.path={tiny_model}", f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conditions" not in json.loads((tmp_path / "run" / "results.json").read_text())  # no goal was told in full
    for line in (tmp_path / "run" / "transcripts.jsonl").open():
        record = json.loads(line)
        told = [message["content"] for message in record["messages"] if message["role"] == "user"]
        (goal,) = (goal for goal in goals if goal.id == record["goal"])
        assert told[: len(shards_of(goal))] == shards_of(goal)
        assert record["refused"] and record["user"] == "shards 1,2,3,4,5"
