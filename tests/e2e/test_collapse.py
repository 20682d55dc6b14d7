"""A tiny model at an absurd learning rate: its collapse is told, and the run leaves the policy from before it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from commands import finished
from safetensors.torch import load_file
from wandb_file import read

pytestmark = pytest.mark.timeout(300)


def run(letters: list[str], folder: Path, *overrides: str) -> tuple[str, list[float]]:
    """What a run of five steps prints, and its `train/collapse`."""
    absurd = ("algorithm.lr=30", "algorithm.schedule=constant", "trainer.max_steps=5", "trainer.val_every=0")
    done = finished("train", *letters, *absurd, *overrides, f"output_dir={folder}")
    assert done.returncode == 0, done.stderr
    with (folder / "csv" / "metrics.csv").open() as file:
        return done.stdout, [float(row["train/collapse"]) for row in csv.DictReader(file)]


def test_a_collapse_is_told_and_the_policy_from_before_it_is_kept(letters: list[str], tmp_path: Path) -> None:
    printed, signs = run(letters, tmp_path, "logger=wandb")
    assert printed.count("the policy has collapsed") == 1
    assert signs[0] == 0 and all(signs[1:])
    ((title, text),) = read(tmp_path).alerts
    assert title == f"Collapse: {tmp_path.name}" and text.startswith("the policy has collapsed: ")
    kept, last = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("policy", "policy_last"))
    into = [name for name in kept if "lora_B" in name]  # zero in the policy that the run started from
    assert into and all(not kept[name].any() for name in into)
    assert any(last[name].any() and not torch.equal(last[name], kept[name]) for name in into)


@pytest.mark.slow
def test_the_same_rate_does_no_harm_where_steps_are_bounded(letters: list[str], tmp_path: Path) -> None:
    printed, signs = run(letters, tmp_path, "algorithm.target_kl=0.1")
    assert "collapsed" not in printed and not any(signs)
    last = load_file(tmp_path / "policy_last" / "adapter_model.safetensors")
    kept = load_file(tmp_path / "policy" / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], last[name]) for name in last)
