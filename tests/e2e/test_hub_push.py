"""A training that puts its policy on the hub, at the end: a server on loopback in place of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from composing import load_config
from hub_server import HubServer, use_hub
from transformers import AutoModelForCausalLM, AutoTokenizer

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
