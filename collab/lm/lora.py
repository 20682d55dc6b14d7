"""LoRA's arithmetic in the dtype of the model, which is what rollouts and updates share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora

from collab.lm.fused_linear import is_plain, rounded


class LeanLoraLinear(lora.Linear):
    """`lora.Linear` of peft, with `A` and `B` rounded to the input's dtype instead of the input cast to theirs.

    peft keeps adapters in fp32 beside a bf16 model and casts activations back and forth in every layer. The weights
    that are trained stay in fp32 here too; only products are in bf16, in rollouts (`FusedLinears`) and in the update
    alike. Whatever is not one plain adapter is left to peft, and so is training mode with its dropout.
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
