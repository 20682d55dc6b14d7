"""The trained policy as a folder that transformers and peft load directly."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase


def export_policy(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    merge: bool,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write `model` and its tokenizer to `folder`, in place of what an earlier export left there.

    `AutoModelForCausalLM.from_pretrained(folder)` loads the result. A LoRA policy is written as an adapter
    (`adapter_model.safetensors`, `adapter_config.json`, which names the base; `peft.PeftModel` loads it as well); with
    `merge`, and after full fine-tuning, the folder holds a whole model. Merged weights are rounded to the base's dtype.

    The folder appears by a rename when all of it is written, so that a reader, or a run that is killed, never meets
    half of an export. The live model is left as it is: merging happens on a copy, which takes the memory of a second
    model for as long as it lasts.

    Args:
        model: A `peft.PeftModel` or a transformers model, not wrapped.
        tokenizer: Saved beside it, chat template included.
        folder: Destination; parents are made.
        merge: Merge the adapter into the base weights; no effect without an adapter.
        state: Where the model is sharded, its state dict as `whole_state` returns it, of an adapter the trained part.
            Merging then reads the base weights anew.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, stale = (folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    try:
        written: Any = model
        if merge and isinstance(model, peft.PeftModel):
            written, state = _merged(model, state, fresh), None
        written.save_pretrained(fresh, state_dict=state)
        tokenizer.save_pretrained(fresh)
        if folder.exists():
            os.rename(folder, stale)
        os.rename(fresh, folder)
        shutil.rmtree(stale, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _merged(model: peft.PeftModel, state: dict[str, torch.Tensor] | None, folder: Path) -> Any:
    """The base model with the adapter in its weights; `folder` is used on the way."""
    if state is None:
        return copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(str(folder), state_dict=state)
    base: Any = model.peft_config["default"].base_model_name_or_path
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=model.get_base_model().dtype)
    merged = peft.PeftModel.from_pretrained(whole, folder).merge_and_unload()
    shutil.rmtree(folder)
    return merged
