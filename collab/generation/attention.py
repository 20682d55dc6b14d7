"""FlashAttention where it applies.

FlashAttention takes no explicit mask, and single tokens of requests of different lengths, as well as packed groups,
need one. A model with `model.attention=flash_attention_2` therefore computes whole prompts with it, and everything
masked with SDPA.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FLASH_WHERE_UNMASKED = "flash_where_unmasked"


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


AttentionInterface.register(FLASH_WHERE_UNMASKED, flash_where_unmasked)
