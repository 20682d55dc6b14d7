"""Imports the classes and functions that the config names."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from collab.util.errors import BadInput, error_text


def load_target(target: str, key: str, *, function: bool = False) -> Any:
    """Import `package.module.Name`.

    Args:
        target: The full name.
        key: The config field that holds it, for the message.
        function: Expect a function, not a class.

    Raises:
        BadInput: There is no such module or name. The message lists the names of the module.
    """
    module, _, name = target.rpartition(".")
    kind, wanted = ("function", inspect.isfunction) if function else ("class", inspect.isclass)
    there = ""
    try:
        loaded = importlib.import_module(module)
        own = [n for n, what in vars(loaded).items() if wanted(what) and what.__module__ == module and n[0] != "_"]
        there = f" {module} has: {', '.join(own)}." if own else ""
        found = getattr(loaded, name)
        if not wanted(found):
            raise ValueError(f"{target} is no {kind}.")
        return found
    except (ImportError, AttributeError, ValueError) as error:
        article = "Name" if function else "Class"
        raise BadInput(
            f"{key}={target} cannot be imported: {error_text(error)}{there} Write package.module.{article} of "
            "something installed."
        ) from error
