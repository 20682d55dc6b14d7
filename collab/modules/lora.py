"""LoRA's arithmetic in the dtype of the model, for the many small products of decoding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora


class LeanLoraLinear(lora.Linear):
    """`lora.Linear` of peft, with `A` and `B` rounded to the input's dtype instead of the input cast to theirs.

    peft keeps adapters in fp32 beside a bf16 model and casts activations back and forth in every layer, which is much
    of a decoding step on a CPU. The weights that are trained stay in fp32 here too; only products are in bf16, in
    rollouts and in the update alike. Whatever is not one plain adapter is left to peft, and so is training mode with
    its dropout.

    The rounded weights are kept until an optimizer step, `load_state_dict` or any other operation on the parameters;
    after writing to `.data`, which leaves no trace, call `forget_rounded`.
    """

    _rounded: tuple[tuple[Any, ...], torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        active = self.active_adapters
        plain = len(active) == 1 and active[0] in self.lora_A and active[0] not in self.lora_variant
        plain = plain and not self.lora_bias[active[0]]
        if args or kwargs or not plain or self.merged or self.disable_adapters or self.training:
            return super().forward(x, *args, **kwargs)
        a, b = self._weights(active[0], x.dtype)
        result: torch.Tensor = self.base_layer(x)
        low_rank = F.linear(x, a)
        return torch.addmm(result.flatten(0, -2), low_rank.flatten(0, -2), b).view(result.shape)

    def _weights(self, name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """`A` [r, in] and the scaled transpose of `B` [r, out]; kept between calls that need no gradient."""
        a: Any = self.lora_A[name].weight
        b: Any = self.lora_B[name].weight
        state = (name, dtype, self.scaling[name], a.data_ptr(), a._version, b.data_ptr(), b._version)
        if torch.is_grad_enabled():
            self._rounded = None
        elif self._rounded is not None and self._rounded[0] == state:
            return self._rounded[1:]
        rounded = a.to(dtype), (b * self.scaling[name]).to(dtype).t()
        if not torch.is_grad_enabled():
            self._rounded = (state, *rounded)
        return rounded


def forget_rounded(model: torch.nn.Module) -> None:
    """Have every `LeanLoraLinear` of the model round its weights anew."""
    for module in model.modules():
        if isinstance(module, LeanLoraLinear):
            module._rounded = None


def make_lean(model: torch.nn.Module) -> None:
    """Turn the plain LoRA layers of a peft model into `LeanLoraLinear`, in place."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = LeanLoraLinear
