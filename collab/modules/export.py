"""The trained policy as a folder that transformers and peft load directly."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedTokenizerBase


def export_policy(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, *, merge: bool) -> None:
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
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, stale = (folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    try:
        written: Any = model
        if merge and isinstance(model, peft.PeftModel):
            written = copy.deepcopy(model).merge_and_unload()
        written.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        if folder.exists():
            os.rename(folder, stale)
        os.rename(fresh, folder)
        shutil.rmtree(stale, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
