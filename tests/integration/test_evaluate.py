"""`evaluate.py` in this process, with a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from composing import load_config

from collab.app import build
from collab.app.evaluate import play_rows
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
