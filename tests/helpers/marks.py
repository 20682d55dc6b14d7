"""Marks of single cases of a parametrised test."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A case that `make test` leaves out, since another one walks the same code; `make test-all` runs it."""
    return pytest.param(*values, marks=pytest.mark.slow)
