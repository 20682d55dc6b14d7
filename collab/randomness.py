"""Random draws by key: they depend on what they are for, not on the batch or the order of the draws."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RngKey:
    """Key of the random stream of one request. Equal keys draw equal numbers.

    To share numbers, leave a field out: paired sampling drops `candidate` from the simulated user's key.
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
        """`size` bytes that depend on all fields and on `more`."""
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        text = f"Key({fields}){more}"  # another text changes every draw
        return hashlib.blake2b(text.encode(), digest_size=size).digest()

    def stream(self) -> np.random.Generator:
        """A counter-based generator (Philox) keyed by all fields."""
        import numpy as np  # only here, since a command that is refused draws nothing

        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.digest(16), "little")))
