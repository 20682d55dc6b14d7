"""From the output head to the logits that a model family defines, and a check that a model is computed that way."""

from __future__ import annotations

from typing import Any

import torch

from collab.lm.attention import additive_masks
from collab.util.errors import BadInput


def final_logits(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """The logits after the steps that some families add: Cohere and Granite scale them, Gemma 2 caps them softly.

    Args:
        logits: [..., V] outputs of the head.
        config: The text config of the transformers model.
    """
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scale := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scale
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@torch.no_grad()
def check_logits(lm: Any) -> None:
    """Check on four tokens that the engine and the update compute the model's own logits.

    Both call its trunk under a 4-D mask and its head on chosen positions. So the model has to take such a mask, and its
    own logits have to be `final_logits` of its head.

    Args:
        lm: A transformers causal LM, without a peft wrapper.

    Raises:
        BadInput: The model does not take the mask, or has other logits.
    """
    name = type(lm).__name__
    states: list[torch.Tensor] = []
    handle = lm.get_decoder().register_forward_hook(lambda module, args, output: states.append(output[0]))
    head, config = lm.get_output_embeddings(), lm.config.get_text_config()
    positions = torch.arange(4, device=head.weight.device)[None]
    masks = additive_masks(config, positions[:, :, None] >= positions, positions, positions, head.weight.dtype)
    try:
        own = lm(input_ids=positions, position_ids=positions, attention_mask=masks, use_cache=False).logits
        ours = final_logits(head(states[-1]), config)
    except Exception as error:
        raise BadInput(
            f"{name} does not take the positions and the mask by which candidates share their history "
            f"({type(error).__name__}: {error}). Use a model of another family."
        ) from error
    finally:
        handle.remove()
    if (ours - own).abs().max() > 0.02 * own.abs().max():  # bf16 rounds by 0.004
        raise BadInput(
            f"{name} does something with its logits after the head that is not known here: sampling and training "
            "would use another distribution than the model's. Use a model of another family, or add that step to "
            "`final_logits` in collab/lm/logits.py."
        )
