"""The folder of the shipped configs, in a clone and in an installed wheel; which folders hold a model."""

from __future__ import annotations

from pathlib import Path

from collab.util.errors import BadInput


def config_dir() -> Path:
    """The folder of Hydra's YAML files: `collab/conf` of an installed wheel, or `conf` of a clone.

    The package's own folder comes first: a `conf` beside an installed package may belong to another package.

    Raises:
        BadInput: Neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    folders = (package / "conf", package.parent / "conf")
    for folder in folders:
        if (folder / "train.yaml").is_file():
            return folder
    raise BadInput(
        f"No configuration found: neither {folders[0]} nor {folders[1]} holds a train.yaml. "
        "Install collab from a wheel, or with `pip install -e .` from a whole clone."
    )


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a Hugging Face model or a peft adapter."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, which holds a whole model."""
    return path.suffix == ".gguf" and path.is_file()
