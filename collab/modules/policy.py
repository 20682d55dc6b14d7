"""The policy as one `nn.Module`: trunk and head are entered together, through `forward`, and only there.

Sharding hooks fire in a module's own forward; whatever the update needs of the model is therefore computed here.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from collab.generation.engine import final_logits
from collab.modules.packing import PackedBatch

_CHUNK = 256  # tokens whose [tokens, vocabulary] logits exist at one time


@dataclass(frozen=True)
class PolicyOutput:
    """Of every candidate token: its `logprobs` [N], and (no gradient) the `entropy` [N] of what it was drawn from."""

    logprobs: torch.Tensor
    entropy: torch.Tensor


class Policy(nn.Module):
    """A causal LM and, for full fine-tuning, a frozen copy of it as the reference.

    With an adapter the reference is the same weights with the adapter off, and costs no memory.

    Args:
        lm: A transformers causal LM, with or without a peft adapter.
        with_reference: Whether `reference=True` will be asked for.
    """

    def __init__(self, lm: Any, with_reference: bool) -> None:
        super().__init__()
        self.lm = lm
        self.reference: Any = None
        if with_reference and not hasattr(lm, "disable_adapter"):
            self.reference = copy.deepcopy(lm).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Policy:
        """Training mode for layers that recompute activations, which act in no other; all else stays in evaluation.

        All dropout is thereby off: the policy that is sampled and the one that is updated must be one distribution.
        """
        super().train(False)
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.training = mode
        return self

    def forward(self, batch: PackedBatch, reference: bool = False) -> PolicyOutput:
        """Log-probs of the candidates' tokens at `batch.temperature`; with `reference`, those of the reference."""
        lm, off = self.lm, contextlib.nullcontext()
        if reference and self.reference is not None:
            lm = self.reference
        elif reference:
            off = self.lm.disable_adapter()
        inner = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
        head = inner.get_output_embeddings()
        dtype = head.weight.dtype
        mask = torch.zeros(batch.visible.shape, dtype=dtype, device=batch.visible.device)
        mask = mask.masked_fill_(~batch.visible, torch.finfo(dtype).min)
        with off:
            hidden = inner.get_decoder()(
                input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=mask, use_cache=False
            ).last_hidden_state
            hidden = hidden.flatten(0, 1)[batch.predict_from]

            def of_chunk(states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                logits = final_logits(head(states), inner.config).float() / batch.temperature
                logprobs = logits.log_softmax(-1)
                entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
                return logprobs.gather(-1, targets[:, None])[:, 0], entropy

            parts = [
                checkpoint(of_chunk, states, targets, use_reentrant=False)
                if torch.is_grad_enabled()
                else of_chunk(states, targets)
                for states, targets in zip(hidden.split(_CHUNK), batch.targets.split(_CHUNK), strict=True)
            ]
        return PolicyOutput(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
