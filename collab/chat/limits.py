"""The limit of tokens per minute."""

from __future__ import annotations

import asyncio

from aiolimiter import AsyncLimiter

_PARTS = 60  # of the window, in each of which an equal part of the limit is let through


class TokenLimit:
    """At most `limit` tokens in any window of `seconds`, first come, first served.

    `AsyncLimiter` cannot do this alone: it lets a burst through on top of the rate (twice the limit in the first
    minute), refuses amounts above its burst, and serves small amounts first, so that large ones may wait for ever. So
    one call at a time takes its tokens in small parts.

    Args:
        limit: Tokens. A call with more than that takes several windows.
        seconds: Length of the window.
    """

    def __init__(self, limit: int, seconds: float = 60.0) -> None:
        # A burst and the rate times the window make the limit together: _PARTS + 1 parts.
        self._part = limit / (_PARTS + 1)
        self._limiter = AsyncLimiter(self._part, seconds / _PARTS)
        self._turn = asyncio.Lock()

    async def take(self, tokens: int) -> None:
        """Wait until this many tokens may be used."""
        async with self._turn:
            left = float(tokens)
            while left > 0:
                await self._limiter.acquire(min(left, self._part))
                left -= self._part
