"""Losses and gradients against those of trusted implementations, on the same tensors: TRL 1.16 and torchrl.

TRL has no PPO any more; its GRPO takes an advantage for each token as well, which makes it PPO's clipped policy loss.
It gets whole sequences, padded, where we pack groups behind their history.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from stepping import fit
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from test_update import BETA, CLIP, KL, TEMPERATURE, VOCABULARY, make_groups, make_lm, moved, token_logprobs
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.utils.rnn import pad_sequence
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate
from transformers import PreTrainedTokenizerFast

from collab.config.algorithms import DPOConfig, GRPOConfig, PPOConfig
from collab.conversation import Reply
from collab.modules.base import PolicyModule
from collab.modules.dpo import DPO
from collab.modules.grpo import GRPO
from collab.modules.losses import clipped_value_losses, generalised_advantages
from collab.modules.packing import pack
from collab.modules.ppo import PPO, Episodes

SETTING: dict[str, Any] = {"tokens_per_micro_batch": 40, "max_grad_norm": 0.0}


# --- TRL -------------------------------------------------------------------------------------------------------------


def trl_arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "per_device_train_batch_size": 12,
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """Of numbers, which nothing here is tokenised by."""
    words = Tokenizer(WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", bos_token="1", eos_token="2", unk_token="0")


def trl_grpo(folder: Path, **fields: Any) -> Any:
    import trl

    trainer = trl.GRPOTrainer(
        model=moved(make_lm("Llama", adapter=False)),
        processing_class=tokenizer(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),  # never called: nothing is generated
        train_dataset=datasets.Dataset.from_list([{"prompt": "3"}] * 12),
        # The KL as in the paper: TRL multiplies it by the ratio otherwise.
        args=trl.GRPOConfig(
            **trl_arguments(folder),
            num_generations=3,
            temperature=TEMPERATURE,
            epsilon=CLIP,
            beta=0.0,
            use_bias_correction_kl=False,
            **fields,
        ),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # what `train` does before its first step
    return trainer


def padded(rows: Sequence[Sequence[float]], side: str = "right", **kind: Any) -> torch.Tensor:
    return pad_sequence([torch.tensor(row, **kind) for row in rows], batch_first=True, padding_side=side)


def trl_inputs(replies: Sequence[Reply]) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, completions on the right."""
    return {
        "prompt_ids": padded([reply.prompt_ids for reply in replies], "left"),
        "prompt_mask": padded([[1] * len(reply.prompt_ids) for reply in replies], "left"),
        "completion_ids": padded([reply.token_ids for reply in replies]),
        "completion_mask": padded([[1] * len(reply.token_ids) for reply in replies]),
        "old_per_token_logps": padded([reply.logprobs for reply in replies]),
        "num_items_in_batch": torch.tensor(float(sum(len(reply.token_ids) for reply in replies))),
    }


def assert_same(loss: float, gradients: dict[str, torch.Tensor], their_loss: torch.Tensor, their_model: Any) -> None:
    their_loss.backward()
    assert loss == pytest.approx(their_loss.item(), abs=1e-5)
    expected = {name: p.grad for name, p in their_model.named_parameters() if p.grad is not None}
    found = {name.removeprefix("policy.lm."): x for name, x in gradients.items() if "value_head" not in name}
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(1.0, largest), rtol=0, msg=name)


def policy_of(target: Any, config: Any, temperature: float = TEMPERATURE) -> PolicyModule:
    module = target(config, lambda: make_lm("Llama", adapter=False), None, temperature, 1)
    module.configure_model()
    moved(module.policy.lm)
    return module


