"""Fused linear layers against the layers that they replace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import tiny_lm, with_adapter
from torch import nn

from collab.lm.fused_linear import FusedLinears, linear_groups

MANY = torch.randint(11, (32, 60), generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])
needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU computes no bf16 products"
)


def make_lm(dtype: torch.dtype = torch.bfloat16, adapter: bool = True, **fields: Any) -> Any:
    lm = tiny_lm(11, attention_bias=True, bias=0.3).to(dtype)
    return with_adapter(lm, 0.1, **fields) if adapter else lm


@torch.no_grad()
def inside(lm: Any, fused: FusedLinears | None = None) -> torch.Tensor:
    with fused or FusedLinears(lm):
        return lm(IDS).logits.float()


@torch.no_grad()
def plain(lm: Any) -> torch.Tensor:
    return lm(IDS).logits.float()


@torch.no_grad()
def change_of(lm: Any) -> torch.Tensor:
    """What the adapter changes in the logits."""
    adapted = lm(MANY).logits.float()
    with lm.disable_adapter():
        return adapted - lm(MANY).logits.float()


def overridden(lm: nn.Module) -> int:
    return sum("forward" in module.__dict__ for module in lm.modules())


def test_siblings_are_grouped_and_every_linear_layer_is_in_one_group() -> None:
    for lm in (make_lm(), make_lm(adapter=False), make_lm(target_modules=["q_proj", "down_proj"])):
        groups = list(linear_groups(lm))
        flat = [id(layer) for group in groups for layer in group]
        assert len(flat) == len(set(flat)) == 15  # seven in each of two blocks, and the head
    assert sorted(len(group) for group in linear_groups(make_lm())) == [1, 1, 1, 1, 1, 2, 2, 3, 3]
    # q_proj has an adapter and its siblings have none: each for itself.
    assert max(len(group) for group in linear_groups(make_lm(target_modules=["q_proj", "up_proj"]))) == 1


@pytest.fixture(params=[True, False], ids=["packed", "as they are"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether weights are packed; those of a GPU and of large models are not."""
    if not request.param:
        monkeypatch.setattr("collab.lm.fused_linear.PACK_LIMIT", 0)
    return bool(request.param)


@pytest.mark.parametrize("adapter", [True, False])
def test_in_fp32_values_are_those_of_the_layers(adapter: bool, packed: bool) -> None:
    lm = make_lm(torch.float32, adapter)
    fused = FusedLinears(lm)
    torch.testing.assert_close(inside(lm, fused), plain(lm), atol=1e-5, rtol=0)
    assert overridden(lm) == 0
    assert all(list(group.packed) == [bool(group.adapters)] * packed for group in fused.groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_much_is_seen_of_small_changes_as_the_layers_see(dtype: torch.dtype, packed: bool) -> None:
    lm = make_lm(dtype)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.01)  # changes of 0.001 to weights of 0.2
    exact = change_of(copy.deepcopy(lm).float())
    as_layers = change_of(lm)
    with FusedLinears(lm):
        changes = change_of(lm)
    # In bf16 three quarters of them; with the adapter merged into the weights, half.
    seen = [float((change * exact).sum() / exact.square().sum()) for change in (changes, as_layers)]
    assert seen[0] == pytest.approx(seen[1], abs=0.1) and seen[1] > 0.6


@needs_bf16
@pytest.mark.parametrize("adapter", [True, False])
def test_in_bf16_the_error_is_no_larger_than_that_of_the_layers(adapter: bool) -> None:
    lm = make_lm(adapter=adapter)
    fused = FusedLinears(lm)
    with fused:
        assert overridden(lm) == 15  # the head, which has no adapter, as well
        lm(IDS)
        assert all(list(group.packed) == [False] for group in fused.groups)
    exact = plain(make_lm(torch.float32, adapter))
    error = (inside(lm) - exact).abs().mean()
    assert 0 < error < 1.5 * (plain(lm) - exact).abs().mean()


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_the_adapter_can_be_switched_off_inside(dtype: torch.dtype, near: float, packed: bool) -> None:
    lm = make_lm(dtype)
    with torch.no_grad(), FusedLinears(lm):
        on = lm(IDS).logits
        with lm.disable_adapter():
            off = lm(IDS).logits
        again = lm(IDS).logits
    torch.testing.assert_close(off.float(), plain(make_lm(torch.float32, adapter=False)), atol=near, rtol=0)
    assert torch.equal(again, on) and (on - off).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [True, False])
def test_trained_weights_are_seen_once_the_cache_is_cleared(dtype: torch.dtype, adapter: bool, packed: bool) -> None:
    lm = make_lm(dtype, adapter)
    fused = FusedLinears(lm)
    before = inside(lm, fused)
    optimizer = torch.optim.SGD([p for p in lm.parameters() if p.requires_grad], lr=0.5)
    lm(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    fused.clear_cache()
    after = inside(lm, fused)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, inside(lm), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_copies_are_kept_until_the_cache_is_cleared(dtype: torch.dtype) -> None:
    lm = make_lm(dtype)
    fused = FusedLinears(lm)
    before = inside(lm, fused)
    held = [x for group in fused.groups for x in (*group.packed.values(), group.up)]
    torch.testing.assert_close(inside(lm, fused), before, atol=0, rtol=0)
    again = [x for group in fused.groups for x in (*group.packed.values(), group.up)]
    assert len(held) == 2 * len(fused.groups) and all(x is y for x, y in zip(again, held, strict=True))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("bias"):
                parameter.add_(1.0)
    fused.clear_cache(weights=True)
    after = inside(lm, fused)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, inside(lm), atol=0, rtol=0)


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_lora_are_left_alone(fields: dict[str, Any]) -> None:
    lm = make_lm(torch.float32, **fields)
    with FusedLinears(lm):
        assert overridden(lm) == 1  # the head, which has no adapter
    torch.testing.assert_close(inside(lm), plain(lm), atol=1e-5, rtol=0)


def test_merged_adapters_are_left_alone() -> None:
    lm = make_lm(torch.float32)
    lm.merge_adapter()
    with FusedLinears(lm):
        assert overridden(lm) == 1


def test_an_error_inside_leaves_the_layers_as_they_were() -> None:
    lm = make_lm(torch.float32)
    with pytest.raises(RuntimeError), FusedLinears(lm):
        assert overridden(lm) == 15
        raise RuntimeError
    assert overridden(lm) == 0
