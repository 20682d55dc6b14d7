"""`python train.py`: a few steps on the real SmolLM2, and everything that they leave behind.

`python evaluate.py` is here too: it plays what was exported, and tests run beside each other by file.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from marks import slow
from run_folder import data_of
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from conftest import Run, Runner

# Runs of the real model: on a busy machine one test may take longer than tests otherwise may.
pytestmark = pytest.mark.timeout(900)

PARTS = {
    "coverage",
    "bleu",
    "copied",
    "repetition",
    "unsupported",
    "token_penalty",
    "interactivity",
    "pertinent",
    "official_bleu",
}
WATCHED = {"distinct_questions", "assistant_tokens", "turns"}
METRICS = {"reward", *PARTS - {"token_penalty"}, *WATCHED}


def test_results_compare_trained_with_its_base(trained: Run) -> None:
    results = trained.results  # validated
    assert list(results["policies"]) == ["base", "proactive", "trained"]
    assert list(results["difference"]) == ["proactive", "trained"]
    for policy, metrics in results["policies"].items():
        assert set(metrics) == METRICS
        # what is measured of questions has no value where nothing is asked
        always = METRICS - {"pertinent", "distinct_questions"}
        assert {metrics[name]["n"] for name in always} == {2}
        assert 1 <= metrics["turns"]["mean"] <= 2 and 1 <= metrics["assistant_tokens"]["mean"] <= 2 * 8
        if policy != "base":
            gained = metrics["reward"]["mean"] - results["policies"]["base"]["reward"]["mean"]
            assert results["difference"][policy]["reward"]["mean"] == pytest.approx(gained)
    assert results["policies"]["trained"] != results["policies"]["base"]  # it has learned something, good or bad
    assert results["config"]["seed"] == 3 and results["config"]["precision"] == "fp32"
    assert {"base", "proactive", "fit", "trained", "total"} <= set(results["seconds"])
    assert sum(v for k, v in results["seconds"].items() if k != "total") <= results["seconds"]["total"]


def test_the_table_and_the_paths_are_printed(trained: Run) -> None:
    for text in ("base", "proactive", "trained", "BLEU", str(trained.folder / "results.json")):
        assert text in trained.output
    assert str(trained.folder / "policy") in trained.output
    opening = trained.transcripts[0]["messages"][1]["content"].split()[:8]
    assert f"  user: {' '.join(opening)}" in trained.output


def test_the_last_line_leads_to_the_page_of_the_run(trained: Run) -> None:
    page = trained.folder / "report.html"
    assert trained.output.splitlines()[-1].strip() == f"report: {page.as_uri()}"
    data = data_of(page)
    assert [row["label"] for row in data["table"]["rows"]][:3] == ["base", "proactive", "trained"]
    assert [[v["name"] for v in item["variants"]] for item in data["items"] if item["phase"] == "test"] == [
        ["base", "proactive", "trained"]
    ] * 2
    trees = [item for item in data["items"] if item["phase"] == "train"]
    assert {tree["step"] for tree in trees} == {1, 2}
    assert all("prompt" in goal for goal in data["goals"])
    for tree in trees:
        for candidate in tree["candidates"]:
            reply = candidate["reply"]
            assert len(reply["logprobs"]) == reply["tokens"] and max(reply["logprobs"]) <= 0
            assert sum(reply["lengths"]) == len(reply["text"])
        trained_on = [candidate["trained"] for candidate in tree["candidates"]]
        assert any(trained_on) or len({candidate["mr"] for candidate in tree["candidates"]}) == 1


def test_the_policy_has_a_card_with_its_results(trained: Run) -> None:
    card = ModelCard.load(trained.folder / "policy" / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and card.data.library_name == "peft"
    estimates = trained.results["policies"]["trained"]
    figures = {figure.metric_type: figure for figure in card.data.eval_results or []}
    assert figures.keys() == {metric for metric, estimate in estimates.items() if estimate["mean"] is not None}
    assert figures["reward"].metric_value == pytest.approx(estimates["reward"]["mean"], abs=1e-4)
    assert figures["reward"].metric_args == {
        "ci95": pytest.approx(estimates["reward"]["ci95"], abs=1e-4),
        "num_goals": 2,
    }
    assert "goals: 2 train, 1 val, 2 test" in card.text and "trainer.max_steps=2" in card.text
    last = ModelCard.load(trained.folder / "policy_last" / "README.md")
    assert last.data.eval_results is None and "The test goals were not played with this policy." in last.text


def test_every_conversation_is_on_record(trained: Run) -> None:
    records = trained.transcripts
    phases = [(record["phase"], record["policy"]) for record in records]
    tests = [phases.count(("test", policy)) for policy in ("base", "proactive", "trained")]
    assert tests == [2, 2, 2]  # goals
    assert phases.count(("validation", "policy")) == 2 * 1  # validations, goals
    assert phases.count(("train", "policy")) == 2 * (2 + 4)  # steps, candidates of a first and of a last turn
    assert len(records) == 20
    for record in records:
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["system", *["user", "assistant"] * len(record["finish_reasons"])] and 3 <= len(roles) <= 5
        assert record["ended_by"] in ("satisfied", "patience", "max_turns", "window")
        assert record["reward"] is not None and record["parts"].keys() == PARTS
    prompts = {p: {r["messages"][0]["content"] for r in records if r["policy"] == p} for p in ("base", "proactive")}
    assert prompts["base"] != prompts["proactive"]
    for policy in ("base", "proactive", "trained"):
        rewards = [r["reward"] for r in records if (r["phase"], r["policy"]) == ("test", policy)]
        assert trained.results["policies"][policy]["reward"]["mean"] == pytest.approx(statistics.fmean(rewards))


@pytest.mark.parametrize("name", ["policy", slow("policy_last")])
def test_transformers_and_peft_load_what_was_exported(trained: Run, smollm2: Path, name: str) -> None:
    folder = trained.folder / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Hi, can you help me write a notice?", return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with torch.no_grad():
        before = base(ids).logits
        direct = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, folder).eval()(ids).logits
    torch.testing.assert_close(direct, adapted)
    assert (direct - before).abs().max() > 0.01
    assert tokenizer.chat_template


def test_checkpoints_hold_the_adapter_alone(trained: Run) -> None:
    found = sorted((trained.folder / "checkpoints").iterdir())
    assert [path.name for path in found] == ["step-000001.ckpt", "step-000002.ckpt"]
    for path in found:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert state and all("lora_" in name for name in state)


def test_metrics_are_logged_for_every_step(trained: Run) -> None:
    with (trained.folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    parts = [f"{split}/{part}" for part in ("bleu", "interactivity", "token_penalty") for split in ("train", "val")]
    spreads = [f"train/{part}_spread" for part in ("mr", "bleu", "interactivity", "token_penalty")]
    for name in ("train/mr", "val/reward", *parts, *spreads):
        assert sum(bool(row[name]) for row in rows) == 2, name
    for name in ("loss", "kl", "entropy", "grad_norm", "lr", "reply_tokens", "groups_without_spread", "cut_replies"):
        assert sum(bool(row[f"train/{name}"]) for row in rows) == 2, name
    kl = [float(row["train/kl"]) for row in rows if row["train/kl"]]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[1] > 0


@pytest.fixture(scope="module")
def spoken(letters: list[str], runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`train.py` with a random model that says letters."""
    return runner("train", tmp_path_factory.mktemp("letters") / "one", *letters, "engine.deterministic=false")


@pytest.mark.parametrize("model", ["letters", slow("smollm2")])
def test_the_same_seed_repeats_the_run(
    model: str, runner: Runner, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from conftest import TRAINING

    given = request.getfixturevalue(model)
    if model == "letters":
        one, typed = request.getfixturevalue("spoken"), [*given, "engine.deterministic=false"]
    else:
        typed = [*TRAINING, f"model.path={given}"]
        one = runner("train", tmp_path / "one", *typed)
    again = runner("train", tmp_path / "again", *typed)
    assert again.results["policies"] == one.results["policies"]
    assert again.results["difference"] == one.results["difference"]
    assert again.transcripts == one.transcripts
    assert one.results["policies"]["trained"] != one.results["policies"]["base"]


# --- evaluate.py plays what was exported, and finds what train.py found ----------------------------------------------


@pytest.fixture(scope="module", params=["letters", slow("smollm2")])
def before(request: pytest.FixtureRequest) -> tuple[Run, list[str]]:
    """A training, and what its model takes."""
    if request.param == "smollm2":
        return request.getfixturevalue("trained"), []
    return request.getfixturevalue("spoken"), [*request.getfixturevalue("letters"), "engine.deterministic=false"]


@pytest.fixture(scope="module")
def evaluated(before: tuple[Run, list[str]], runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Run:
    trained, model = before
    policies = f"policies=[base,'mine:{trained.folder / 'policy'}']"
    return runner("evaluate", tmp_path_factory.mktemp("evaluation") / "run", *model, policies)


def test_a_policy_scores_as_it_did_behind_its_training(evaluated: Run, before: tuple[Run, list[str]]) -> None:
    found, trained = evaluated.results, before[0].results
    assert list(found["policies"]) == ["base", "mine"]
    for ours, theirs in (("base", "base"), ("mine", "trained")):
        assert found["policies"][ours] == trained["policies"][theirs]
    assert found["difference"] == {"mine": trained["difference"]["trained"]}


def test_the_conversations_are_those_of_the_training_run(evaluated: Run, before: tuple[Run, list[str]]) -> None:
    trained = before[0]

    def talks(run: Run, policy: str) -> list[object]:
        return [r["messages"] for r in run.transcripts if (r["phase"], r["policy"]) == ("test", policy)]

    assert talks(evaluated, "base") == talks(trained, "base") and talks(evaluated, "mine") == talks(trained, "trained")
    assert talks(evaluated, "mine") != talks(evaluated, "base")
    assert len(evaluated.transcripts) == 2 * 2


def test_it_leaves_results_and_transcripts(evaluated: Run) -> None:
    files = {path.name for path in evaluated.folder.iterdir() if path.is_file()}
    assert {"results.json", "transcripts.jsonl", "config.yaml", "report.html"} <= files
    assert not (evaluated.folder / "policy").exists()
    for name in ("base", "mine"):
        assert name in evaluated.output and name in evaluated.results["seconds"]
