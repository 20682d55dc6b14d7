"""Writes tiny models as GGUF files, in the layout of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "\u010a\u010a", "th", "the", *CONTROL]
MERGES = ["\u010a \u010a", "t h", "th e"]


def write_qwen2(
    path: Path,
    lm: Any,
    template: str | None,
    architecture: str = "qwen2",
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
    dtype: type = np.float32,
    **fields: Any,
) -> None:
    """A Qwen2 of transformers with a byte-level tokenizer of `TOKENS`.

    Args:
        path: The file.
        lm: The model, `len(TOKENS)` tokens.
        template: Chat template; None writes none.
        architecture: What the file says that it is.
        extra: More tensors, by name.
        dtype: Of matrices.
        fields: Texts and numbers by key, with `__` for a dot.
    """
    config = lm.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("A title that is no path")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields.pop("pre", "qwen2"))
    writer.add_token_list(TOKENS)
    kinds = [gguf.TokenType.CONTROL if token in CONTROL else gguf.TokenType.NORMAL for token in TOKENS]
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_pad_token_id(TOKENS.index("<|endoftext|>"))
    if template is not None:
        writer.add_chat_template(template)
    for key, value in fields.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(key.replace("__", "."), value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in lm.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        kind = dtype if values.ndim > 1 else np.float32
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), values.astype(kind))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
