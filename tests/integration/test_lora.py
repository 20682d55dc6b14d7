"""LoRA computed in the model's dtype says what peft's own layers say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import tiny_lm, with_adapter
from peft.tuners import lora

from collab.conversation import Reply
from collab.lm.loading import checkpoint_activations
from collab.lm.lora import LeanLoraLinear, make_lean
from collab.modules.packing import pack
from collab.modules.policy import Policy

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def make_lm(dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    lm = tiny_lm(11, attention_bias=True, mlp_bias=True).to(dtype)
    return with_adapter(lm, 0.1, **{"lora_dropout": 0.5, **fields})


def lean(lm: Any) -> Any:
    lm = copy.deepcopy(lm)
    make_lean(lm)
    assert sum(type(module) is LeanLoraLinear for module in lm.modules()) == 14  # seven layers in each of two blocks
    return lm


def test_values_and_gradients_are_those_of_peft_in_fp32() -> None:
    theirs = make_lm()
    ours = lean(theirs)
    for lm in (theirs, ours):
        lm(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=0)
        assert (ours(IDS).logits - ours.get_base_model()(IDS).logits).abs().max() == 0  # the layers are in the model
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(gradients) == 28
    for name, parameter in ours.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)


def test_in_bf16_the_adapter_stays_in_fp32_and_the_result_is_close() -> None:
    theirs = make_lm(torch.bfloat16)
    ours = lean(theirs)
    with torch.no_grad():
        exact = make_lm()(IDS).logits
        error = (ours(IDS).logits.float() - exact).abs().mean()
        assert error < 1.5 * (theirs(IDS).logits.float() - exact).abs().mean()
    fp32 = make_lm()
    for lm in (ours, fp32):
        lm(input_ids=IDS, labels=IDS).loss.backward()
    trained = [p for p in ours.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in trained)
    for rounded, plain in zip(trained, (p for p in fp32.parameters() if p.requires_grad), strict=True):
        assert torch.cosine_similarity(rounded.grad.flatten(), plain.grad.flatten(), dim=0) > 0.99


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = Policy(lean(make_lm()), with_reference=False)
        if checkpointing:
            checkpoint_activations(policy.lm)
            policy.lm.enable_input_require_grads()
        policy.train()
        reply = Reply("", (5, 9, 2), (-1.0, -1.0, -1.0), "stop", (3, 1, 4, 1))
        policy(pack([[reply]], 0.7)).logprobs.sum().backward()
        gradients.append([p.grad for p in policy.parameters() if p.requires_grad])
    assert len(gradients[0]) == 28
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_rounded_weights_follow_the_optimizer_and_the_switches() -> None:
    lm = lean(make_lm(torch.bfloat16))
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=0.1)
    with torch.no_grad():
        before = lm(IDS).logits
        with lm.disable_adapter():
            base = lm(IDS).logits
    assert not torch.equal(before, base)
    lm(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    fresh = copy.deepcopy(lm)
    with torch.no_grad():
        after = lm(IDS).logits
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, fresh(IDS).logits, atol=0, rtol=0)
        with lm.disable_adapter():
            torch.testing.assert_close(lm(IDS).logits, base, atol=0, rtol=0)
        lm.load_state_dict(make_lm(torch.bfloat16).state_dict())
        torch.testing.assert_close(lm(IDS).logits, before, atol=0, rtol=0)


@pytest.mark.parametrize(
    "fields", [{"use_dora": True}, {"lora_dropout": 0.0}, {"use_rslora": True}, {"lora_bias": True}]
)
def test_other_kinds_of_lora_come_out_the_same(fields: dict[str, Any]) -> None:
    theirs = make_lm(**fields)
    ours = lean(theirs)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=0)


def test_dropout_is_left_to_peft() -> None:
    lm = lean(make_lm()).train()
    with torch.no_grad():
        assert not torch.equal(lm(IDS).logits, lm(IDS).logits)


def test_merged_weights_hold_the_adapter() -> None:
    lm = lean(make_lm())
    with torch.no_grad():
        expected = lm(IDS).logits
        merged = lm.merge_and_unload()
        assert not any(isinstance(module, lora.LoraLayer) for module in merged.modules())
        torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-5, rtol=0)
