"""Rollouts of the next steps during the update: who plays them, when, and that nothing depends on threads."""

from __future__ import annotations

import asyncio
import string
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from models import tiny_lm, with_adapter, word_tokenizer
from stepping import trainer_with

from collab.callbacks.checkpoint import BatchCheckpoint
from collab.callbacks.overlap import OverlappedRollout
from collab.callbacks.rollout import RolloutCallback
from collab.chat.base import Sampling
from collab.chat.journal import Journal
from collab.config.algorithms import GRPOConfig
from collab.config.schema import SamplerConfig
from collab.conversation import Conversation, Goal, Group
from collab.datamodules.base import GoalDataModule
from collab.datamodules.goals import GoalSplits
from collab.generation.engine import LocalEngine
from collab.modules.grpo import GRPO
from collab.modules.packing import pack
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.sampler import Simulation
from collab.simulation.user import UserTurn
from collab.util.errors import RunStopped

TEMPERATURE, STEPS = 0.7, 4
GOALS = [Goal(name, f"A text about {name}.", f"{name}.") for name in "abc"]
TOKENIZER = word_tokenizer(
    ["user", "assistant", *string.ascii_lowercase],
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}assistant ",
)


class Early:
    """The share of the alphabet's first half in the last reply."""

    async def __call__(self, conversation: Conversation) -> float | None:
        letters = conversation.assistant_texts[-1].replace(" ", "")
        return sum(letter < "n" for letter in letters) / max(1, len(letters))


@dataclass
class SlowUser:
    """Says a letter after a while, which may differ from message to message.

    Attributes:
        seconds: (context, key) -> how long that is.
        heard: Steps of the messages of training, with "updated N" after the update of step N.
    """

    seconds: Callable[[Conversation, RngKey], float] = lambda conversation, key: 0.0
    heard: list[Any] = field(default_factory=list)

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        if key.split.startswith(("train/", "context/")):
            self.heard.append(key.round)
        await asyncio.sleep(self.seconds(conversation, key))
        return UserTurn("qrstuv"[conversation.turn])


