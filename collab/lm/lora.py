"""LoRA adapters: puts a fresh one on a model, and computes in the model's dtype, in rollouts and updates alike."""

from __future__ import annotations

import re
from typing import Any

import peft
import torch
import torch.nn.functional as F
from peft.tuners import lora

from collab.config.schema import LoraConfig
from collab.util.errors import BadInput, first_line


def add_adapter(model: Any, config: LoraConfig, base: str) -> Any:
    """`model` with a fresh adapter, as a `peft.PeftModel`; changes `model` in place.

    Args:
        model: A causal language model of transformers.
        config: Rank, scale, dropout and layers of the adapter.
        base: Where the model comes from, for messages.

    Raises:
        BadInput: `target_modules` names no linear layer of the model, or is no regular expression.
    """
    targets = config.target_modules
    try:
        adapter = peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
        )
        return peft.get_peft_model(model, adapter)
    except (ValueError, re.error) as error:
        raise BadInput(
            f"model.lora cannot be put on {base}: {first_line(error)}. Choose model.lora.target_modules among the "
            "names of its linear layers, or all-linear."
        ) from error


class LeanLoraLinear(lora.Linear):
    """`lora.Linear` of peft, with `A` and `B` rounded to the input's dtype instead of the input cast to theirs.

    peft keeps adapters in fp32 beside a bf16 model and casts activations back and forth in every layer. Here the
    trained weights are fp32 too, but products are in bf16, in rollouts (`FusedLinears`) and in updates. peft itself
    computes whatever is not one plain adapter, and training mode with its dropout.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        if args or kwargs or not is_plain(self) or self.disable_adapters or self.training:
            return super().forward(x, *args, **kwargs)
        down, up = rounded(self, x.dtype)
        result: torch.Tensor = self.base_layer(x)
        low_rank = F.linear(x, down).flatten(0, -2)
        return torch.addmm(result.flatten(0, -2), low_rank, up).view(result.shape)


def make_lean(model: torch.nn.Module) -> None:
    """Turn the plain LoRA layers of a peft model into `LeanLoraLinear`, in place."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = LeanLoraLinear


def is_plain(layer: lora.Linear) -> bool:
    """Whether a layer has exactly one LoRA adapter, which is not merged and has no bias and no extension like DoRA."""
    active = layer.active_adapters
    plain = len(active) == 1 and active[0] in layer.lora_A and active[0] not in layer.lora_variant
    return plain and not layer.lora_bias[active[0]] and not layer.merged


def rounded(layer: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`A` [r, in] and the scaled transpose of `B` [r, out] of a plain adapter, in `dtype`."""
    name = layer.active_adapters[0]
    up = layer.lora_B[name].weight * layer.scaling[name]
    return layer.lora_A[name].weight.to(dtype), up.to(dtype).t()
