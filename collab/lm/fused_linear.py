"""Fused linear layers for decoding: few rows of input against all weights, for every token.

A decoding step reads every weight once and does little with it, so what counts is how fast weights stream through the
processor and how many operations there are. While an engine decodes, `FusedLinears` replaces the `forward` of a model's
linear layers, and puts it back afterwards:

* layers that read the same input (query, key and value; gate and up) become one matrix product instead of three or two;
* on a CPU, weights are held a second time in the blocked layout of oneDNN, which would otherwise be made anew in every
  product (1.3 to 2 times faster up to 16 rows); models over `PACK_LIMIT` keep their layout;
* in fp32 the packed weights have the active adapter merged in; where the adapter is also switched off there is a second
  copy without it. In bf16 small changes of the weights would round to other values than they do in the update, which
  keeps them apart;
* other adapters, trained in fp32, are rounded to the model's dtype once instead of in every layer of every step.

The values are those of the layers themselves, up to the rounding of the model's dtype.

Shapes: N rows of inputs, O outputs of all layers of a group together, R ranks of their adapters together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import nn

_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # read the same input, in most model families
# Bytes of weights above which a CPU keeps no packed copies: one, in fp32 two if an adapter is switched on and off.
PACK_LIMIT = 4 << 30
_ROWS = 32  # number of input rows that oneDNN picks its layout for; other numbers give the same layout and speed


class FusedLinears:
    """A context manager: inside, the linear layers of `lm` are fused as the docstring of this file says.

    Layers whose adapter is more than plain LoRA (DoRA, several at once, merged, with a bias) are left alone.

    Args:
        lm: A transformers causal LM, with or without a peft adapter.

    Attributes:
        groups: Layers that are computed together.
        packs: Whether weights may be held a second time: they are not larger than `PACK_LIMIT`.
    """

    def __init__(self, lm: nn.Module) -> None:
        self.groups = [FusedGroup(layers) for layers in linear_groups(lm)]
        size = sum(base.weight.nbytes for group in self.groups for base in group.bases)
        self.packs = size <= PACK_LIMIT

    @torch.no_grad()
    def __enter__(self) -> None:
        for group in self.groups:
            group.install(self.packs)

    def __exit__(self, *error: object) -> None:
        for group in self.groups:
            group.remove()

    def adapter_tensors(self) -> list[torch.Tensor | None]:
        """Each group's rounded adapter, a new tensor whenever the adapter has changed; None where it is merged."""
        return [group.down for group in self.groups]

    def clear_cache(self, weights: bool = False) -> None:
        """Read adapters anew next time; autograd's version counter misses changes that are made through `.data`.

        With `weights`, read the base weights anew too.
        """
        for group in self.groups:
            group.clear_cache(weights)