class Seen(L.Callback):
    """Keeps the groups of each step, the weights before it, and what is logged."""

    def __init__(self, user: SlowUser) -> None:
        self.user = user
        self.groups: dict[int, list[Group]] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.logged: dict[int, dict[str, float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.groups[batch_idx] = batch.groups
        self.weights[batch_idx] = trained(pl_module)
        patched = [name for name, layer in pl_module.policy.lm.named_modules() if "forward" in vars(layer)]
        assert not patched, "the model that is trained is not the one that decodes"

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.user.heard.append(f"updated {batch_idx}")
        self.logged[batch_idx] = {name: float(value) for name, value in trainer.callback_metrics.items()}


def trained(module: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def run(
    staleness: int,
    user: SlowUser | None = None,
    *,
    folder: Path | None = None,
    resume: Path | None = None,
    adapter: bool = True,
    steps: int = STEPS,
    journal: Journal | None = None,
    **fields: Any,
) -> tuple[GRPO, Seen]:
    """A training of a tiny model on two goals a step; a checkpoint after each step, if there is a folder."""
    user = user or SlowUser()
    simulation = Simulation(
        user=user,
        reward=ConversationReward({"early": (1.0, Early())}),
        sampling=Sampling(5, TEMPERATURE),
        max_turns=2,
        sampler=SamplerConfig(window=1, num_samples=1, group_size=3),
        seed=1,
        make_engine=lambda lm, tokenizer: LocalEngine(lm, tokenizer, max_batch=4, deterministic=True),
        journal=journal,
    )
    rollout = OverlappedRollout(simulation, "", staleness) if staleness else RolloutCallback(simulation, "")
    callbacks: list[L.Callback] = [rollout, seen := Seen(user)]
    if folder is not None:
        callbacks.append(BatchCheckpoint(folder, every_n_steps=1))
    trainer = trainer_with(callbacks, val_check_interval=2 if steps > 1 else None)

    def load() -> Any:
        lm = tiny_lm(len(TOKENIZER), eos_token_id=2)
        return with_adapter(lm) if adapter else lm

    config = GRPOConfig(**{"lr": 0.05, "warmup_steps": 0, **fields})
    module = GRPO(config, load, TOKENIZER, TEMPERATURE, steps, None, staleness)
    data = GoalDataModule(GoalSplits(train=GOALS, val=GOALS[:1], test=[]), 2, steps, seed=1)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    assert "rollout" not in {thread.name for thread in threading.enumerate()}
    return module, seen


@pytest.mark.parametrize(
    ("staleness", "adapter"),
    [pytest.param(1, True, marks=pytest.mark.slow), (2, True), pytest.param(2, False, marks=pytest.mark.slow)],
)
def test_a_step_is_played_by_the_policy_of_so_many_updates_before(staleness: int, adapter: bool) -> None:
    module, seen = run(staleness, adapter=adapter)
    assert module.policy is not None
    ages = [min(step, staleness) for step in range(STEPS)]
    assert [seen.logged[step]["train/staleness"] for step in range(STEPS)] == ages

    def distance(step: int, version: int) -> float:
        """From the log-probs of sampling to those of a version, per token."""
        module.load_state_dict(seen.weights[version], strict=False)
        replies = [[c.reply for c in group.candidates] for group in seen.groups[step]]
        packed = pack(replies, TEMPERATURE)
        with torch.no_grad():
            return float((module.policy(packed).logprobs - packed.sampled_logprobs).abs().max())  # type: ignore[misc]

    for step, age in enumerate(ages):
        assert distance(step, step - age) < 1e-4
        if age:
            assert distance(step, step) > 1e-2  # not by the policy that is updated,
            assert distance(step, step - age + 1) > 1e-2  # nor by the one after that which played


@pytest.mark.parametrize("staleness", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_next_steps_begin_before_the_update(staleness: int) -> None:
    _, seen = run(staleness, SlowUser(lambda conversation, key: 0.05))
    heard = seen.user.heard
    for step in range(STEPS):
        first = heard.index(step)
        begins = max(0, step - staleness)  # at the start of this step: after the update before it
        assert (f"updated {begins - 1}" in heard[:first]) == (begins > 0)
        assert f"updated {begins}" not in heard[:first]
    strict = run(0)[1].user.heard
    assert all(strict.index(step) > strict.index(f"updated {step - 1}") for step in range(1, STEPS))


def test_what_is_played_and_learned_does_not_depend_on_who_is_fast() -> None:
    first, seen = run(2)
    late = SlowUser(lambda conversation, key: key.digest(1)[0] / 255 * 0.2)
    other, again = run(2, late)
    assert seen.groups == again.groups
    expected = trained(other)
    assert all(torch.equal(weight, expected[name]) for name, weight in trained(first).items())


def test_a_run_of_one_step_learns_what_it_learns_without_overlap() -> None:
    """Its groups are as new as they can be, and its loss differs by the rounding of log-probs alone."""
    overlapped, seen = run(3, steps=1)
    strict, alone = run(0, steps=1)
    assert seen.groups == alone.groups
    expected = trained(strict)
    for name, weight in trained(overlapped).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=0)
    assert seen.logged[0]["train/staleness"] == seen.logged[0]["train/truncated_share"] == 0
    assert "train/staleness" not in alone.logged[0]


def test_a_run_that_is_taken_up_ends_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Steps that were under way at the checkpoint are played by the policy that had begun them."""
    whole, seen = run(2, folder=tmp_path)
    again, later = run(2, resume=tmp_path / "step-000003.ckpt")
    assert later.groups == {step: groups for step, groups in seen.groups.items() if step >= 3}
    assert [later.logged[step]["train/staleness"] for step in later.logged] == [2.0]
    expected = trained(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in trained(again).items())


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # of a journal that was closed too soon
def test_a_step_that_fails_stops_the_run_behind_a_checkpoint(tmp_path: Path) -> None:
    """What others say in the meantime is kept, and the run goes on from where it was."""
    journal = Journal(tmp_path / "journal")

    def seconds(conversation: Conversation, key: RngKey) -> float:
        if key.round == 2 and key.goal == failing:
            raise RunStopped("the server is gone")
        return 0.01

    failing = ""
    whole, seen = run(1)
    failing = seen.groups[2][0].context.goal.id
    with pytest.raises(RunStopped, match="the server is gone"):
        run(1, SlowUser(seconds), folder=tmp_path, journal=journal)
    assert "rollout" not in {thread.name for thread in threading.enumerate()}
    assert (tmp_path / "step-000002.ckpt").exists()
    again, later = run(1, resume=tmp_path / "step-000002.ckpt", journal=journal)
    assert later.groups == {step: groups for step, groups in seen.groups.items() if step >= 2}
    expected = trained(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in trained(again).items())


def test_replies_go_into_the_journal_of_their_step(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _, seen = run(2, SlowUser(lambda conversation, key: 0.02), journal=journal)
    for step, groups in seen.groups.items():
        [file] = tmp_path.glob(f"train-{step + 1:06d}.*")
        text = file.read_text()
        for reply in (candidate.reply for group in groups for candidate in group.candidates):
            assert str(list(reply.logprobs)).replace(" ", "") in text


def test_several_updates_weight_by_the_policy_before_the_first() -> None:
    """Two passes over a rollout whose second one is far from the first: the weights stay those of the first."""
    module, seen = run(1, steps=2, epochs=2, lr=0.2)
    assert 0 <= seen.logged[1]["train/truncated_share"] < 1
    assert module.policy is not None
    module.load_state_dict(seen.weights[1], strict=False)
    examples = module.prepare(module.examples(seen.groups[1]))
    batch = pack([example.replies for example in examples], TEMPERATURE)
    with torch.no_grad():
        before = module.policy(batch)
        moved = before._replace(logprobs=before.logprobs + 0.5)
    torch.testing.assert_close(module.proximal(examples, batch, moved), before.logprobs)
