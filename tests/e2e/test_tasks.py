"""Each task from its shipped goals to results.json, with a tiny random model; the real one is in the slow tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from composing import load_config

from collab.config.checks import check
from collab.reports.results import validate_results

SMALL = (
    "seed=3",
    "precision=fp32",
    "trainer.accelerator=cpu",
    "task.num_test=2",
    "evaluation.num_conversations=1",
    "callbacks=quiet",
    "logger=csv",
)
TRAINING = (
    "task.num_train=2",
    "task.num_val=1",
    "task.max_turns=2",
    "trainer.max_steps=1",
    "trainer.goals_per_step=1",
    "trainer.val_every=1",
    "algorithm.num_minibatches=1",
    "sampler.group_size=2",
    "model.lora.r=4",
    "algorithm.warmup_steps=0",
)


def results_of(entry: str, folder: Path, *overrides: str) -> dict[str, Any]:
    config = load_config(entry, overrides, str(folder))
    check(config, entry)
    if entry == "train":
        from collab.app.train import train as run
    else:
        from collab.app.evaluate import evaluate as run
    run(config)
    found = json.loads((folder / "results.json").read_text())
    validate_results(found)
    return found


# A reply has to hold the programs, and HumanEval needs a package of its own.
SHIPPED = {"math": ("accuracy", "task.max_new_tokens=8"), "code": ("pass_rate", "task.max_new_tokens=160")}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_task_trains_and_reports_its_metric(name, tiny_model, tmp_path):
    metric, length = SHIPPED[name]
    small = ("task.data=null", length, f"model.path={tiny_model}")
    found = results_of("train", tmp_path, f"experiment={name}", *SMALL, *TRAINING, *small)
    assert list(found["policies"]) == ["base", "proactive", "trained"]
    for policy in found["policies"].values():
        assert policy[metric]["n"] == policy["interactivity"]["n"] == 2 and 0 <= policy[metric]["mean"] <= 1
    records = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert {record["phase"] for record in records} == {"train", "validation", "test"}
    assert all(record["parts"][metric] in (0.0, 1.0) for record in records)


def test_abg_coqa_reports_its_own_four(tiny_model, tmp_path):
    overrides = [text for text in SMALL if "num_test" not in text]
    found = results_of(
        "evaluate", tmp_path, "experiment=abg_coqa", *overrides, "task.num_test=4", "task.max_new_tokens=8",
        f"model.path={tiny_model}",
    )  # fmt: skip
    for policy in (*found["policies"].values(), *found["difference"].values()):
        assert policy["asks_on_ambiguous"]["n"] == policy["answers_on_unambiguous"]["n"] == 2
        assert policy["macro_accuracy"]["n"] == policy["macro_f1"]["n"] == 4
    base = found["policies"]["base"]
    shares = base["asks_on_ambiguous"]["mean"], base["answers_on_unambiguous"]["mean"]
    assert base["macro_accuracy"]["mean"] == pytest.approx(sum(shares) / 2)


def test_safety_compares_policies_with_each_user(tiny_model, tmp_path):
    overrides = [text for text in SMALL if "num_test" not in text]
    found = results_of(
        "evaluate", tmp_path, "experiment=safety", *overrides, "task.num_test=3", "task.max_new_tokens=8",
        f"model.path={tiny_model}",
    )  # fmt: skip
    assert list(found["policies"]) == ["base", "proactive", "base@insistent", "proactive@insistent"]
    assert list(found["difference"]) == ["proactive", "proactive@insistent"]
    for metrics in (*found["policies"].values(), *found["difference"].values()):
        assert [metrics[name]["n"] for name in ("refused", "complied", "over_refusal")] == [2, 2, 1]
    records = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    turns = {record["policy"]: sum(m["role"] == "user" for m in record["messages"]) for record in records}
    assert turns == {"base": 1, "proactive": 1, "base@insistent": 4, "proactive@insistent": 4}


@pytest.mark.slow
def test_the_real_model_is_attacked(smollm2, tmp_path):
    small = [text for text in SMALL if "num_test" not in text]
    found = results_of("evaluate", tmp_path, "experiment=safety", *small, "task.num_test=3", "task.max_new_tokens=24")
    for policy in found["policies"].values():
        assert policy["refused"]["n"] == policy["complied"]["n"] == 2 and policy["over_refusal"]["n"] == 1
        assert policy["refused"]["mean"] + policy["complied"]["mean"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_task_trains_the_real_model(name, smollm2, tmp_path):
    small = ("model=smollm2", "task.data=null", "task.num_test=4")
    found = results_of("train", tmp_path, f"experiment={name}", *SMALL, *TRAINING, *small)
    assert found["policies"]["trained"][SHIPPED[name][0]]["n"] == 4


@pytest.mark.slow
def test_the_real_model_is_asked_about_stories(smollm2, tmp_path):
    found = results_of("evaluate", tmp_path, "experiment=abg_coqa", *SMALL, "task.num_test=8")
    assert found["policies"]["proactive"]["macro_f1"]["n"] == 8
