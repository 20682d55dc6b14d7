"""The transformers model inside a peft wrapper."""

from __future__ import annotations

from typing import Any


def inner_of(lm: Any) -> Any:
    """The transformers model of `lm`: what peft has wrapped, or `lm` itself where it has no adapter."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm
