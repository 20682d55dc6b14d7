"""`evaluate.py` in this process, with a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from composing import load_config
from wandb_file import read

from collab.app import build
from collab.app.evaluate import evaluate, play_rows
from collab.app.resume import RunState
from collab.callbacks.progress import Progress
from collab.chat.endpoints import Endpoints

SMALL = (
    "experiment=doc_edit",
    "trainer.accelerator=cpu",
    "precision=fp32",
    "threads=1",
    "task.num_test=1",
    "task.max_turns=2",
    "task.max_new_tokens=8",
    "evaluation.num_conversations=1",
    "callbacks=quiet",
)


def played(folder: Path, tiny_model: Path, *overrides: str) -> dict[str, Any]:
    """Row -> messages of its only conversation."""
    config = load_config("evaluate", [*SMALL, f"model.path={tiny_model}", *overrides], str(folder))
    folder.mkdir(parents=True)
    with Progress(animate=False) as progress, Endpoints(config, progress.note) as endpoints:
        build.start(config)
        play_rows(config, "base", None, progress, endpoints, RunState(folder, "evaluate"))
    records = map(json.loads, (folder / "transcripts.jsonl").read_text().splitlines())
    return {record["policy"]: record["messages"] for record in records}


def test_a_policy_is_loaded_once_for_all_users(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = build.load_model, []

    def counted(*given: Any, **more: Any) -> Any:
        loaded.append(given)
        return load(*given, **more)

    monkeypatch.setattr(build, "load_model", counted)
    rows = played(tmp_path / "all", tiny_model, "+user@evaluation.users.vague=vague")
    assert list(rows) == ["base", "base@vague"] and len(loaded) == 1
    alone = played(tmp_path / "alone", tiny_model, "user=vague")
    assert rows["base@vague"] == alone["base"] and len(loaded) == 2


def test_an_evaluation_is_logged_to_wandb_with_its_further_tasks(tiny_model: Path, tmp_path: Path) -> None:
    given = ["tasks=[ask_or_act]", *(f"evaluation.tasks.ask_or_act.{x}" for x in ("num_test=2", "max_new_tokens=8"))]
    config = load_config("evaluate", [*SMALL, f"model.path={tiny_model}", *given], str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    evaluate(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    run = read(tmp_path / "run")
    assert (run.record.job_type, run.record.run_group) == ("evaluate", config.name)
    assert run.config["task"]["num_test"] == 1
    own, other = results["policies"], results["tasks"]["ask_or_act"]["policies"]
    for policy in ("base", "proactive"):
        assert run.summary[f"test/{policy}/reward"] == pytest.approx(own[policy]["reward"]["mean"])
        name = f"test/ask_or_act/{policy}/assistant_tokens"
        assert run.summary[name] == pytest.approx(other[policy]["assistant_tokens"]["mean"])
    rows = {tuple(row[:3]): row[3:] for row in run.table("results")}
    tokens = own["proactive"]["assistant_tokens"]
    found = rows["doc_edit", "proactive", "assistant_tokens"]
    assert found == pytest.approx([tokens["mean"], *tokens["ci95"], tokens["n"]])
    assert ("doc_edit", "proactive − base", "assistant_tokens") in rows and any(row[0] == "ask_or_act" for row in rows)
    said = [json.loads(line) for line in (tmp_path / "run" / "transcripts.jsonl").read_text().splitlines()]
    tables = run.table("conversations/test"), run.table("conversations/test/ask_or_act")
    assert [list(dict.fromkeys(row[0] for row in table)) for table in tables] == [["base", "proactive"]] * 2
    assert said[0]["messages"][-1]["content"].split()[0] in tables[0][0][3]