class FusedGroup:
    """Linear layers, with or without adapters, that are called with the same input one after the other.

    Attributes:
        packed: Packed weights, by whether the adapter is merged in.
        down: [R, in] rounded `A` of all adapters; None where there are none, or they are merged.
        up: [R, O] rounded and scaled `B`, each adapter's block on the diagonal.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self.adapters = [layer for layer in layers if isinstance(layer, lora.Linear)]
        self.bases: list[Any] = [layer.base_layer if isinstance(layer, lora.Linear) else layer for layer in layers]
        self.sizes = [base.out_features for base in self.bases]
        self.packs = self.merges = False
        self.packed: dict[bool, torch.Tensor] = {}
        self.bias: torch.Tensor | None = None
        self.down: torch.Tensor | None = None
        self.up: torch.Tensor | None = None
        self.base_state: Any = None
        self.adapter_state: Any = None
        self.input: torch.Tensor | None = None
        self.outputs: list[torch.Tensor | None] = []

    def clear_cache(self, weights: bool) -> None:
        self.adapter_state = self.down = self.up = None
        self.packed.pop(True, None)
        if weights or any(base.weight.requires_grad for base in self.bases):  # an update changes those
            self.base_state = self.bias = None
            self.packed.clear()

    def install(self, packs: bool) -> None:
        """Replace the layers' `forward`, after reading what has changed; with `packs`, weights may be packed."""
        if any(not is_plain(layer) for layer in self.adapters):
            return
        weights = [base.weight for base in self.bases]
        self.packs = packs and _packable(weights[0])
        self.merges = self.packs and weights[0].dtype == torch.float32
        base_state = [_state(parameter) for base in self.bases for parameter in base.parameters()]
        adapter_state = [_adapter_state(layer) for layer in self.adapters]
        if base_state != self.base_state or adapter_state != self.adapter_state:
            self.clear_cache(weights=base_state != self.base_state)
            self.base_state, self.adapter_state = base_state, adapter_state
            if self.packs:
                self.bias = _together([base.bias for base in self.bases], weights)
            if self.adapters and not self.merges:
                downs, ups = zip(*(rounded(layer, weights[0].dtype) for layer in self.layers), strict=True)
                self.down, self.up = torch.cat(downs), torch.block_diag(*ups)
        if not self.packs and not self.adapters:
            return  # one plain product each: nothing to gain
        for number, layer in enumerate(self.layers):
            layer.forward = _Forward(self, number)

    def remove(self) -> None:
        """Give the layers their own `forward` back."""
        self.input, self.outputs = None, []
        for layer in self.layers:
            layer.__dict__.pop("forward", None)

    def output(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """The output of layer `number` for x; the first layer that is called computes all of them."""
        if x is not self.input or self.outputs[number] is None:
            self.input, self.outputs = x, list(self._compute(x))
        found = self.outputs[number]
        assert found is not None
        self.outputs[number] = None
        if all(output is None for output in self.outputs):
            self.input = None
        return found

    def _compute(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        adapted = bool(self.adapters) and not self.adapters[0].disable_adapters
        if self.packs:
            merged = adapted and self.merges
            if merged not in self.packed:
                self.packed[merged] = self._pack(merged)
            result = torch.ops.mkldnn._linear_pointwise(x, self.packed[merged], self.bias, "none", [], "")
        elif len(self.bases) == 1:
            result = F.linear(x, self.bases[0].weight, self.bases[0].bias)
        else:
            result = torch.cat([F.linear(x, base.weight, base.bias) for base in self.bases], dim=-1)
        if adapted and self.down is not None and self.up is not None:
            low_rank = F.linear(x, self.down).flatten(0, -2)
            result = torch.addmm(result.flatten(0, -2), low_rank, self.up).view(result.shape)
        return result.split(self.sizes, dim=-1)

    @torch.no_grad()
    def _pack(self, merged: bool) -> torch.Tensor:
        weights = [_merged(layer) for layer in self.adapters] if merged else [base.weight for base in self.bases]
        return torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights), _ROWS)


class _Forward:
    """The `forward` of one layer of a group."""

    def __init__(self, group: FusedGroup, number: int) -> None:
        self.group, self.number = group, number

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.output(self.number, x)


def linear_groups(lm: nn.Module) -> Iterator[list[nn.Module]]:
    """All linear layers of a model; siblings are together where all of them have adapters or none has."""
    taken: set[int] = set()
    for parent in lm.modules():
        if isinstance(parent, lora.Linear):
            taken |= {id(module) for module in parent.modules() if module is not parent}
            continue
        children = dict(parent.named_children())
        for names in _SIBLINGS:
            found = [children.get(name) for name in names]
            if len({type(layer) for layer in found}) == 1 and all(_is_linear(layer) for layer in found):
                taken |= {id(layer) for layer in found}
                yield [layer for layer in found if layer is not None]
        for layer in children.values():
            if _is_linear(layer) and id(layer) not in taken:
                yield [layer]


def _is_linear(layer: nn.Module | None) -> bool:
    return type(layer) is nn.Linear or isinstance(layer, lora.Linear) and type(layer.base_layer) is nn.Linear


def is_plain(layer: lora.Linear) -> bool:
    """Whether a layer's adapter is one LoRA that is not merged and nothing more, such as DoRA or a bias."""
    active = layer.active_adapters
    plain = len(active) == 1 and active[0] in layer.lora_A and active[0] not in layer.lora_variant
    return plain and not layer.lora_bias[active[0]] and not layer.merged


def _state(parameter: torch.Tensor) -> tuple[int, int]:
    """Differs when a parameter has been moved or written."""
    return parameter.data_ptr(), parameter._version


def _adapter_state(layer: Any) -> tuple[Any, ...]:
    name = layer.active_adapters[0]
    return name, layer.scaling[name], _state(layer.lora_A[name].weight), _state(layer.lora_B[name].weight)


def rounded(layer: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`A` [r, in] and the scaled transpose of `B` [r, out] of a plain adapter, in `dtype`."""
    name = layer.active_adapters[0]
    up = layer.lora_B[name].weight * layer.scaling[name]
    return layer.lora_A[name].weight.to(dtype), up.to(dtype).t()


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


def _together(biases: Sequence[torch.Tensor | None], weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    if all(bias is None for bias in biases):
        return None
    pairs = zip(biases, weights, strict=True)
    return torch.cat([w.new_zeros(len(w)) if bias is None else bias for bias, w in pairs])
