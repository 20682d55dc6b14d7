"""The policy as one `nn.Module`. Everything that an update needs of the model is computed in its `forward`.

Sharding hooks fire in a module's own `forward`, so trunk and heads are never called from outside.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.checkpoint import checkpoint

from collab.lm.attention import additive_masks, block_masks, takes_blocks, use_by_layout
from collab.lm.inner import inner_of
from collab.lm.logits import check_logits, final_logits
from collab.modules.packing import PackedBatch

CHUNK = 128  # number of tokens whose [tokens, vocabulary] logits exist at one time


class PolicyOutput(NamedTuple):
    """Output for every candidate token. A tuple, because sharding hooks find tensors only in tuples.

    Attributes:
        logprobs: [N] log-probs of the tokens.
        entropy: [N] entropy of the distribution of each token, without gradient.
        values: [N] value of the state before each token; None without a value head.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor | None = None


class Policy(nn.Module):
    """A causal LM and, for full fine-tuning, a frozen copy of it as the reference.

    With an adapter, the reference is the same weights with the adapter off, which costs no memory.

    Args:
        lm: A transformers causal LM, with or without a peft adapter; on the meta device if its weights come later.
        with_reference: Whether `forward` will be called with `reference=True`.
        with_values: Whether to add a linear value head on the trunk's last hidden states, in fp32, starting at zero.
        adapter_dropout: Whether the adapter's dropout is on in training mode.

    Raises:
        BadInput: The model's logits are not those that `forward` computes (`check_logits`).
    """

    def __init__(self, lm: Any, with_reference: bool, with_values: bool = False, adapter_dropout: bool = False) -> None:
        super().__init__()
        self.lm, self.adapter_dropout = lm, adapter_dropout
        use_by_layout(inner_of(lm))
        if next(lm.parameters()).device.type != "meta":  # otherwise the process with the weights checks
            check_logits(inner_of(lm))
        self.value_head: nn.Linear | None = None
        if with_values:
            width = inner_of(lm).config.get_text_config().hidden_size
            self.value_head = nn.Linear(width, 1, device=next(lm.parameters()).device, dtype=torch.float32)
            for parameter in self.value_head.parameters():
                nn.init.zeros_(parameter)
        self.reference: Any = None
        if with_reference and not hasattr(lm, "disable_adapter"):
            self.reference = copy.deepcopy(lm).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Policy:
        """Put only the layers that recompute activations into training mode, which gradient checkpointing requires.

        All dropout stays off: the policy that is sampled and the one that is updated must be one distribution. Only
        the adapter's is on with `adapter_dropout`, for what learns from stored conversations.
        """
        super().train(False)
        for module in self.modules():
            if self.adapter_dropout and isinstance(module, LoraLayer):
                module.train(mode)
            if hasattr(module, "gradient_checkpointing"):
                module.training = mode
        return self

    def forward(self, batch: PackedBatch, reference: bool = False) -> PolicyOutput:
        """Log-probs of the candidates' tokens at `batch.temperature`; with `reference`, those of the reference.

        The reference has no values.
        """
        lm, off = self.lm, contextlib.nullcontext()
        if reference and self.reference is not None:
            lm = self.reference
        elif reference:
            off = self.lm.disable_adapter()
        inner = inner_of(lm)
        config, dtype = inner.config.get_text_config(), inner.get_output_embeddings().weight.dtype
        positions = batch.position_ids
        masks: Any
        if takes_blocks(inner, positions.device):
            masks = block_masks(config, batch.owners(), positions)
        else:
            masks = additive_masks(config, batch.visible(), positions, positions, dtype, batch.ends)
        with off:
            hidden = inner.get_decoder()(
                input_ids=batch.input_ids, position_ids=positions, attention_mask=masks, use_cache=False
            ).last_hidden_state
            states = hidden[0, batch.predict_from]
            output = _chosen(inner, states, batch.targets, batch.temperature)
        if self.value_head is None or reference:
            return output
        return output._replace(values=self.value_head(states.float())[:, 0])


# --- log-probs of chosen tokens --------------------------------------------------------------------------------------


def _chosen(inner: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> PolicyOutput:
    """Log-probs and entropies of `targets` [N] given `hidden` [N, D], computed in chunks to save memory.

    A log-prob depends on its own hidden state alone. If the head is frozen, the gradient with respect to that state is
    computed with the chunk's logits, [N, D] in all, and the backward pass only scales it. If the head is trained, its
    gradient depends on the incoming gradient, so the backward pass computes the chunk again.
    """
    head = inner.get_output_embeddings()
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in head.parameters())

    def of_chunk(states: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = final_logits(head(states), inner.config.get_text_config()).float() / temperature
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
        return logprobs.gather(-1, chosen[:, None])[:, 0], entropy

    parts = []
    for states, chosen in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        if trained:
            parts.append(checkpoint(of_chunk, states, chosen, use_reentrant=False))
        elif states.requires_grad:
            leaf = states.detach().requires_grad_()
            logprobs, entropy = of_chunk(leaf, chosen)
            (slope,) = torch.autograd.grad(logprobs.sum(), leaf)
            # The difference is 0 with gradient 1: the sum has the value of `logprobs` and the gradient `slope`.
            parts.append((logprobs.detach() + ((states - states.detach()).float() * slope).sum(-1), entropy))
        else:
            parts.append(of_chunk(states, chosen))
    return PolicyOutput(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
