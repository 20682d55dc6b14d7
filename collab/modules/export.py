"""Export: the trained policy as a folder that transformers and peft load directly."""

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
    card: str | None = None,
) -> None:
    """Write `model` and its tokenizer to `folder`, in place of an earlier export.

    `AutoModelForCausalLM.from_pretrained(folder)` loads the result. A LoRA policy is written as an adapter
    (`adapter_model.safetensors`, and `adapter_config.json`, which names the base), which `peft.PeftModel` loads as
    well. With `merge`, and after full fine-tuning, the folder holds a whole model; merged weights are rounded to the
    base's dtype.

    The complete folder appears by a rename, so that nobody reads half of an export, even after a kill. Merging
    works on a copy of the model and needs the memory of a second model meanwhile.

    Args:
        model: A `peft.PeftModel` or a transformers model, not wrapped.
        tokenizer: Saved with its chat template.
        folder: Destination; parents are made.
        merge: Merge the adapter into the base weights; no effect without an adapter.
        state: For a sharded model, its state dict from `whole_state`; for an adapter, of the trained part only. Merging
            then reads the base weights again.
        card: The text of `README.md`, in place of the one that peft writes.
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
        if card is not None:
            (fresh / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            os.rename(folder, stale)
        os.rename(fresh, folder)
        shutil.rmtree(stale, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _merged(model: peft.PeftModel, state: dict[str, torch.Tensor] | None, folder: Path) -> Any:
    """The base model with the adapter merged; `folder` is used for temporary files."""
    if state is None:
        return copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(str(folder), state_dict=state)
    base: Any = model.peft_config["default"].base_model_name_or_path
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=model.get_base_model().dtype)
    merged = peft.PeftModel.from_pretrained(whole, folder).merge_and_unload()
    shutil.rmtree(folder)
    return merged
