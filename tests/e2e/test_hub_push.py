"""Policies on the hub: a training that puts its own there, at a server on loopback, and a row that is one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from composing import load_config
from hub_server import HubServer, use_hub
from huggingface_hub import ModelCard, constants
from models import with_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from collab.app.cli import main
from collab.app.train import train


def test_the_best_policy_arrives_and_loads(
    letters: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    more = ("export.merge=true", "push_to_hub=ada/letters", "trainer.max_steps=1", "trainer.val_every=0")
    config = load_config("train", [*letters, *more], output_dir=str(folder))
    os.makedirs(folder)
    with HubServer() as hub:
        use_hub(hub, monkeypatch)
        train(config)
        there = hub.download("models/ada/letters", tmp_path / "there")
    assert f"on the hub: {hub.url}/ada/letters" in capsys.readouterr().out
    assert hub.repos["models/ada/letters"]["private"]
    loaded, exported = (AutoModelForCausalLM.from_pretrained(place) for place in (there, folder / "policy"))
    for name, weight in exported.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
    assert AutoTokenizer.from_pretrained(there).chat_template
    card = ModelCard.load(there / "README.md")
    assert (
        card.data.library_name == "transformers" and card.data.base_model is None
    )  # the base is on this machine alone
    assert {figure.metric_type for figure in card.data.eval_results or []} >= {"reward", "bleu"}


def test_a_policy_on_the_hub_is_a_row_of_the_table(
    letters: list[str], letters_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that was downloaded before: the hub cannot be asked here."""
    cache = tmp_path / "cache" / "models--lab--adapter"
    folder = cache / "snapshots" / ("0" * 40)
    with_adapter(AutoModelForCausalLM.from_pretrained(letters_model), learned=1.0).save_pretrained(folder)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    typed = [*letters, f"policies=[base,hub:lab/adapter,here:{folder}]", f"output_dir={tmp_path / 'run'}"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.parent))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *typed])
    main("evaluate")
    said: dict[str, list[object]] = {}
    for line in (tmp_path / "run" / "transcripts.jsonl").read_text().splitlines():
        record = json.loads(line)
        said.setdefault(record["policy"], []).append(record["messages"])
    assert said["adapter"] == said["here"] != said["base"]
