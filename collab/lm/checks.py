"""Checks a model before any weight is read: its files, config and tokenizer, and whether an adapter fits it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer
from transformers.utils import cached_file

from collab.config.schema import ModelConfig
from collab.lm.attention import check_layers
from collab.lm.loading import UNREADABLE, empty_model, load_tokenizer, locate, not_a_model
from collab.lm.lora import add_adapter
from collab.lm.template_trial import try_template
from collab.util.errors import BadInput, first_line


def check_model(config: ModelConfig) -> str:
    """Check everything about a model that needs no weights.

    Returns:
        What its chat template does, in one line.

    Raises:
        BadInput: There is no model at `path`, or none that can be trained here; the wheel is missing; the tokenizer has
            no chat template, or one that fails its trial; a layer's attention takes no mask; an adapter or a tokenizer
            does not match its base.
    """
    base, adapter = locate(config)
    try:
        described: Any = AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    except UNREADABLE as error:
        raise not_a_model(config, base, error) from error
    own_code = config.trust_remote_code and "AutoModelForCausalLM" in (getattr(described, "auto_map", None) or {})
    if type(described) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise BadInput(
            f"model.path={config.path!r}: {base} is a {described.model_type} model, which does not write text from "
            "left to right. Point model.path at a causal language model."
        )
    check_layers(described.get_text_config(), f"model.path={config.path!r}: {base}")
    _check_weights(config, base, ("model*.safetensors", "pytorch_model*.bin"))
    if adapter is not None:
        _check_weights(config, adapter, ("adapter_model.safetensors", "adapter_model.bin"))
        _check_adapter(config, base, adapter)
    return _check_tokenizer(config, base, adapter, described.get_text_config().vocab_size)


def _check_weights(config: ModelConfig, source: str, patterns: Sequence[str]) -> None:
    """Refuse a local folder that has no weights or a broken safetensors file; hub ids are not checked."""
    if not Path(source).is_dir():
        return
    files = [file for pattern in patterns for file in sorted(Path(source).glob(pattern))]
    if not files:
        raise BadInput(
            f"model.path={config.path!r}: {source} holds no weights ({' or '.join(patterns)}). Point model.path at a "
            "folder that `save_pretrained` wrote, or at a Hugging Face id."
        )
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):  # reads the header
                    pass
            except (SafetensorError, OSError) as error:
                raise BadInput(
                    f"model.path={config.path!r}: {file} cannot be read ({first_line(error)}). It is incomplete, or "
                    "no safetensors file. Copy the folder again."
                ) from error


def _check_adapter(config: ModelConfig, base: str, adapter: str) -> None:
    """Refuse a local adapter if its weights have other names or shapes than the layers of its base."""
    file = Path(adapter, "adapter_model.safetensors")
    if not file.is_file():
        return
    refusal = (
        f"model.path={config.path!r}: the adapter does not match its base {base}: {{}}. Set base_model_name_or_path "
        "in its adapter_config.json to the model that it was trained on, or train an adapter on this one."
    )
    try:
        model = empty_model(config, base, attn_implementation="eager")
        with torch.device("meta"):
            model = peft.PeftModel(model, peft.PeftConfig.from_pretrained(adapter))
    except ValueError as error:
        raise BadInput(refusal.format(first_line(error))) from error
    expected = {name: list(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(model).items()}
    with safe_open(file, framework="pt") as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # of safetensors, no dict
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            is_, should_be = shapes.get(name, "missing"), expected.get(name, "no part of it")
            raise BadInput(refusal.format(f"{name} is {is_} and would be {should_be}"))


def _check_tokenizer(config: ModelConfig, base: str, adapter: str | None, vocab_size: int) -> str:
    """Refuse a tokenizer with ids beyond the model's vocabulary, with other ids than an adapter's base has, or with a
    chat template that fails its trial. Returns what the template does.
    """
    tokenizer: Any = load_tokenizer(config)
    vocabulary = tokenizer.get_vocab()
    if (largest := max(vocabulary.values())) >= vocab_size:
        raise BadInput(
            f"model.path={config.path!r}: the tokenizer {type(tokenizer).__name__} has ids up to {largest}, and the "
            f"model {base} has {vocab_size} tokens. Use the tokenizer files that the model was trained with."
        )
    try:
        template = try_template(tokenizer, vocab_size)
    except BadInput as error:
        raise BadInput(f"model.path={config.path!r}: {error}") from error
    if adapter is None:
        return template
    try:
        expected = AutoTokenizer.from_pretrained(base, trust_remote_code=config.trust_remote_code).get_vocab()
    except UNREADABLE:
        return template  # the base has no tokenizer of its own
    changed = [token for token, index in expected.items() if vocabulary.get(token) != index]
    if changed:
        raise BadInput(
            f"model.path={config.path!r}: its tokenizer is not that of its base {base}: {len(changed)} tokens have "
            f"other ids, for example {changed[0]!r}. Copy the base's tokenizer files there, or set "
            "base_model_name_or_path in its adapter_config.json to the model that the policy was trained on."
        )
    return template


def check_lora(config: ModelConfig) -> None:
    """Try a fresh adapter on a copy of the model without weights.

    Raises:
        BadInput: `lora.target_modules` names no linear layer of the model, or is no regular expression.
    """
    base, exported = locate(config)
    if exported is None and config.lora.enabled:
        _with_fresh_adapter(config, base)


def write_initial_adapter(config: ModelConfig, folder: Path) -> None:
    """Write the adapter that training starts with, without loading its model: the one at `path`, or zeros.

    Zeros replace a fresh adapter, since neither has an effect on the model.
    """
    base, exported = locate(config)
    if exported is None:
        model = _with_fresh_adapter(config, base)
        state = model.state_dict()
        zeros = {name: torch.zeros(state[name].shape, dtype=torch.bfloat16) for name in state if "lora_" in name}
        model.save_pretrained(folder, state_dict=zeros, save_embedding_layers=False)
        return
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(cast(str, cached_file(exported, name)), folder / name)


def _with_fresh_adapter(config: ModelConfig, base: str) -> Any:
    with torch.device("meta"):
        return add_adapter(empty_model(config, base, attn_implementation="eager"), config.lora, base)
