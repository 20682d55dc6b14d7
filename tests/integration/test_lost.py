"""Scores that could not be had: what leaves a step, what is counted, and when the run stops, behind a checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from scripted import ScriptedModel, ScriptedUser, spoken
from stepping import trainer_with

from collab.app.evaluate import policy_scores
from collab.callbacks.checkpoint import BatchCheckpoint
from collab.callbacks.rollout import RolloutCallback
from collab.callbacks.rollout_metrics import conversation_values, means
from collab.chat.base import Sampling
from collab.config.schema import SamplerConfig
from collab.conversation import INVALID, Conversation, Goal, Score
from collab.datamodules.base import GoalDataModule
from collab.datamodules.goals import GoalSplits
from collab.randomness import RngKey
from collab.reports.problems import add_problems
from collab.rewards.metrics import TokenPenalty
from collab.rewards.reward import ConversationReward
from collab.simulation.sampler import Simulation
from collab.simulation.user import UserTurn, invalid
from collab.util.errors import RunStopped

GOALS = [Goal("a", "A text.", "A text."), Goal("b", "B text.", "B text.")]
Spoils = Callable[[Conversation, RngKey], bool]


class Listener(L.LightningModule):
    """A policy module that keeps what it is given to learn from, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Module()
        self.policy.lm = torch.nn.Linear(1, 1)
        self.tokenizer = None
        self.automatic_optimization = False
        self.groups: dict[int, list[Any]] = {}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.groups[batch_idx] = batch.groups
        self.optimizers().step()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Counting(TokenPenalty):
    """Counts the conversations that it was asked about."""

    asked = 0

    async def __call__(self, conversation: Conversation) -> float | None:
        self.asked += 1
        return await super().__call__(conversation)


def simulated(spoils: Spoils, metric: TokenPenalty, max_invalid: float = 0.5) -> Simulation:
    def user(conversation: Conversation, key: RngKey) -> UserTurn:
        return UserTurn("", invalid("shape")) if spoils(conversation, key) else UserTurn(f"hi {conversation.turn}")

    return Simulation(
        user=ScriptedUser(user),  # type: ignore[arg-type]
        reward=ConversationReward({"token_penalty": (-1.0, metric)}),
        sampling=Sampling(8),
        max_turns=2,
        sampler=SamplerConfig(window=1, num_samples=2, group_size=3, paired=False),
        seed=1,
        make_engine=lambda lm, tokenizer: ScriptedModel(lambda messages, key: f"reply {key.candidate}", lm=lm),  # type: ignore[arg-type,return-value]
        max_invalid=max_invalid,
    )


def run(
    spoils: Spoils, *, steps: int = 1, max_invalid: float = 0.5, folder: Path | None = None, resume: str | None = None
) -> tuple[Listener, L.Trainer, Counting]:
    metric = Counting(0.001)
    simulation = simulated(spoils, metric, max_invalid)
    callbacks: list[L.Callback] = [RolloutCallback(simulation, "")]
    if folder is not None:
        callbacks.append(BatchCheckpoint(folder, every_n_steps=100))
    trainer = trainer_with(callbacks, limit_val_batches=0)
    module = Listener()
    data = GoalDataModule(GoalSplits(train=GOALS, val=GOALS, test=GOALS), 2, steps, seed=1)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, trainer, metric


def in_future(conversation: Conversation, key: RngKey) -> bool:
    """Whether this is a user message of a forward conversation."""
    return key.split.startswith("train/") and bool(conversation.turns)


def test_what_is_lost_is_counted_and_leaves_the_step() -> None:
    """One group is at turn 1, where a future has a user message; of its three candidates two lose both futures."""
    module, trainer, metric = run(lambda c, k: in_future(c, k) and k.candidate in (0, 1))
    [group] = module.groups[0]  # the one at turn 2, whose futures are over with the reply
    assert group.context.turn == 2 and len(group.candidates) == 3
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["train/futures"] == 12 and logged["train/invalid"] == 4 and logged["train/unscored"] == 0
    assert logged["train/lost_groups"] == 1 and logged["train/candidates"] == 3
    assert metric.asked == 8, "an invalid conversation was measured"


