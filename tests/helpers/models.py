"""Tiny random models, adapters and tokenizers: the one place that tests build them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

# Weights are wide enough that what is said before moves the log-probs visibly.
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def tiny_lm(vocabulary: int, family: str = "Llama", *, seed: int = 0, bias: float = 0.0, **fields: Any) -> Any:
    """A random causal language model, in fp32 and eval mode.

    Args:
        vocabulary: Number of tokens.
        family: Of the configs of transformers, `<family>Config`.
        seed: Of the weights.
        bias: Standard deviation of all biases, which are 0 otherwise.
        fields: Of its config, beyond and instead of `SIZES`; None leaves one to the family.
    """
    given = {"vocab_size": vocabulary, **SIZES, **fields}
    config_class = getattr(transformers, f"{family}Config")
    config_class = getattr(transformers, f"{family}TextConfig", config_class)
    config = config_class(**{name: value for name, value in given.items() if value is not None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(config)
        for name, parameter in lm.named_parameters():
            if bias and name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=bias)
    return lm.eval()


def with_adapter(lm: Any, learned: float = 0.0, seed: int = 1, **options: Any) -> Any:
    """`lm` under an adapter, in eval mode.

    Args:
        lm: What is adapted, in place.
        learned: Standard deviation of what is 0 in a fresh adapter, with which it changes nothing yet.
        seed: Of the adapter's weights.
        options: Of `peft.LoraConfig`.
    """
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(lm, peft.LoraConfig(task_type="CAUSAL_LM", **options))
        for name, parameter in adapted.named_parameters():
            if learned and "lora_B" in name:  # with its bias, where it has one
                torch.nn.init.normal_(parameter, std=learned)
    return adapted.eval()


def keep_tokens(file: Path, count: int) -> None:
    """Leave the first `count` tokens in the tokenizer.json of a byte-pair tokenizer: those that were merged first."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    model = whole["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < count}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    file.write_text(json.dumps(whole), encoding="utf-8")


def word_tokenizer(words: Sequence[str], template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words. `<unk>`, `<s>` and `</s>` come before them.

    Args:
        words: The vocabulary; what is twice counts once.
        template: The chat template.
    """
    names = dict.fromkeys(["<unk>", "<s>", "</s>", *words])
    core = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = template
    return tokenizer
