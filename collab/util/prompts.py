"""Prompts that a setting names instead of spelling them out: a file, or a file of an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from collab.util.errors import BadInput

_FILE, _PACKAGE = "file://", "package://"


def prompt_text(value: str, name: str) -> str:
    """The text behind a setting: of `file://PATH`, of `package://PACKAGE/PATH`, or the value itself.

    Nothing of the package is run.

    Args:
        value: Of the setting.
        name: Of the setting, for messages.

    Raises:
        BadInput: The package is not installed, there is no such file, or it is not UTF-8.
    """
    if value.startswith(_FILE):
        path = Path(value.removeprefix(_FILE)).expanduser()
    elif value.startswith(_PACKAGE):
        package, _, inside = value.removeprefix(_PACKAGE).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise BadInput(
                f"{name}={value}: the package {package} is not installed. Run `pip install --no-deps {package}`, or "
                "write the prompt itself."
            )
        path = Path(next(iter(spec.submodule_search_locations)), inside)
    else:
        return value
    if not path.is_file():
        raise BadInput(f"{name}={value}: there is no file {path}. Name one that is there, or write the prompt itself.")
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{name}={value}: {path} must be UTF-8, and byte {error.start} of it is not. Save it as UTF-8, or write "
            "the prompt itself."
        ) from error
