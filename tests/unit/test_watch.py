"""A policy that games its simulator is noticed: R* rises while what it stands for falls."""

from types import SimpleNamespace

import pytest
import torch
from composing import load_config

from collab.callbacks.watch import GamingWatch


def watched(**curves: list[float]) -> tuple[list[str], GamingWatch]:
    """What is said while a run logs these curves."""
    said: list[str] = []
    watch = GamingWatch(said.append)
    for step in range(len(next(iter(curves.values())))):
        metrics = {f"train/{name}": torch.tensor(values[step]) for name, values in curves.items()}
        watch.on_train_batch_end(SimpleNamespace(callback_metrics=metrics))
    return said, watch


RISING = [1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0]
FLAT = [0.5] * 8


@pytest.mark.parametrize(
    ("name", "curve", "word"),
    [
        ("pertinent", [0.8, 0.8, 0.8, 0.6, 0.5, 0.4, 0.3, 0.3], "fewer of its questions"),
        ("distinct_questions", [0.9, 0.9, 0.9, 0.5, 0.2, 0.1, 0.1, 0.1], "in the same words"),
        ("copied", [0.0, 0.0, 0.0, 0.1, 0.3, 0.5, 0.6, 0.6], "pastes"),
        ("repetition", [0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.3, 0.3], "twice"),
    ],
)
def test_each_sign_is_told_once_with_its_figures(name, curve, word):
    said, _ = watched(mr=RISING, **{name: curve})
    assert len(said) == 1 and word in said[0] and f"{name} {sum(curve[:3]) / 3:.2f}" in said[0]
    assert "transcripts.jsonl" in said[0]


@pytest.mark.parametrize("task", ["doc_edit", "math", "code"])
def test_pertinent_is_watched_with_every_task_that_has_an_agenda(task):
    metric = load_config("train", [f"experiment={task}"]).task.metrics["pertinent"]
    assert metric.weight == 0 and metric.target == "collab.rewards.metrics.PertinentQuestions"


def test_nothing_is_told_while_r_does_not_rise():
    assert watched(mr=FLAT, copied=[0.0, 0.0, 0.0, 0.5, 0.9, 0.9, 0.9, 0.9])[0] == []


def test_nothing_is_told_of_what_gets_better_or_hardly_moves():
    assert watched(mr=RISING, copied=RISING[::-1], pertinent=RISING, repetition=FLAT)[0] == []


def test_a_metric_that_is_missing_or_not_a_number_is_left_out():
    assert watched(mr=RISING, pertinent=[float("nan")] * 8)[0] == []


def test_a_resumed_run_goes_on_watching_and_does_not_repeat_itself():
    copied = [0.0, 0.0, 0.0, 0.5, 0.6, 0.6]
    said, watch = watched(mr=RISING[:6], copied=copied)
    later = GamingWatch(said.append)
    later.load_state_dict(watch.state_dict())
    metrics = {"train/mr": torch.tensor(5.0), "train/copied": torch.tensor(0.6)}
    later.on_train_batch_end(SimpleNamespace(callback_metrics=metrics))
    assert len(said) == 1 and len(later.history["mr"]) == 7


def test_ends_that_overlap_are_not_compared():
    steps = slice(0, 5)
    assert watched(mr=RISING[steps], copied=[0.0, 0.0, 0.9, 0.9, 0.9])[0] == []
