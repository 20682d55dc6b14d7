"""A step's loss and gradients are those of the plain computation, written out here without the code that it tests.

Every sequence goes through transformers on its own, unpacked, in one forward pass; losses follow their papers. The
value head of PPO is the vector `HEAD` here, its bias last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from marks import slow
from models import tiny_lm, with_adapter
from stepping import fit

from collab.config.algorithms import DPOConfig, GRPOConfig, PPOConfig, SFTConfig
from collab.conversation import Candidate, Conversation, Goal, Group, Reply
from collab.lm import packed_attention
from collab.lm.lora import make_lean
from collab.modules import policy
from collab.modules.dpo import DPO
from collab.modules.grpo import GRPO
from collab.modules.ppo import PPO
from collab.modules.sft import SFT

VOCABULARY, TEMPERATURE, BETA, CLIP, KL = 61, 0.7, 0.3, 0.2, 0.4
GAMMA, LAMBDA, VALUE_CLIP, VALUE_COEF = 0.9, 0.8, 0.05, 0.7
HEAD = 0.3 * torch.randn(33, generator=torch.Generator().manual_seed(9))
WINDOW = 8  # shorter than any group's sequences


def make_lm(family: str, adapter: bool) -> Any:
    """A tiny random model of a family. Heads are wider than hidden size / number of heads wherever that can be."""
    fields: dict[str, Any] = {"head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    windows = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
    if family == "Qwen2":
        fields["head_dim"] = None
    if family in ("Qwen2", "Qwen3"):
        fields |= {**windows, "use_sliding_window": True}
    elif family == "Mistral":
        fields |= {"sliding_window": WINDOW}
    elif family == "Gemma2":
        fields |= {**windows, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
    elif family == "Gemma3":
        fields |= windows
    lm = tiny_lm(VOCABULARY, family, **fields)
    return with_adapter(lm) if adapter else lm


def moved(lm: Any) -> Any:
    """As after some steps: the policy is no longer its reference."""
    with torch.no_grad():
        for number, parameter in enumerate(p for p in lm.parameters() if p.requires_grad):
            draw = torch.Generator().manual_seed(number)
            parameter.add_(0.1 * parameter.std().clamp(min=0.2) * torch.randn(parameter.shape, generator=draw))
    return lm


def make_groups() -> list[Group]:
    """Histories and replies of many lengths, replies of one token among them."""
    draw = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=draw).tolist())

    found = []
    for history, lengths in ((9, (5, 1, 3)), (12, (2, 7, 4)), (17, (6, 1, 1)), (10, (8, 2, 2))):
        prompt = ids(history)
        sampled = [tuple((-4 - torch.rand(length, generator=draw)).tolist()) for length in lengths]
        replies = [Reply("", ids(len(logprobs)), logprobs, "stop", prompt) for logprobs in sampled]
        rewards = torch.rand(3, generator=draw).tolist()
        candidates = tuple(Candidate(reply, mr=mr) for reply, mr in zip(replies, rewards, strict=True))
        found.append(Group(Conversation(Goal("g", "p", "r")), candidates))
    return found


# --- the plain computation -------------------------------------------------------------------------------------------


def token_logprobs(lm: Any, reply: Reply, temperature: float = TEMPERATURE) -> torch.Tensor:
    ids = torch.tensor([[*reply.prompt_ids, *reply.token_ids]])
    logits = lm(input_ids=ids, use_cache=False).logits[0, len(reply.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(reply.token_ids)[:, None])[:, 0]


Plain = Callable[[Any, Any, Sequence[Group], torch.Tensor], torch.Tensor]  # policy, reference, groups, value head


def grpo_loss(
    kl_coef: float, scale_by_std: bool = True, loss_aggregation: str = "tokens", leave_one_out: bool = False
) -> Plain:
    def loss(lm: Any, reference: Any, groups: Sequence[Group], head: torch.Tensor) -> torch.Tensor:
        by_token = grpo_losses(lm, reference, groups, kl_coef, scale_by_std, leave_one_out)
        if loss_aggregation == "tokens":
            return torch.cat(by_token).mean()
        return torch.stack([x.mean() if loss_aggregation == "sequences" else x.sum() for x in by_token]).mean()

    return loss


def grpo_losses(
    lm: Any, reference: Any, groups: Sequence[Group], kl_coef: float, scale_by_std: bool, leave_one_out: bool
) -> list[torch.Tensor]:
    losses = []
    for group in groups:
        rewards = torch.tensor([candidate.mr for candidate in group.candidates])
        advantages = rewards - rewards.mean()
        if scale_by_std:
            advantages = advantages / (advantages.square().sum() / (len(rewards) - 1)).sqrt()
        if leave_one_out:
            assert len(rewards) == 3
            others = torch.stack([rewards[[1, 2]].mean(), rewards[[0, 2]].mean(), rewards[[0, 1]].mean()])
            advantages = rewards - others
        for candidate, advantage in zip(group.candidates, advantages, strict=True):
            logprobs = token_logprobs(lm, candidate.reply)
            ratio = torch.exp(logprobs - torch.tensor(candidate.reply.logprobs))
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            with torch.no_grad():
                log_ratio = token_logprobs(reference, candidate.reply) - logprobs.detach()
            assert log_ratio.abs().max() > 1e-4
            log_ratio = log_ratio + logprobs.detach() - logprobs
            losses.append(-surrogate + kl_coef * (torch.exp(log_ratio) - log_ratio - 1))
    return losses


def dpo_loss(lm: Any, reference: Any, groups: Sequence[Group], head: torch.Tensor) -> torch.Tensor:
    losses = []
    for group in groups:
        worst, *_, best = sorted(group.candidates, key=lambda candidate: candidate.mr or 0.0)
        with torch.no_grad():
            kept = token_logprobs(reference, best.reply).sum() - token_logprobs(reference, worst.reply).sum()
        gap = token_logprobs(lm, best.reply).sum() - token_logprobs(lm, worst.reply).sum()
        losses.append(torch.log1p(torch.exp(-BETA * (gap - kept))))
    return torch.stack(losses).mean()


def sft_loss(lm: Any, reference: Any, groups: Sequence[Group], head: torch.Tensor) -> torch.Tensor:
    best = [max(group.candidates, key=lambda candidate: candidate.mr or 0.0) for group in groups]
    return -torch.cat([token_logprobs(lm, candidate.reply, temperature=1.0) for candidate in best]).mean()


def token_values(lm: Any, reply: Reply, head: torch.Tensor) -> torch.Tensor:
    ids = torch.tensor([[*reply.prompt_ids, *reply.token_ids]])
    hidden = lm(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
    return hidden[0, len(reply.prompt_ids) - 1 : -1] @ head[:-1] + head[-1]


Past = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # of each reply: values, scaled advantages, returns


def ppo_past(lm: Any, reference: Any, groups: Sequence[Group], head: torch.Tensor) -> Past:
    found = []
    with torch.no_grad():
        for candidate in (candidate for group in groups for candidate in group.candidates):
            reply = candidate.reply
            rewards = -KL * (token_logprobs(lm, reply) - token_logprobs(reference, reply))
            assert rewards.abs().max() > 1e-3
            rewards[-1] += candidate.mr
            values = token_values(lm, reply, head)
            errors = rewards + GAMMA * torch.cat([values[1:], torch.zeros(1)]) - values
            ahead = [(GAMMA * LAMBDA) ** torch.arange(len(errors) - t) @ errors[t:] for t in range(len(errors))]
            found.append((values, torch.stack(ahead), torch.stack(ahead) + values))
    every = torch.cat([advantages for _, advantages, _ in found])
    scaled = [(v, (a - every.mean()) / every.std(correction=0), r) for v, a, r in found]
    return scaled


def ppo_loss(
    lm: Any, reference: Any, groups: Sequence[Group], head: torch.Tensor, past: Past | None = None
) -> torch.Tensor:
    losses = []
    replies = [candidate.reply for group in groups for candidate in group.candidates]
    for reply, (before, advantages, returns) in zip(
        replies, past or ppo_past(lm, reference, groups, head), strict=True
    ):
        ratio = torch.exp(token_logprobs(lm, reply) - torch.tensor(reply.logprobs))
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        values = token_values(lm, reply, head)
        held = torch.minimum(torch.maximum(values, before - VALUE_CLIP), before + VALUE_CLIP)
        errors = torch.maximum((values - returns) ** 2, (held - returns) ** 2)
        losses.append(-surrogate + VALUE_COEF * errors / 2)
    return torch.cat(losses).mean()


# --- the comparison --------------------------------------------------------------------------------------------------

SETTING: dict[str, Any] = {"tokens_per_micro_batch": 40, "max_grad_norm": 0.0}
GRPO_SETTING = {**SETTING, "clip_epsilon": CLIP}
PPO_SETTING: dict[str, Any] = {
    **GRPO_SETTING,
    "kl_coef": KL,
    "gamma": GAMMA,
    "gae_lambda": LAMBDA,
    "value_clip": VALUE_CLIP,
    "value_coef": VALUE_COEF,
}
RLOO: dict[str, Any] = {
    "leave_one_out": True,
    "scale_by_std": False,
    "loss_aggregation": "sums",
}  # conf/algorithm/rloo.yaml
ALGORITHMS: dict[str, tuple[Any, Any, Plain]] = {
    "grpo": (GRPO, GRPOConfig(**GRPO_SETTING), grpo_loss(0.0)),
    "grpo_kl": (GRPO, GRPOConfig(**GRPO_SETTING, kl_coef=KL), grpo_loss(KL)),
    "grpo_centred": (GRPO, GRPOConfig(**GRPO_SETTING, scale_by_std=False), grpo_loss(0.0, scale_by_std=False)),
    "grpo_sequences": (
        GRPO,
        GRPOConfig(**GRPO_SETTING, loss_aggregation="sequences"),
        grpo_loss(0.0, loss_aggregation="sequences"),
    ),
    "rloo": (GRPO, GRPOConfig(**GRPO_SETTING, **RLOO), grpo_loss(0.0, **RLOO)),
    "dpo": (DPO, DPOConfig(**SETTING, beta=BETA), dpo_loss),
    "sft": (SFT, SFTConfig(**SETTING), sft_loss),
    "ppo": (PPO, PPOConfig(**PPO_SETTING, epochs=1), ppo_loss),
}
FAMILIES = ("Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3")
CASES = [("Llama", algorithm) for algorithm in ALGORITHMS] + [(family, "grpo_kl") for family in FAMILIES]
FULL = [("Llama", "grpo_kl"), ("Llama", "dpo"), ("Llama", "ppo"), ("Gemma3", "grpo_kl")]  # all weights; others are slow


def with_head(module: Any) -> Any:
    """The value head is that of the plain computation, where there is one."""
    if module.policy.value_head is not None:
        with torch.no_grad():
            module.policy.value_head.weight.copy_(HEAD[None, :-1])
            module.policy.value_head.bias.copy_(HEAD[-1:])
    return module


@pytest.mark.parametrize(
    ("family", "algorithm", "adapter"),
    [*((*case, True) for case in CASES), *((*case, False) if case in FULL else slow(*case, False) for case in CASES)],
)
def test_loss_and_gradients_are_those_of_the_plain_computation(
    family: str, algorithm: str, adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough that histories, replies and the step are each computed in several parts.
    monkeypatch.setattr(packed_attention, "PIECE", 5)
    monkeypatch.setattr(policy, "CHUNK", 7)
    target, config, plain_loss = ALGORITHMS[algorithm]

    def load() -> Any:
        lm = make_lm(family, adapter)
        make_lean(lm)
        return lm

    module = target(config, load, None, TEMPERATURE, 1)
    module.configure_model()
    moved(with_head(module).policy.lm)
    passes: list[int] = []
    module.policy.register_forward_pre_hook(lambda _, args, kwargs: passes.append(len(args[0].ends)), with_kwargs=True)
    _, scored = fit(module, make_groups())
    # Micro-batches, with several groups in one where attention is computed in blocks.
    assert len(passes) > 2 and (2 in passes) == (family == "Llama")

    lm, reference = moved(make_lm(family, adapter)), make_lm(family, adapter)
    head = HEAD.clone().requires_grad_()
    loss = plain_loss(lm, reference, make_groups(), head)
    loss.backward()
    assert scored.logged[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert_gradients(scored.gradients[0], lm, head, adapter)


def assert_gradients(gradients: dict[str, torch.Tensor], lm: Any, head: torch.Tensor, adapter: bool) -> None:
    """Those of a module are what the plain computation has left on `lm` and `head`."""
    found = {name: gradient for name, gradient in gradients.items() if "value_head" not in name}
    if head.grad is not None:
        of_head = torch.cat([gradients[f"policy.value_head.{name}"].flatten() for name in ("weight", "bias")])
        torch.testing.assert_close(of_head, head.grad, atol=1e-5, rtol=0)
    expected = {f"policy.lm.{name}": p.grad for name, p in lm.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and all(("lora_" in name) == adapter for name in found)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(1.0, largest), rtol=0, msg=name)
        assert "embed" in name or gradient.abs().max() > 1e-4 * largest, name  # each parameter puts it to the test


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_ppo_goes_over_a_rollout_again_with_the_advantages_of_its_first_pass(adapter: bool) -> None:
    """The second pass meets a policy and values that have moved, these so far that they are clipped."""
    config = PPOConfig(**PPO_SETTING, epochs=2, lr=0.01, warmup_steps=0)
    module = PPO(config, lambda: make_lm("Llama", adapter), None, TEMPERATURE, 1)
    module.configure_model()
    moved(with_head(module).policy.lm)
    _, scored = fit(module, make_groups())
    assert len(scored.gradients) == 2

    lm, reference = moved(make_lm("Llama", adapter)), make_lm("Llama", adapter)
    head = HEAD.clone().requires_grad_()
    past = ppo_past(lm, reference, make_groups(), head)
    trained = [*(p for p in lm.parameters() if p.requires_grad), head]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0)
    losses = []
    for gradients in scored.gradients:
        optimizer.zero_grad()
        loss = ppo_loss(lm, reference, make_groups(), head, past)
        loss.backward()
        losses.append(loss.item())
        assert_gradients(gradients, lm, head, adapter)
        optimizer.step()
        values = token_values(lm, make_groups()[0].candidates[0].reply, head)
        assert (values - past[0][0]).abs().max() > VALUE_CLIP
    assert scored.logged[0]["loss"] == pytest.approx(sum(losses) / 2, abs=1e-5)


def test_a_rollout_is_dealt_out_to_several_updates() -> None:
    """As many steps on parts of the groups, one after the other."""
    groups = make_groups()

    def trained(updates: int, per_step: list[list[Group]]) -> tuple[Any, Any]:
        config = GRPOConfig(**GRPO_SETTING, num_minibatches=updates, lr=0.05, warmup_steps=2)
        module = GRPO(config, lambda: moved(make_lm("Llama", True)), None, TEMPERATURE, len(per_step))
        _, scored = fit(module, lambda step: per_step[step], steps=len(per_step))
        return module, scored

    module, dealt = trained(2, [groups])
    half = -(-len(groups) // 2)
    other, alone = trained(1, [groups[:half], groups[half:]])
    assert len(dealt.gradients) == len(alone.gradients) == 2
    for one, two in zip(dealt.gradients, alone.gradients, strict=True):
        for name, gradient in two.items():
            torch.testing.assert_close(one[name], gradient, atol=1e-6, rtol=0)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    [log], logs = dealt.logged, alone.logged
    for name in ("loss", "grad_norm", "groups_without_spread"):
        assert log[name] == pytest.approx(sum(entry[name] for entry in logs) / 2, abs=1e-6)
    rates = [logs[0]["lr"], logs[1]["lr"], log["lr"]]
    assert rates == pytest.approx([0.025, 0.05, 0.025])  # the warm-up counts updates; the first one's rate is logged


def test_the_gap_to_the_sampler_is_logged_of_the_first_update() -> None:
    groups = make_groups()
    config = GRPOConfig(**GRPO_SETTING, num_minibatches=2, lr=0.05, warmup_steps=0)
    _, scored = fit(GRPO(config, lambda: moved(make_lm("Llama", True)), None, TEMPERATURE, 1), groups)
    lm = moved(make_lm("Llama", True))
    replies = [candidate.reply for group in groups[:2] for candidate in group.candidates]
    with torch.no_grad():
        gaps = [(token_logprobs(lm, reply) - torch.tensor(reply.logprobs)).abs() for reply in replies]
    assert scored.logged[0]["logprob_gap"] == pytest.approx(torch.cat(gaps).mean().item(), abs=1e-5)


def test_conversations_from_files_have_no_gap_to_a_sampler() -> None:
    stored = [
        replace(g, candidates=tuple(replace(c, reply=replace(c.reply, logprobs=())) for c in g.candidates))
        for g in make_groups()
    ]
    _, scored = fit(SFT(SFTConfig(**SETTING), lambda: make_lm("Llama", True), None, TEMPERATURE, 1), stored)
    assert math.isnan(scored.logged[0]["logprob_gap"])
