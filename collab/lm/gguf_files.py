"""Models in GGUF files, converted once to Hugging Face folders, which train, shard and export as any other folder.

transformers reads GGUF files too. But what it returns counts as quantised, and can neither be trained nor saved.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from collab.util.errors import BadInput, first_line

_SAMPLE = 1 << 20  # bytes at either end of a file that tell it from others
_AS_GPT2 = {"default", "gpt-2", "phi-2", "olmo", "mpt"}  # splits of text that are GPT-2's
_UNREADABLE = (OSError, ValueError, KeyError, IndexError)  # what gguf and transformers raise


def gguf_folder(source: Path) -> Path:
    """The model in a GGUF file as a Hugging Face folder, converted on the first call.

    Weights are fp32 or fp16 where the file has them so, else bf16. The folder is in the user cache (`cache_root`). Its
    name has a checksum of the file's size and of the bytes at its ends.

    Raises:
        BadInput: The file is no GGUF file of a causal language model with a chat template, or not one that transformers
            reads right.
    """
    with source.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        for place in (0, max(0, size - _SAMPLE)):
            file.seek(place)
            digest.update(file.read(_SAMPLE))
    folder = cache_root() / f"{source.stem}-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    dtype = check_gguf(source)
    print(
        f"Converting {source.name} to a Hugging Face folder, once: {folder}. Adapters will name it as their base.",
        file=sys.stderr,
        flush=True,
    )
    return write_once(folder, lambda fresh: convert(source, fresh, _tokenizer(source), dtype))


def cache_root() -> Path:
    """The user cache: $COLLAB_CACHE, or else $XDG_CACHE_HOME/collab, or else ~/.cache/collab."""
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("COLLAB_CACHE") or Path(xdg, "collab")).expanduser().absolute()


def write_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, made by `write` if it is not there.

    It appears by one rename: processes that write at the same time each write a copy, and all use the first that is
    complete.

    Raises:
        BadInput: The folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(fresh)
        with contextlib.suppress(OSError):  # another process was first: rename does not replace a folder with files
            os.rename(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if not folder.is_dir():
        raise BadInput(f"The cache folder {folder} could not be written. Set COLLAB_CACHE to a folder that can be.")
    return folder


def check_gguf(source: Path) -> torch.dtype:
    """Check the header of a GGUF file, and return the dtype that its weights are converted to.

    Raises:
        BadInput: As `gguf_folder`.
    """

    def refusal(problem: str, way_out: str = "Take the model's Hugging Face folder or id instead.") -> BadInput:
        return BadInput(f"model.path={str(source)!r}: {problem}. {way_out}")

    if importlib.util.find_spec("gguf") is None:
        raise refusal("a GGUF file is read by the package gguf, which is not installed", "Run `pip install gguf`.")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer.ggml.t" not in name}
        architecture = fields["general.architecture"]
    except _UNREADABLE as error:
        raise refusal(f"it cannot be read as GGUF ({first_line(error)})", "Download the file again.") from error
    if fields.get("split.count", 1) > 1:
        raise refusal("it is one of several parts", "Join them with `llama-gguf-split --merge`.")
    if not fields.get("tokenizer.chat_template"):
        raise refusal("it has no chat template to render conversations with", "Take an instruct model.")
    try:
        config: Any = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    except _UNREADABLE as error:
        raise refusal(
            f"transformers does not read GGUF files of the architecture {architecture!r} ({first_line(error)})"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refusal(f"a {config.model_type} model does not write text from left to right")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    unread = (config.rope_parameters or {}).get("rope_type", "default") == "default"
    scaled = fields.get(f"{architecture}.rope.scaling.type", "none") != "none"
    if (scaled and unread) or _rope_parameters(reader, config) is None:
        raise refusal("it scales the frequencies of its positions in a way that is not read from GGUF files")
    split = fields.get("tokenizer.ggml.pre", "default")
    if fields.get("tokenizer.ggml.model") == "gpt2" and split not in {*_splits(), *_AS_GPT2, "smollm"}:
        raise refusal(
            f"transformers {transformers.__version__} does not know how its tokenizer splits text ({split!r})"
        )
    matrices = {kinds[tensor.name] for tensor in reader.tensors if len(tensor.shape) > 1}
    return {"F32": torch.float32, "F16": torch.float16}.get("".join(matrices), torch.bfloat16)


def _rope_parameters(reader: Any, config: Any) -> Any:
    """The rotary embedding of a model, None if it is not known.

    transformers leaves out the factors by which Llama 3.1 and later ones scale its frequencies. They are a tensor in
    the file, and are looked at here: they are those of transformers' type llama3, or not known.
    """
    factors = next((tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    if factors is None:
        return config.rope_parameters
    scaled = copy.deepcopy(config)
    scaled.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": config.rope_parameters["rope_theta"],
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    steps = torch.arange(len(found)) / len(found)
    plain = config.rope_parameters["rope_theta"] ** -steps
    same = torch.allclose(found, plain / torch.tensor(factors), rtol=1e-4)
    return scaled.rope_parameters if same else None


def _splits() -> set[str]:
    """The ways to split text (`tokenizer.ggml.pre`) that transformers reads; none in versions without a table."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def convert(source: Path, folder: Path, tokenizer: Any, dtype: torch.dtype) -> None:
    """Read a GGUF file and write it as config, weights in `dtype`, tokenizer and generation config."""
    from gguf import GGUFReader

    # Progress bars and a note on dequantisation would go to stderr. `from_config` draws weights that are then replaced:
    # the random state is forked, so that a run that converts draws the same numbers as the next one.
    with contextlib.redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
        read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=dtype, **_unpacked())
        config = copy.deepcopy(read.config)
        # The model that was read counts as quantised and cannot be saved, so its tensors move to a fresh one. Its
        # name is the GGUF's title, which is no path.
        for name in ("quantization_config", "_model_name_or_path"):
            if hasattr(config, name):
                delattr(config, name)
        config.rope_parameters = _rope_parameters(GGUFReader(source), config)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.load_state_dict(read.state_dict())
        # Every request states its sampling, so the defaults are the special tokens alone.
        special = {f"{name}_token_id": getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
        model.generation_config = GenerationConfig(**special)
        model.save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _unpacked() -> dict[str, Any]:
    """Arguments by which versions of transformers that can compute with quantised weights unpack them."""
    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def _tokenizer(source: Path) -> Any:
    from gguf import GGUFReader

    fields = GGUFReader(source).fields
    split = fields.get("tokenizer.ggml.pre")
    if split is not None and split.contents() == "smollm":
        return smollm_tokenizer(source)
    return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)


def smollm_tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer of a GGUF file of SmolLM2, special tokens and chat template included.

    It is built here because versions of transformers convert it wrongly: 5.17 confuses the token that begins a turn
    with the one that ends it, and 5.23 does not read `tokenizer.ggml.pre = smollm`, which separates digits before the
    byte-level split.
    """
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(source).fields
    entries = {key.removeprefix("tokenizer."): field.contents() for key, field in fields.items() if "tokenizer." in key}
    tokens = entries["ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in entries["ggml.merges"]]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, entries["ggml.token_type"], strict=True)
    backend.add_special_tokens(
        [AddedToken(token, normalized=False) for token, kind in kinds if kind == TokenType.CONTROL]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{
            f"{name}_token": tokens[entries[f"ggml.{key}_token_id"]]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
            if f"ggml.{key}_token_id" in entries
        },
    )
    tokenizer.chat_template = entries["chat_template"]
    return tokenizer
