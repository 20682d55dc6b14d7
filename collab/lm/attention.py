"""Attention for rollouts and updates, through transformers' `AttentionInterface`, and the masks of their layouts.

FlashAttention takes no explicit mask. Decoding steps over requests of different lengths need one, and so do packed
groups. So with `model.attention=flash_attention_2`, a model computes whole prompts with FlashAttention and masked calls
with SDPA. Packed groups on a CUDA device are masked by blocks, with FlexAttention (`block_masks`).

SDPA on a CPU is made for many queries that see nearly all keys. `by_layout` computes two other layouts itself:

* One query a row, in decoding. The heads that share keys are about three rows of a matrix product. Two batched products
  take half to two thirds of SDPA's time in bf16, with keys stored channel by channel, and nine tenths in fp32.
* Packed groups, in updates. The mask hides most of what SDPA would compute (`packed_attention`).

Shapes: N rows, T queries and L keys of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from collab.lm.packed_attention import PackedAttention
from collab.util.errors import BadInput

FLASH_WHERE_UNMASKED = "flash_where_unmasked"
BY_LAYOUT = "by_layout"


def flash_where_unmasked(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    **kwargs: Any,
) -> Any:
    """`[N, heads, T, channels]` in transformers' attention interface; causal if `attention_mask` is None."""
    kind = {type(None): "flash_attention_2", BlockMask: "flex_attention"}.get(type(attention_mask), "sdpa")
    return ALL_ATTENTION_FUNCTIONS[kind](module, query, key, value, attention_mask, **kwargs)


def by_layout(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> Any:
    """SDPA, or what is faster for the layouts in the docstring of this file; shapes as in `flash_where_unmasked`."""
    if isinstance(attention_mask, BlockMask):
        flex = ALL_ATTENTION_FUNCTIONS["flex_attention"]
        return flex(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    mask = attention_mask
    special = kwargs.get("dropout") or query.shape[-1] != value.shape[-1]
    special = special or any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "s_aux"))
    if mask is not None and mask.dtype != torch.bool and not special and query.device.type == "cpu":
        if (ends := getattr(mask, "packed_ends", None)) is not None:
            return PackedAttention.apply(query, key, value, ends, scaling).transpose(1, 2).contiguous(), None
        if query.shape[2] == 1 and mask.shape[1] == 1 and not torch.is_grad_enabled():
            scaling = query.shape[3] ** -0.5 if scaling is None else scaling
            return _single_queries(query, key, value, mask, scaling), None
    if key.stride(-1) != 1:  # SDPA is slow over keys that are stored channel by channel
        key = key.contiguous()
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)


def _single_queries(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """`[N, heads, 1, channels]` over `[N, key heads, L, channels]` -> `[N, 1, heads, channels]`."""
    rows, heads, _, channels = query.shape
    key_heads = key.shape[1]
    scores = torch.baddbmm(
        mask[:, 0].repeat_interleave(key_heads, 0),
        query.reshape(rows * key_heads, heads // key_heads, channels),
        key.transpose(2, 3).flatten(0, 1),
        alpha=scaling,
    )
    return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).view(rows, 1, heads, channels)


AttentionInterface.register(FLASH_WHERE_UNMASKED, flash_where_unmasked)
AttentionInterface.register(BY_LAYOUT, by_layout)
AttentionMaskInterface.register(BY_LAYOUT, sdpa_mask)


def use_by_layout(lm: Any) -> None:
    """Have a transformers model call `by_layout` instead of SDPA."""
    if lm.config._attn_implementation == "sdpa":
        lm.set_attn_implementation(BY_LAYOUT)


def additive_masks(
    config: Any,
    visible: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    dtype: torch.dtype,
    ends: Sequence[Sequence[int]] | None = None,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """A decoder's `attention_mask`, with the sliding window of layers that have one.

    Args:
        config: Text config of the model.
        visible: [N, T, L] bool, whether a query sees a key.
        queries: [N, T] position of each query.
        keys: [N or 1, L] position of each key.
        dtype: Of the mask.
        ends: Of a packed row (`PackedBatch.ends`); an attribute of the mask if all of a group is within the window.

    Returns:
        [N, 1, T, L], 0 for visible keys and the lowest number for others; one for each kind of layer if they differ.
    """

    def additive(seen: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    full = additive(visible)
    if ends is not None:
        full.packed_ends = ends  # type: ignore[attr-defined]
    window, mixed = _window(config)
    if not window or keys.shape[1] <= window:
        return full
    near = queries[:, :, None] - keys[:, None] < window
    if ends is not None and bool((near | ~visible).all()):  # not in decoding, where `bool` would wait for the device
        return full
    sliding = additive(visible & near)
    return {"full_attention": full, "sliding_attention": sliding} if mixed else sliding


def _window(config: Any) -> tuple[int, bool]:
    """The sliding window of a decoder's layers, 0 if they have none; and whether other layers have none."""
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None) or 0
    return (0 if set(kinds) == {"full_attention"} else window), "full_attention" in kinds


def takes_blocks(lm: Any, device: torch.device) -> bool:
    """Whether packed groups of a transformers model go through FlexAttention, whose kernel is for CUDA devices."""
    config = lm.config.get_text_config()
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ours = lm.config._attn_implementation in (BY_LAYOUT, FLASH_WHERE_UNMASKED)
    return device.type == "cuda" and ours and channels >= 16  # the kernel's minimum


def in_blocks(lm: Any, device: torch.device, longest: int) -> bool:
    """Whether packed groups are computed in blocks, so that what the mask hides costs nothing.

    If not, the cost of a row grows with the square of its length.

    Args:
        lm: A transformers model.
        device: Of the model.
        longest: Positions of the longest group. On a CPU it has to fit the window of all layers.
    """
    config = lm.config.get_text_config()
    window, _ = _window(config)
    plain = lm.config._attn_implementation == BY_LAYOUT and not getattr(config, "attn_logit_softcapping", None)
    return takes_blocks(lm, device) or (device.type == "cpu" and plain and (not window or longest <= window))


def block_masks(
    config: Any, owners: tuple[torch.Tensor, torch.Tensor], positions: torch.Tensor
) -> BlockMask | dict[str, BlockMask]:
    """As `additive_masks`, for a packed row with `[1, T]` owners and positions (`PackedBatch`).

    Blocks that are hidden as a whole are skipped, and no tensor of T x T numbers is kept.
    """
    window, mixed = _window(config)
    own, history = owners

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        owner = own[row, key]
        return (query >= key) & ((owner == own[row, query]) | (owner == history[row, query]))

    def sees_near(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return sees(row, head, query, key) & (positions[row, query] - positions[row, key] < window)

    def blocks(rule: Any) -> BlockMask:
        width = positions.shape[1]
        return create_block_mask(rule, 1, None, width, width, device=positions.device)

    if not window:
        return blocks(sees)
    return {"full_attention": blocks(sees), "sliding_attention": blocks(sees_near)} if mixed else blocks(sees_near)


def check_layers(config: Any, model: str = "the model") -> None:
    """Raise `BadInput` if a decoder has layers other than causal attention, full or in a sliding window."""
    strange = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if strange:
        raise BadInput(
            f"{model} has layers of kind {', '.join(sorted(strange))}, and the candidates of a context share its "
            "computed history, which needs attention under a mask, full or in a sliding window. Use a model with such "
            "attention in all layers."
        )
