"""How fast and whether at all an endpoint is called: a limit per minute, and a breaker for when it is down."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from collab.chat.base import ChatFailed
from collab.util.errors import RunStopped

T = TypeVar("T")


class Failure(Exception):
    """An attempt that failed for a reason that may pass.

    Args:
        reason: In words.
        retry_after: Seconds that the server asked to be left alone.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass
class Taken:
    """A share of a window, from the time it was taken; its amount may be corrected afterwards."""

    at: float
    amount: float


class PerMinute:
    """At most `limit` units in any window of so many seconds, first come, first served.

    A leaky bucket would allow twice as much in the first minute, and servers count.

    Args:
        limit: Units; None for no limit. Who asks for more than all of it gets all of it.
        seconds: Length of the window.
    """

    def __init__(self, limit: float | None, seconds: float = 60.0) -> None:
        self.limit, self.seconds = limit, seconds
        self._taken: deque[Taken] = deque()
        self._line = asyncio.Lock()

    async def take(self, amount: float) -> Taken:
        """Wait until `amount` fits."""
        if self.limit is None:
            return Taken(0.0, amount)
        amount = min(amount, self.limit)
        async with self._line:
            while True:
                now = time.monotonic()
                while self._taken and self._taken[0].at <= now - self.seconds:
                    self._taken.popleft()
                if sum(taken.amount for taken in self._taken) + amount <= self.limit or not self._taken:
                    break
                await asyncio.sleep(self._taken[0].at + self.seconds - now)
            self._taken.append(Taken(now, amount))
            return self._taken[-1]


class Breaker:
    """Holds all calls to a server where most fail: one at a time tries, after growing pauses, until one succeeds.

    Args:
        name: Of the endpoint, for what is told.
        give_up_after: Seconds of pauses and failed tries after which the run is stopped.
        tell: Gets a line when calls are held, and when they go on.
        first_pause: Seconds; doubled after each failed try, up to `longest_pause`.
    """

    window = 20  # latest attempts that are looked at
    most = 16  # failed ones among them that hold everything: with a third failing this is once in 100 000 windows

    def __init__(
        self,
        name: str,
        give_up_after: float,
        tell: Callable[[str], None],
        first_pause: float = 1.0,
        longest_pause: float = 30.0,
    ) -> None:
        self.name, self.give_up_after, self._tell = name, give_up_after, tell
        self._first_pause, self._pause, self._longest_pause = first_pause, first_pause, longest_pause
        self._latest: deque[bool] = deque(maxlen=self.window)
        self._line = asyncio.Lock()
        self._since: float | None = None  # when it began to hold calls

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The outcome of `attempt`, made when calls are let through.

        Raises:
            Failure: As `attempt` does.
            RunStopped: The server has been down for too long.
        """
        while self._since is not None:
            async with self._line:  # whoever is first in line tries; the others find out how it went
                if self._since is None:
                    break
                if (held := time.monotonic() - self._since) > self.give_up_after:
                    raise RunStopped(
                        f"{self.name} has done nothing but fail for {held:.0f} s (give_up_after is "
                        f"{self.give_up_after:g})."
                    )
                await asyncio.sleep(self._pause)
                try:
                    return await self._watched(attempt)
                except Failure as failure:
                    self._pause = min(max(2 * self._pause, failure.retry_after), self._longest_pause)
        return await self._watched(attempt)

    async def _watched(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            found = await attempt()
        except Failure as failure:
            self._latest.append(False)
            if self._since is None and self._latest.count(False) >= self.most:
                self._since = time.monotonic()
                self._tell(
                    f"{self.name}: {self._latest.count(False)} of the last {len(self._latest)} attempts failed "
                    f"({failure}). All calls wait until one of them succeeds."
                )
            raise
        except ChatFailed:  # this request is refused, by a server that is there
            self._answered()
            raise
        self._answered()
        return found

    def _answered(self) -> None:
        self._latest.append(True)
        if self._since is not None:
            self._tell(f"{self.name}: answers again after {time.monotonic() - self._since:.0f} s.")
            self._since, self._pause = None, self._first_pause
            self._latest.clear()
