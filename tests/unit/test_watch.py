"""A policy that collapses is noticed, and one that games its simulator: R* rises while what it stands for falls."""

from types import SimpleNamespace

import pytest
import torch
from composing import load_config

from collab.callbacks.spend import SpendCallback
from collab.callbacks.watch import CollapseWatch, GamingWatch
from collab.chat.budget import Ledger
from collab.config.schema import BudgetConfig
from collab.conversation import Usage


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


# --- collapse --------------------------------------------------------------------------------------------------------

WELL = {
    "mr": 1.4,
    "mr_spread": 0.7,
    "interactivity": 0.23,
    "sampled_entropy": 1.2,
    "reply_tokens": 27.0,
    "cut_replies": 0.01,
}


class Logs:
    """Stands for the module; keeps what is logged."""

    def __init__(self) -> None:
        self.logged: list[float] = []

    def log(self, name: str, value: float, **how: object) -> None:
        assert name == "train/collapse"
        self.logged.append(value)


def rolled_out(watch: CollapseWatch, *rollouts: dict[str, float]) -> list[float]:
    """What is logged while a run has rollouts with these measures."""
    module = Logs()
    for number, measures in enumerate(rollouts):
        metrics = {f"train/{name}": torch.tensor(value) for name, value in measures.items()}
        watch.on_train_batch_start(SimpleNamespace(callback_metrics=metrics, world_size=1), module, None, number)
    return module.logged


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"mr": -0.1}, "MR 1.40 -> -0.10"),
        ({"mr_spread": 0.0}, "all candidates of each group have the same MR"),
        ({"interactivity": 0.07}, "interactivity 0.23 -> 0.07"),
        ({"sampled_entropy": 3.7}, "entropy 1.20 -> 3.70"),
        ({"sampled_entropy": 0.3}, "entropy 1.20 -> 0.30"),
        ({"sampled_entropy": float("nan")}, "entropy 1.20 -> nan"),
        ({"reply_tokens": 8.0}, "tokens of a reply 27 -> 8"),
        ({"cut_replies": 0.95}, "replies cut at task.max_new_tokens 1% -> 95%"),
    ],
)
def test_a_collapse_is_told_at_its_second_rollout_with_figures_and_a_way_out(bad, words):
    said: list[str] = []
    watch = CollapseWatch(said.append)
    assert rolled_out(watch, WELL, WELL, {**WELL, **bad}) == [0, 0, 1] and said == []
    assert rolled_out(watch, {**WELL, **bad}, {**WELL, **bad}) == [1, 1]
    assert len(said) == 1 and words in said[0] and "algorithm.target_kl" in said[0] and "algorithm.lr" in said[0]


@pytest.mark.parametrize(
    "still_well",
    [
        {"mr": 0.1},
        {"mr_spread": 0.01},
        {"interactivity": 0.08},
        {"sampled_entropy": 3.5},
        {"sampled_entropy": 0.45},
        {"reply_tokens": 10.0},
        {"reply_tokens": 70.0},
        {"cut_replies": 0.8},
    ],
)
def test_what_changes_less_is_no_collapse(still_well):
    watch = CollapseWatch(pytest.fail)
    assert rolled_out(watch, WELL, {**WELL, **still_well}, {**WELL, **still_well}) == [0, 0, 0]


@pytest.mark.parametrize(
    "start",
    [
        {"interactivity": 0.05, "mr_spread": 0.0, "cut_replies": 1.0},  # as bad as it can be from the beginning
        {},  # a task without these measures
    ],
)
def test_what_was_never_well_cannot_collapse(start):
    end = {**start, "interactivity": 0.0} if start else {}
    watch = CollapseWatch(pytest.fail)
    assert rolled_out(watch, {"mr": 1.0, **start}, {"mr": 1.0, **end}, {"mr": 1.0, **end}) == [0, 0, 0]


def test_one_bad_rollout_is_logged_and_not_told():
    watch = CollapseWatch(pytest.fail)
    assert rolled_out(watch, WELL, {**WELL, "mr": -1.0}, WELL, {**WELL, "mr": -1.0, "reply_tokens": 2.0}) == [
        0,
        1,
        0,
        2,
    ]


def test_stored_conversations_have_nothing_to_watch():
    assert rolled_out(CollapseWatch(pytest.fail), {}, {}) == []


def test_a_resumed_run_compares_with_the_first_rollout_of_the_whole_run():
    said: list[str] = []
    watch = CollapseWatch(said.append)
    rolled_out(watch, WELL, {**WELL, "mr": -1.0})
    later = CollapseWatch(said.append)
    later.load_state_dict(watch.state_dict())
    assert later.signs == watch.signs
    assert rolled_out(later, {**WELL, "mr": -1.0}) == [1] and len(said) == 1
    again = CollapseWatch(said.append)
    again.load_state_dict(later.state_dict())
    assert rolled_out(again, {**WELL, "mr": -1.0}) == [1] and len(said) == 1


@pytest.mark.parametrize(
    "curves",
    [  # of runs that went well: SmolLM2-135M and Qwen2.5-Coder-0.5B on doc_edit
        {
            "mr": [1.41, 1.38, 0.49, 0.91, 1.07, 1.56, 1.11, 1.14],
            "mr_spread": [0.74, 0.6, 0.31, 0.61, 0.47, 0.6, 0.39, 0.52],
            "reply_tokens": [26.8, 33.7, 25.1, 26.5, 28.3, 29.9, 23.2, 29.6],
        },
        {
            "mr": [2.41, 2.54, 1.7, 2.57, 2.44, 2.68, 1.72, 2.03],
            "mr_spread": [0.69, 0.86, 0.49, 0.81, 0.61, 0.48, 0.31, 0.51],
            "interactivity": [0.39, 0.34, 0.27, 0.35, 0.29, 0.34, 0.33, 0.33],
        },
    ],
)
def test_real_runs_that_went_well_raise_no_alarm(curves):
    rollouts = [dict(zip(curves, values, strict=True)) for values in zip(*curves.values(), strict=True)]
    assert rolled_out(CollapseWatch(pytest.fail), *rollouts) == [0.0] * 8


# --- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"max_tokens": 100}, {"max_usd": 1.0, "prices": {"m": (1e4, 1e4)}}])
def test_a_budget_that_is_nearly_spent_is_told_once(budget):
    ledger, said, logged = Ledger(BudgetConfig(**budget)), [], []
    callback = SpendCallback(ledger, said.append)
    module = SimpleNamespace(log_dict=lambda metrics, **how: logged.append(metrics["spend/tokens"]))

    def after(step: int, tokens: int) -> None:
        ledger.add("user", "m", Usage(tokens, 0))
        callback.on_train_batch_end(SimpleNamespace(world_size=1), module, None, None, step)

    after(0, 79)
    assert said == []
    after(1, 1)
    after(2, 10)
    assert logged == [79, 80, 90] and len(said) == 1
    assert said[0].startswith("80% of the budget are spent after step 2: ") and "80 tokens" in said[0]
    callback = SpendCallback(ledger, said.append)  # of the resumed run
    after(3, 1)
    after(4, 1)
    assert len(said) == 2


def test_without_a_budget_nothing_is_nearly_spent():
    ledger = Ledger(BudgetConfig())
    ledger.add("user", "m", Usage(10**9, 0))
    assert ledger.share_spent == 0
