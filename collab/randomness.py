"""Randomness that depends on what is drawn for, and never on the batch or the order in which it is drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RngKey:
    """Names the random stream of one request.

    Two requests with equal keys draw the same numbers. Leave a field out to share numbers: paired sampling drops
    `candidate` from the simulated user's key.
    """

    seed: int
    role: str = ""
    split: str = ""
    round: int = 0
    goal: str = ""
    turn: int = 0
    candidate: int | None = None
    sample: int = 0

    def at(self, **changes: Any) -> RngKey:
        return replace(self, **changes)

    def digest(self, size: int, more: str = "") -> bytes:
        """`size` bytes that are a function of all fields, and of `more`."""
        named = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return hashlib.blake2b(
            f"Key({named}){more}".encode(), digest_size=size
        ).digest()  # this text decides every draw

    def stream(self) -> np.random.Generator:
        """A counter-based generator (Philox) keyed by all fields."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.digest(16), "little")))