def test_a_future_that_is_lost_is_left_out_of_its_candidates_mean() -> None:
    module, trainer, _ = run(lambda c, k: in_future(c, k) and k.candidate == 0 and k.sample == 0)
    assert [len(group.candidates) for group in module.groups[0]] == [3, 3]
    assert float(trainer.callback_metrics["train/invalid"]) == 1
    assert float(trainer.callback_metrics["train/turns"]) == 2, "an invalid conversation was taken into the mean"


def test_a_goal_without_a_context_is_lost_whole() -> None:
    module, trainer, _ = run(lambda c, k: k.split.startswith("context/") and k.goal == "a")
    assert [group.context.goal.id for group in module.groups[0]] == ["b"]
    assert float(trainer.callback_metrics["train/invalid"]) == 6


def test_a_step_of_which_too_much_is_lost_stops_the_run_and_it_can_be_taken_up(tmp_path: Path) -> None:
    def broken(conversation: Conversation, key: RngKey) -> bool:
        return key.round == 2

    with pytest.raises(RunStopped, match=r"12 of the 12 forward conversations of step 3 .*max_invalid=0.5"):
        run(broken, steps=4, folder=tmp_path)
    [checkpoint] = tmp_path.glob("*.ckpt")
    assert checkpoint.name == "step-000002.ckpt"
    module, trainer, _ = run(lambda c, k: False, steps=4, folder=tmp_path, resume=str(checkpoint))
    assert sorted(module.groups) == [2, 3] and trainer.global_step == 4
    _, whole, _ = run(lambda c, k: False, steps=4)
    loops = [one.fit_loop.epoch_loop for one in (trainer, whole)]
    assert loops[0]._batches_that_stepped == loops[1]._batches_that_stepped  # the step that loggers are told


def test_an_evaluation_of_which_too_much_is_lost_is_none() -> None:
    with pytest.raises(RunStopped, match=r"2 of the 2 test conversations of mine .*max_invalid=0.5"):
        rollout = RolloutCallback(simulated(lambda c, k: k.split == "test", Counting(0.001)), "", name="mine")
        data = GoalDataModule(GoalSplits(train=GOALS, val=GOALS, test=GOALS), 2, 1, seed=1)
        trainer_with([rollout]).test(Listener(), data)


def test_counts_go_on_from_a_checkpoint() -> None:
    simulation = simulated(lambda c, k: False, Counting(0.001))
    before, after = (RolloutCallback(replace(simulation, problems=Counter(user_leak=n)), "") for n in (2, 0))
    after.load_state_dict(before.state_dict())
    assert after.simulation.problems == {"user_leak": 2}


def test_nothing_at_all_may_be_lost_on_request_and_everything() -> None:
    with pytest.raises(RunStopped, match="1 of the 12"):
        run(lambda c, k: in_future(c, k) and k.candidate == 0 and k.sample == 0, max_invalid=0.0)
    module, _, _ = run(lambda c, k: True, max_invalid=1.0)
    assert module.groups[0] == []


def test_an_evaluation_leaves_invalid_conversations_out_of_every_mean() -> None:
    good = Conversation(GOALS[0]).with_user("hi").with_reply(spoken("one two three")).with_end("max_turns")
    bad = Conversation(GOALS[0]).with_user("hi").with_reply(spoken("one")).with_end(f"{INVALID}: leak")
    scored = [(good, Score(0.5, {"x": 0.5})), (bad, Score(None, {"x": None}))]
    found = means(conversation_values(scored, []))
    assert (found["reward"], found["assistant_tokens"], found["turns"], found["invalid"]) == (0.5, 3, 1, 0.5)
    assert policy_scores(scored)["turns"] == {"a": [1.0, None]}
    assert policy_scores(scored)["assistant_tokens"] == {"a": [3.0, None]}


def test_counts_of_all_phases_are_in_one_file(tmp_path: Path) -> None:
    assert add_problems(tmp_path, "base", {}) == "" and not list(tmp_path.iterdir())
    assert "user_leak 2" in add_problems(tmp_path, "base", {"user_leak": 2, "user_stop": 0})
    add_problems(tmp_path, "fit", {"user_leak": 5})
    add_problems(tmp_path, "fit", {"user_leak": 7}, rank=1)
    found = json.loads((tmp_path / "problems.json").read_text())
    assert found == {"base": {"user_leak": 2, "user_stop": 0}, "fit": {"user_leak": 5}}
    assert json.loads((tmp_path / "problems-rank1.json").read_text()) == {"fit": {"user_leak": 7}}
