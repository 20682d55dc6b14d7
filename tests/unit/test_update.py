"""A step's loss and gradients are those of the plain computation, written out here without the code that it tests.

Every sequence goes through transformers on its own, unpacked, in one forward pass; losses follow their papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft
import pytest
import torch
import transformers
from stepping import fit

from collab.config import GRPOConfig, OnlineDPOConfig
from collab.conversation import Candidate, Conversation, Goal, Group, Reply
from collab.generation import packed_attention
from collab.modules import policy
from collab.modules.grpo import GRPO
from collab.modules.lora import make_lean
from collab.modules.online_dpo import OnlineDPO

VOCABULARY, TEMPERATURE, BETA, CLIP, KL = 61, 0.7, 0.3, 0.2, 0.4
WINDOW = 8  # shorter than any group's sequences


def make_lm(family: str, adapter: bool) -> Any:
    """A tiny random model of a family. Heads are wider than hidden size / number of heads wherever that can be."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    windows = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
    if family == "Qwen2":
        del fields["head_dim"]
    if family in ("Qwen2", "Qwen3"):
        fields |= {**windows, "use_sliding_window": True}
    elif family == "Mistral":
        fields |= {"sliding_window": WINDOW}
    elif family == "Gemma2":
        fields |= {**windows, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
    elif family == "Gemma3":
        fields |= windows
    config = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")(**fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm: Any = getattr(transformers, f"{family}ForCausalLM")(config)
        if adapter:
            lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
            lm = peft.get_peft_model(lm, lora)
    return lm.eval()


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


def token_logprobs(lm: Any, reply: Reply) -> torch.Tensor:
    ids = torch.tensor([[*reply.prompt_ids, *reply.token_ids]])
    logits = lm(input_ids=ids, use_cache=False).logits[0, len(reply.prompt_ids) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1).gather(-1, torch.tensor(reply.token_ids)[:, None])[:, 0]


def grpo_loss(lm: Any, reference: Any, groups: Sequence[Group], kl_coef: float, scale_by_std: bool) -> torch.Tensor:
    losses = []
    for group in groups:
        rewards = torch.tensor([candidate.mr for candidate in group.candidates])
        advantages = rewards - rewards.mean()
        if scale_by_std:
            advantages = advantages / (advantages.square().sum() / (len(rewards) - 1)).sqrt()
        for candidate, advantage in zip(group.candidates, advantages, strict=True):
            logprobs = token_logprobs(lm, candidate.reply)
            ratio = torch.exp(logprobs - torch.tensor(candidate.reply.logprobs))
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            with torch.no_grad():
                log_ratio = token_logprobs(reference, candidate.reply) - logprobs.detach()
            assert log_ratio.abs().max() > 1e-3
            log_ratio = log_ratio + logprobs.detach() - logprobs
            losses.append(-surrogate + kl_coef * (torch.exp(log_ratio) - log_ratio - 1))
    return torch.cat(losses).mean()


def dpo_loss(lm: Any, reference: Any, groups: Sequence[Group]) -> torch.Tensor:
    losses = []
    for group in groups:
        worst, *_, best = sorted(group.candidates, key=lambda candidate: candidate.mr or 0.0)
        with torch.no_grad():
            kept = token_logprobs(reference, best.reply).sum() - token_logprobs(reference, worst.reply).sum()
        gap = token_logprobs(lm, best.reply).sum() - token_logprobs(lm, worst.reply).sum()
        losses.append(torch.log1p(torch.exp(-BETA * (gap - kept))))
    return torch.stack(losses).mean()


# --- the comparison --------------------------------------------------------------------------------------------------

SETTING: dict[str, Any] = {"tokens_per_micro_batch": 40, "max_grad_norm": 0.0}
GRPO_SETTING = {**SETTING, "clip_epsilon": CLIP}
ALGORITHMS: dict[str, Any] = {
    "grpo": (GRPO, GRPOConfig(**GRPO_SETTING), lambda *args: grpo_loss(*args, 0.0, True)),
    "grpo_kl": (GRPO, GRPOConfig(**GRPO_SETTING, kl_coef=KL), lambda *args: grpo_loss(*args, KL, True)),
    "grpo_centred": (
        GRPO,
        GRPOConfig(**GRPO_SETTING, scale_by_std=False),
        lambda *args: grpo_loss(*args, 0.0, False),
    ),
    "online_dpo": (OnlineDPO, OnlineDPOConfig(**SETTING, beta=BETA), dpo_loss),
}
FAMILIES = ("Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3")
CASES = [("Llama", algorithm) for algorithm in ALGORITHMS] + [(family, "grpo_kl") for family in FAMILIES]


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(("family", "algorithm"), CASES)
def test_loss_and_gradients_are_those_of_the_plain_computation(
    family: str, algorithm: str, adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough that histories, replies and the step are each computed in several parts.
    monkeypatch.setattr(packed_attention, "_PIECE", 5)
    monkeypatch.setattr(policy, "_CHUNK", 7)
    target, config, plain_loss = ALGORITHMS[algorithm]

    def load() -> Any:
        lm = make_lm(family, adapter)
        make_lean(lm)
        return lm

    module = target(config, load, None, TEMPERATURE, 1)
    module.configure_model()
    moved(module.policy.lm)
    passes: list[int] = []
    module.policy.register_forward_pre_hook(lambda _, args, kwargs: passes.append(len(args[0].ends)), with_kwargs=True)
    _, scored = fit(module, make_groups())
    assert len(passes) > 2 and 2 in passes  # micro-batches, with several groups in one

    lm, reference = moved(make_lm(family, adapter)), make_lm(family, adapter)
    loss = plain_loss(lm, reference, make_groups())
    loss.backward()
    expected = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    found = {name.removeprefix("policy.lm."): gradient for name, gradient in scored.gradients[0].items()}
    assert scored.logged[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert found.keys() == expected.keys() and all(("lora_" in name) == adapter for name in found)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(1.0, largest), rtol=0, msg=name)
        assert "embed" in name or gradient.abs().max() > 1e-4 * largest, name  # each parameter puts it to the test


def test_a_rollout_is_dealt_out_to_several_updates() -> None:
    """As many steps on parts of the groups, one after the other."""
    groups = make_groups()

    def trained(updates: int, per_step: list[list[Group]]) -> tuple[Any, Any]:
        config = GRPOConfig(**GRPO_SETTING, updates_per_step=updates, lr=0.05, warmup_steps=2)
        module = GRPO(config, lambda: moved(make_lm("Llama", True)), None, TEMPERATURE, len(per_step))
        _, scored = fit(module, lambda step: per_step[step], steps=len(per_step))
        return module, scored

    module, dealt = trained(2, [groups])
    other, alone = trained(1, [groups[0::2], groups[1::2]])
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