@pytest.mark.parametrize(
    ("loss_aggregation", "loss_type", "kl_coef"),
    [("tokens", "dapo", KL), ("sequences", "grpo", 0.0)],
    ids=["tokens", "sequences"],
)
def test_grpo_is_that_of_trl(loss_aggregation: str, loss_type: str, kl_coef: float, tmp_path: Path) -> None:
    groups = make_groups()
    config = GRPOConfig(**SETTING, clip_epsilon=CLIP, kl_coef=kl_coef, loss_aggregation=loss_aggregation, std_eps=1e-4)
    _, scored = fit(policy_of(GRPO, config), groups)

    trainer = trl_grpo(tmp_path, loss_type=loss_type)
    trainer.beta = kl_coef  # not before: it would load a reference by the model's name
    replies = [candidate.reply for group in groups for candidate in group.candidates]
    rewards = torch.tensor([[candidate.mr for candidate in group.candidates] for group in groups])
    inputs = trl_inputs(replies)
    # As TRL standardises rewards by their group, with 1e-4 beside the standard deviation.
    inputs["advantages"] = ((rewards - rewards.mean(1, True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    reference = make_lm("Llama", adapter=False)
    with torch.no_grad():
        inputs["ref_per_token_logps"] = padded([token_logprobs(reference, reply).tolist() for reply in replies])
    assert_same(
        scored.logged[0]["loss"], scored.gradients[0], trainer.compute_loss(trainer.model, inputs), trainer.model
    )


def test_the_clipped_policy_loss_of_ppo_is_that_of_trl(tmp_path: Path) -> None:
    replies = [[candidate.reply for candidate in group.candidates] for group in make_groups()]
    draw = torch.Generator().manual_seed(2)
    advantages = [[torch.randn(len(reply.token_ids), generator=draw) for reply in row] for row in replies]
    module: Any = policy_of(PPO, PPOConfig(**SETTING, clip_epsilon=CLIP, value_coef=0.0))
    batch = pack(replies, TEMPERATURE)
    nothing = [torch.zeros(sum(map(len, row))) for row in advantages]
    examples = [
        Episodes(tuple(row), advantages=torch.cat(each), values=zeros, returns=zeros)
        for row, each, zeros in zip(replies, advantages, nothing, strict=True)
    ]
    loss = module.loss(examples, batch, module.policy(batch), None) / sum(map(module.units, examples))
    loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    trainer = trl_grpo(tmp_path, loss_type="dapo")
    inputs = trl_inputs([reply for row in replies for reply in row])
    inputs["advantages"] = padded([each.tolist() for row in advantages for each in row])
    assert_same(loss.item(), gradients, trainer.compute_loss(trainer.model, inputs), trainer.model)


def test_dpo_is_that_of_trl(tmp_path: Path) -> None:
    import trl

    groups = make_groups()
    _, scored = fit(policy_of(DPO, DPOConfig(**SETTING, beta=BETA), temperature=1.0), groups)

    trainer: Any = trl.DPOTrainer(
        model=moved(make_lm("Llama", adapter=False)),
        ref_model=make_lm("Llama", adapter=False),
        processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_list([{"prompt": "3", "chosen": "4", "rejected": "5"}]),
        args=trl.DPOConfig(**trl_arguments(tmp_path), beta=BETA, loss_type=["sigmoid"]),
    )
    trainer.model.train()
    ranked = [sorted(group.candidates, key=lambda candidate: candidate.mr or 0.0) for group in groups]
    inputs = trainer.data_collator(
        [
            {
                "prompt_ids": list(row[0].reply.prompt_ids),
                "chosen_ids": list(row[-1].reply.token_ids),
                "rejected_ids": list(row[0].reply.token_ids),
            }
            for row in ranked
        ]
    )
    assert_same(
        scored.logged[0]["loss"], scored.gradients[0], trainer.compute_loss(trainer.model, inputs), trainer.model
    )


# --- torchrl ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (1.0, 1.0)])
def test_advantages_are_those_of_torchrl(gamma: float, lambda_: float) -> None:
    draw = torch.Generator().manual_seed(3)
    lengths = (7, 1, 4, 6)
    rewards, values = ([torch.randn(n, generator=draw) for n in lengths] for _ in range(2))
    found = generalised_advantages(
        pad_sequence(rewards, batch_first=True), pad_sequence(values, batch_first=True), gamma, lambda_
    )
    for row, reward, value in zip(found, rewards, values, strict=True):
        done = torch.zeros(len(reward), 1, dtype=torch.bool)
        done[-1] = True
        after = torch.cat([value[1:], torch.tensor([123.0])])  # behind the end, where nothing may be read
        expected, _ = generalized_advantage_estimate(
            gamma, lambda_, value[:, None], after[:, None], reward[:, None], done
        )
        torch.testing.assert_close(row[: len(reward)], expected[:, 0], atol=1e-5, rtol=0)
        assert (row[len(reward) :] == 0).all()


def test_clipped_value_losses_are_those_of_torchrl() -> None:
    """`ClipPPOLoss.loss_critic`, whose squared error is not halved."""
    draw = torch.Generator().manual_seed(4)
    states, returns, before = (torch.randn(40, width, generator=draw) for width in (5, 1, 1))
    critic = torch.nn.Linear(5, 1)
    with torch.no_grad():
        critic.weight.copy_(torch.randn(1, 5, generator=draw))
    clip = 0.4
    ours = clipped_value_losses(critic(states)[:, 0], before[:, 0], returns[:, 0], clip)
    gradients = torch.autograd.grad(ours.sum(), tuple(critic.parameters()))

    theirs = ClipPPOLoss(
        actor_network=critic,  # never called
        critic_network=TensorDictModule(critic, in_keys=["states"], out_keys=["state_value"]),
        clip_value=clip,
        loss_critic_type="l2",
        critic_coeff=1.0,
        functional=False,
        reduction="none",
    )
    data = TensorDict({"states": states, "state_value": before, "value_target": returns}, batch_size=[40])
    expected, clipped, _ = theirs.loss_critic(data)
    assert 0.2 < clipped < 0.8  # some are, some are not
    torch.testing.assert_close(ours, expected[:, 0] / 2, atol=1e-5, rtol=0)
    for found, gradient in zip(
        gradients, torch.autograd.grad(expected.sum() / 2, tuple(critic.parameters())), strict=True
    ):
        torch.testing.assert_close(found, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)
