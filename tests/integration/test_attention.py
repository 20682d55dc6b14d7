"""Attention by layout gives what SDPA under the dense mask gives, and is what a CPU computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import tiny_lm
from torch.nn.attention.flex_attention import create_mask
from torch.nn.attention.flex_attention import flex_attention as plain_flex_attention
from transformers import LlamaConfig, MistralConfig
from transformers.integrations import flex_attention

from collab.conversation import Reply
from collab.lm import attention as attention_module
from collab.lm import packed_attention
from collab.lm.attention import additive_masks, block_masks, by_layout, in_blocks, takes_blocks
from collab.lm.loading import checkpoint_activations
from collab.lm.packed_attention import PackedAttention
from collab.modules import policy as policy_module
from collab.modules.packing import PackedBatch, pack
from collab.modules.policy import Policy

# Histories and candidates; a candidate without a fed token, a history and nothing else.
ENDS = ((0, 13, 18, 18, 21), (21, 24, 30), (30, 36, 36), (36, 37, 38, 39, 40))


def packed_mask() -> torch.Tensor:
    ids, empty = torch.zeros(1, 40, dtype=torch.long), torch.zeros(0)
    visible = PackedBatch(ids, ids, ENDS, empty, empty, empty, empty, 0, 1.0).visible()
    mask = additive_masks(LlamaConfig(), visible, ids, ids, torch.float32, ENDS)
    assert isinstance(mask, torch.Tensor)
    return mask


def inputs(heads: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Strided as a transformers layer hands them over: [1, T, heads, D] seen as [1, heads, T, D]."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, 40, count, 8) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(s, generator=draw).to(dtype).transpose(1, 2).requires_grad_() for s in shapes]


def gradients(out: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return list(torch.autograd.grad((out * weights).sum(), given))


@pytest.mark.parametrize("piece", [4, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_give_what_the_dense_mask_gives(
    dtype: torch.dtype, heads: int, kv_heads: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "PIECE", piece)
    given = inputs(heads, kv_heads, dtype)
    exact = [x.detach().float().requires_grad_() for x in given]
    query, key, value = exact
    repeats = heads // kv_heads
    dense = F.scaled_dot_product_attention(
        query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), packed_mask(), scale=0.4
    )
    blocks: Any = PackedAttention.apply(*given, ENDS, 0.4)  # type: ignore[no-untyped-call]
    near = 3e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(blocks.float(), dense, atol=near, rtol=near)
    for found, expected in zip(gradients(blocks, given), gradients(dense, exact), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, atol=3 * near, rtol=near)


def test_only_a_mask_with_ends_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(attention_module, "sdpa_attention_forward", lambda *args, **kwargs: asked.append(kwargs))
    query, key, value = inputs(4, 2)
    module, mask = torch.nn.Module(), packed_mask()
    out, _ = by_layout(module, query, key, value, mask, scaling=0.4, dropout=0.0)
    assert out.shape == (1, 40, 4, 8) and not asked
    by_layout(module, query, key, value, mask.clone(), scaling=0.4)
    by_layout(module, query, key, value, None, scaling=0.4)
    # What only the other implementation knows of, or refuses, is left to it.
    by_layout(module, query, key, value, mask, scaling=0.4, softcap=50.0)
    assert [call.get("softcap") for call in asked] == [None, None, 50.0] and asked[0]["scaling"] == 0.4


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_single_queries_give_what_sdpa_gives(
    heads: int, kv_heads: int, channels_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(5, heads, 1, 8, generator=draw)
    key, value = torch.randn(2, 5, kv_heads, 22, 8, generator=draw)
    if channels_first:  # as the engine holds keys on a CPU
        key = key.transpose(2, 3).contiguous().transpose(2, 3)
    queries, keys = torch.tensor([3, 21, 0, 9, 15])[:, None], torch.arange(22)[None]
    distance = queries[:, :, None] - keys[:, None]
    for config, window in ((LlamaConfig(), 99), (MistralConfig(sliding_window=6), 6)):
        mask = additive_masks(config, distance >= 0, queries, keys, torch.float32)
        shown = ((distance >= 0) & (distance < window))[:, None]
        expected = F.scaled_dot_product_attention(query, key, value, shown, scale=0.3, enable_gqa=True)
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(attention_module, "sdpa_attention_forward", None)
            found, _ = by_layout(torch.nn.Module(), query, key, value, mask, scaling=0.3)
        torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("attention", "expected"), [(None, 2), ("eager", 0)])
def test_a_policy_computes_with_it_where_it_would_with_sdpa(
    attention: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    computed = PackedAttention.apply

    def count(*args: Any) -> Any:
        counted.append(1)
        return computed(*args)

    monkeypatch.setattr(PackedAttention, "apply", count)
    lm = tiny_lm(9)
    if attention:
        lm.set_attn_implementation(attention)
    policy = Policy(lm, with_reference=False)
    policy(pack([[Reply("", (1, 2, 3), (-1.0, -1.0, -1.0), "stop", (4, 5))]], 1.0))
    assert len(counted) == expected  # layers


def test_groups_that_fit_the_window_are_computed_in_blocks_in_a_row_that_does_not() -> None:
    batch = pack([[reply(9, 6), reply(9, 4)], [reply(3, 7)]], 1.0)
    positions, longest = batch.position_ids, 17
    for window, blocks in ((20, True), (8, False)):
        config = SimpleNamespace(sliding_window=window, layer_types=None)
        masks = additive_masks(config, batch.visible(), positions, positions, torch.float32, batch.ends)
        assert hasattr(masks, "packed_ends") == blocks
        model = LlamaConfig(sliding_window=window, attn_implementation=attention_module.BY_LAYOUT)
        model._attn_implementation = attention_module.BY_LAYOUT
        assert in_blocks(SimpleNamespace(config=model), torch.device("cpu"), longest) == blocks
        model._attn_implementation = "eager"
        assert not in_blocks(SimpleNamespace(config=model), torch.device("cpu"), longest)


# --- blocks for FlexAttention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [["full_attention"], ["sliding_attention"], ["full_attention", "sliding_attention"]])
def test_block_masks_show_what_the_dense_ones_show(kinds: list[str]) -> None:
    batch = pack([[reply(9, 6), reply(9, 1), reply(9, 4)], [reply(3, 7)]], 1.0)
    config = SimpleNamespace(sliding_window=4, layer_types=kinds)
    positions = batch.position_ids
    blocks = block_masks(config, batch.owners(), positions)
    dense = additive_masks(config, batch.visible(), positions, positions, torch.float32, batch.ends)
    assert isinstance(blocks, dict) == isinstance(dense, dict) == (len(kinds) == 2)
    pairs = [(blocks, dense)] if not isinstance(blocks, dict) else [(blocks[kind], dense[kind]) for kind in blocks]
    width = batch.input_ids.shape[1]
    for block, mask in pairs:
        shown = create_mask(block.mask_mod, 1, 1, width, width, device="cpu")
        torch.testing.assert_close(shown, mask == 0)
    assert len({int((mask == 0).sum()) for _, mask in pairs}) == len(kinds)  # the window hides something


def reply(history: int, length: int) -> Reply:
    drawn = torch.Generator().manual_seed(length)
    ids = torch.randint(1, 64, (length,), generator=drawn).tolist()
    return Reply("", tuple(ids), (-1.0,) * length, "stop", tuple(1 + n % 60 for n in range(history)))


def flex_policy(device: str, **fields: Any) -> Policy:
    lm = tiny_lm(64, seed=3, hidden_size=64, max_position_embeddings=1024, initializer_range=0.02, **fields)
    return Policy(lm.to(device), with_reference=False)


def test_log_probs_by_blocks_are_those_under_the_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's own arithmetic on a CPU, uncompiled; it has no gradient there."""
    policy, batch = flex_policy("cpu"), pack([[reply(150, 6), reply(150, 40)], [reply(20, 7)]], 0.7)
    with torch.no_grad():
        dense = policy(batch)
        used = []
        monkeypatch.setattr(policy_module, "takes_blocks", lambda *given: used.append(given) or True)
        monkeypatch.setattr(flex_attention, "WrappedFlexAttention", lambda training: lambda: plain_flex_attention)
        blocks = policy(batch)
    assert used
    torch.testing.assert_close(blocks.logprobs, dense.logprobs, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gpu_learns_by_blocks_what_it_learns_under_the_dense_mask(
    monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    policy = flex_policy("cuda").train()
    if checkpointing:
        checkpoint_activations(policy.lm)
        policy.train()
    batch = pack([[reply(150, 6), reply(150, 40)], [reply(20, 7)]], 0.7).to(torch.device("cuda"))
    found = []
    for blocks in (True, False):
        assert takes_blocks(policy.lm, torch.device("cuda"))
        if not blocks:
            monkeypatch.setattr(policy_module, "takes_blocks", lambda *given: False)
        policy.zero_grad()
        logprobs = policy(batch).logprobs
        logprobs.sum().backward()
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        found.append((logprobs.detach(), gradients))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=0)
    for name, gradient in found[1][1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[0][1][name], gradient, atol=1e-4 * max(scale, 1.0), rtol=1e-3)
