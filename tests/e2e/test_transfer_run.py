"""`evaluate.py` with several tasks, and `experiment=ask_or_act`, up to their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import finished
from composing import load_config

from collab.app.evaluate import evaluate
from collab.config.checks import check
from collab.reports.results import validate_results

pytestmark = pytest.mark.timeout(900)

SMALL = (
    *("seed=3", "precision=fp32", "trainer.accelerator=cpu", "callbacks=quiet", "logger=csv", "threads=1"),
    *("evaluation.num_conversations=1", "task.num_test=2"),
)


def results_of(folder: Path, *overrides: str) -> dict[str, Any]:
    config = load_config("evaluate", [*overrides], str(folder))
    check(config, "evaluate")
    evaluate(config)
    found = json.loads((folder / "results.json").read_text())
    validate_results(found)
    return found


def test_one_command_plays_several_tasks(tiny_model, tmp_path, capsys):
    short = ("task.max_new_tokens=8", "evaluation.tasks.abg_coqa.max_new_tokens=8", "evaluation.tasks.math.max_turns=1")
    overrides = ("experiment=transfer", "tasks=[abg_coqa,math]", *SMALL, *short, f"model.path={tiny_model}")
    found = results_of(tmp_path, *overrides)
    assert list(found["tasks"]) == ["abg_coqa", "math"] and "coverage" in found["policies"]["base"]
    assert found["tasks"]["math"]["policies"]["base"]["accuracy"]["n"] == 2
    assert found["tasks"]["abg_coqa"]["difference"]["proactive"]["macro_f1"]["n"] == 2
    for name, one in found["tasks"].items():
        alone = json.loads((tmp_path / "tasks" / name / "results.json").read_text())
        validate_results(alone)
        assert (alone["policies"], alone["difference"]) == (one["policies"], one["difference"])
        assert (tmp_path / "tasks" / name / "report.html").is_file()
        records = (tmp_path / "tasks" / name / "transcripts.jsonl").read_text().splitlines()
        assert len(records) == 2 * 2  # two goals, two policies
    table = (tmp_path / "transfer.md").read_text()
    for line in ("doc_edit (2) coverage", "doc_edit (2) over asking", "abg_coqa (2) macro F1", "math (2) accuracy"):
        assert f"| {line} | " in table
    assert "math (2) over asking" in capsys.readouterr().out

    # Interrupted before its own results were written, it goes on without playing anything again.
    (tmp_path / "results.json").unlink()
    again = results_of(tmp_path, *overrides)
    assert (again["policies"], again["tasks"]) == (found["policies"], found["tasks"])
    assert (tmp_path / "transfer.md").read_text() == table


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.tasks.math.test_file=nowhere.jsonl", "evaluation.tasks.math: There is no file nowhere.jsonl"),
        ("evaluation.tasks.abg_coqa.max_turns=0", "evaluation.tasks.abg_coqa.max_turns (0) must be at least 1"),
    ],
)
def test_a_task_that_cannot_be_had_is_refused_before_a_model_is_loaded(tmp_path, override, said):
    env = {"HF_HUB_OFFLINE": "1"}
    done = finished("evaluate", "experiment=transfer", *SMALL, override, f"output_dir={tmp_path / 'run'}", env=env)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_ask_or_act_counts_pairs(tiny_model, tmp_path):
    short = ("task.num_test=6", "task.max_new_tokens=8")
    found = results_of(tmp_path, "experiment=ask_or_act", *SMALL, *short, f"model.path={tiny_model}")
    for metrics in (*found["policies"].values(), *found["difference"].values()):
        names = ("reward", "asks_on_vague", "acts_on_clear", "ask_f1", "act_f1")
        assert [metrics[name]["n"] for name in names] == [3] * 5  # three pairs of two requests
    records = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 6
    rewards = [record["reward"] for record in records if record["policy"] == "base"]
    assert found["policies"]["base"]["reward"]["mean"] == pytest.approx(sum(rewards) / 6)


@pytest.mark.slow
def test_the_real_model_plays_every_task(smollm2, tmp_path):
    short = [f"evaluation.tasks.{name}.max_turns=1" for name in ("math", "code")]
    found = results_of(tmp_path, "experiment=transfer", *SMALL, "task.max_turns=2", *short)
    assert found["tasks"]["code"]["policies"]["base"]["pass_rate"]["n"] == 2


@pytest.mark.slow
def test_the_real_model_is_asked_vague_and_clear_requests(smollm2, tmp_path):
    found = results_of(tmp_path, "experiment=ask_or_act", *SMALL, "task.num_test=8")
    assert found["policies"]["base"]["acts_on_clear"]["n"] == 4
