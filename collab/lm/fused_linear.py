"""Fused linear layers for decoding: few rows of input against all weights, for every token.

A decoding step reads every weight once and computes little with it. Its speed depends on how fast weights stream
through the processor and on the number of operations. While an engine decodes, `FusedLinears` replaces the `forward` of
a model's linear layers:

* Layers with the same input (query, key and value; gate and up) become one matrix product.
* On a CPU, weights are also held in the blocked layout of oneDNN, which every product would otherwise make anew (1.3 to
  2 times faster up to 16 rows). Models over `PACK_LIMIT` keep their layout.
* In fp32 the active adapter is merged into the packed weights; requests without the adapter use a second copy. In bf16
  it is not merged: small changes of the weights would round to other values than in the update, which keeps them apart.
* Adapters that are not merged are rounded from fp32 to the model's dtype once, not in every layer of every step.

The values are those of the layers themselves, up to the rounding of the model's dtype.

Shapes: N rows of inputs, O outputs of all layers of a group together, R ranks of their adapters together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import nn

from collab.lm.lora import is_plain, rounded

_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # read the same input, in most model families
# Bytes of weights above which a CPU keeps no packed copies: one, in fp32 two if an adapter is switched on and off.
PACK_LIMIT = 4 << 30
_ROWS = 32  # oneDNN picks its layout for this number of rows; other numbers give the same layout and speed


class FusedLinears:
    """A context manager in which the linear layers of `lm` are fused, as the docstring of this file says.

    Layers with an adapter that is more than plain LoRA (DoRA, several at once, merged, with a bias) are left alone.

    Args:
        lm: A transformers causal LM, with or without a peft adapter.

    Attributes:
        groups: Layers that are computed together.
    """

    def __init__(self, lm: nn.Module) -> None:
        self.groups = [FusedGroup(layers) for layers in linear_groups(lm)]
        self._packs = sum(base.weight.nbytes for group in self.groups for base in group.bases) <= PACK_LIMIT

    @torch.no_grad()
    def __enter__(self) -> None:
        for group in self.groups:
            group.install(self._packs)

    def __exit__(self, *error: object) -> None:
        for group in self.groups:
            group.remove()

    def clear_cache(self, weights: bool = False) -> None:
        """Drop the copies of all weights that are trained; call it whenever these have changed.

        With `weights`, drop the copies of frozen weights too.
        """
        for group in self.groups:
            group.clear_cache(weights)


class FusedGroup:
    """Linear layers, with or without adapters, that are called with the same input one after the other.

    Attributes:
        packed: Packed weights and their bias, by whether the adapter is merged in.
        down: [R, in] rounded `A` of all adapters; None where there are none, or they are merged.
        up: [R, O] rounded and scaled `B`, each adapter's block on the diagonal.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self.adapters = [layer for layer in layers if isinstance(layer, lora.Linear)]
        self.bases: list[Any] = [layer.base_layer if isinstance(layer, lora.Linear) else layer for layer in layers]
        self.packed: dict[bool, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self.down: torch.Tensor | None = None
        self.up: torch.Tensor | None = None
        self._packs = self._merges = False
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}  # of the layers that have not been called yet

    def clear_cache(self, weights: bool) -> None:
        self.down = self.up = None
        self.packed.pop(True, None)
        if weights or any(base.weight.requires_grad for base in self.bases):
            self.packed.clear()

    def install(self, packs: bool) -> None:
        """Replace the layers' `forward`; with `packs`, weights may be packed."""
        if any(not is_plain(layer) for layer in self.adapters):
            return
        weight = self.bases[0].weight
        self._packs = packs and _packable(weight)
        self._merges = self._packs and weight.dtype == torch.float32
        if not self._packs and not self.adapters:
            return  # one plain product each: nothing to gain
        if self.adapters and not self._merges and self.down is None:
            downs, ups = zip(*(rounded(layer, weight.dtype) for layer in self.layers), strict=True)
            self.down, self.up = torch.cat(downs), torch.block_diag(*ups)
        for number, layer in enumerate(self.layers):
            layer.forward = functools.partial(self._output, number)

    def remove(self) -> None:
        """Give the layers their own `forward` back."""
        self._input, self._outputs = None, {}
        for layer in self.layers:
            layer.__dict__.pop("forward", None)

    def _output(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """The output of layer `number` for x; the first layer that is called computes all of them."""
        if x is not self._input or number not in self._outputs:
            self._input, self._outputs = x, dict(enumerate(self._compute(x)))
        output = self._outputs.pop(number)
        if not self._outputs:
            self._input = None
        return output

    def _compute(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        adapted = bool(self.adapters) and not self.adapters[0].disable_adapters
        if self._packs:
            merged = adapted and self._merges
            if merged not in self.packed:
                self.packed[merged] = self._pack(merged)
            weight, bias = self.packed[merged]
            result = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        elif len(self.bases) == 1:
            result = F.linear(x, self.bases[0].weight, self.bases[0].bias)
        else:
            result = torch.cat([F.linear(x, base.weight, base.bias) for base in self.bases], dim=-1)
        if adapted and self.down is not None and self.up is not None:
            low_rank = F.linear(x, self.down).flatten(0, -2)
            result = torch.addmm(result.flatten(0, -2), low_rank, self.up).view(result.shape)
        return result.split([base.out_features for base in self.bases], dim=-1)

    @torch.no_grad()
    def _pack(self, merged: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        weights = [_merged(layer) for layer in self.adapters] if merged else [base.weight for base in self.bases]
        has_bias = self.bases[0].bias is not None
        bias = torch.cat([base.bias for base in self.bases]) if has_bias else None
        return torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights), _ROWS), bias


def linear_groups(lm: nn.Module) -> Iterator[list[nn.Module]]:
    """All linear layers of a model; siblings are together where all of them have adapters and biases, or none has."""
    grouped: set[int] = set()
    for parent in lm.modules():
        if isinstance(parent, lora.Linear):
            grouped |= {id(module) for module in parent.modules() if module is not parent}
            continue
        layers: dict[str, Any] = {name: layer for name, layer in parent.named_children() if _is_linear(layer)}
        for names in _SIBLINGS:
            siblings = [layers[name] for name in names if name in layers]
            if len(siblings) == len(names) and len({(type(one), one.bias is None) for one in siblings}) == 1:
                grouped |= {id(layer) for layer in siblings}
                yield siblings
        yield from ([layer] for layer in layers.values() if id(layer) not in grouped)


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or isinstance(layer, lora.Linear) and type(layer.base_layer) is nn.Linear


def _merged(layer: Any) -> torch.Tensor:
    """`[out, in]`: a layer's weight and its plain adapter."""
    name, weight = layer.active_adapters[0], layer.base_layer.weight
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return torch.addmm(weight, up.to(weight.dtype), down.to(weight.dtype), alpha=layer.scaling[name])


def _packable(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bf16 or weight.dtype == torch.float32
