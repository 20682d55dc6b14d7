"""Attention as rollouts need it, through transformers' `AttentionInterface`; and the masks of an explicit layout.

FlashAttention takes no explicit mask, and single tokens of requests of different lengths, as well as packed groups,
need one. A model with `model.attention=flash_attention_2` therefore computes whole prompts with it, and everything
masked with SDPA.

SDPA on a CPU is made for many queries. At one query a row, the heads that share keys are three or so rows of a matrix
product, and two batched products with keys stored channel by channel take half to two thirds of SDPA's time.

Shapes: N rows, T queries and L keys of each.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from collab.errors import BadInput

FLASH_WHERE_UNMASKED = "flash_where_unmasked"
SINGLE_QUERIES = "single_queries"


def flash_where_unmasked(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> Any:
    """`[N, heads, T, channels]` in transformers' attention interface; causal where `attention_mask` is None."""
    name = "flash_attention_2" if attention_mask is None else "sdpa"
    return ALL_ATTENTION_FUNCTIONS[name](module, query, key, value, attention_mask, **kwargs)


def single_queries(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> Any:
    """SDPA, but two batched products where every row has one query and a mask that is added (`additive_masks`).

    Takes and returns what `flash_where_unmasked` does.
    """
    rows, heads, queries, channels = query.shape
    key_heads = key.shape[1]
    if queries > 1 or attention_mask is None or attention_mask.dtype == torch.bool or attention_mask.shape[1] > 1:
        # SDPA is slow over keys stored channel by channel.
        key = key.contiguous()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scaling = channels**-0.5 if scaling is None else scaling
    mask = attention_mask[:, 0].repeat_interleave(key_heads, 0)
    scores = torch.baddbmm(
        mask,
        query.reshape(rows * key_heads, heads // key_heads, channels),
        key.transpose(2, 3).flatten(0, 1),
        alpha=scaling,
    )
    found = torch.bmm(scores.softmax(-1), value.flatten(0, 1))
    return found.view(rows, 1, heads, channels), None


AttentionInterface.register(FLASH_WHERE_UNMASKED, flash_where_unmasked)
AttentionInterface.register(SINGLE_QUERIES, single_queries)
AttentionMaskInterface.register(SINGLE_QUERIES, sdpa_mask)


def additive_masks(
    config: Any, visible: torch.Tensor, distance: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """A decoder's `attention_mask` from who sees whom, with the sliding window of layers that have one.

    Args:
        config: The decoder's.
        visible: [N, T, L] bool, query by key.
        distance: [N, T, L] how many positions a key lies before its query.
        dtype: Of the mask.

    Returns:
        [N, 1, T, L], 0 where visible and the lowest number elsewhere; where layers differ, one for each kind of layer.
    """

    def additive(seen: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    window = getattr(config, "sliding_window", None)
    if not window:
        return additive(visible)
    sliding = additive(visible & (distance < window))
    if not getattr(config, "layer_types", None):
        return sliding
    return {"full_attention": additive(visible), "sliding_attention": sliding}


def check_layers(config: Any) -> None:
    """Raise `BadInput` where a decoder has layers that see otherwise than causally, in full or through a window."""
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        raise BadInput(
            f"The model has layers of {', '.join(sorted(unknown))}; rollouts and packed updates know full_attention "
            "and sliding_attention. Take a model of those."
        )
