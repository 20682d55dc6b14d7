"""When a failed call is repeated: the rules for tenacity.

The wait is what `Retry-After` says, plus a time drawn from 0 to a bound that doubles (exponential backoff with full
jitter). tenacity's own waits do not read `Retry-After`. They draw from Python's global random state, which the run has
seeded, and how often a server fails must not change any other draw.
"""

from __future__ import annotations

import email.utils
import random
import time

from tenacity import RetryCallState

from collab.config.schema import EndpointConfig

FIRST_WAIT = 0.5  # seconds: bound of the first wait
LONGEST_WAIT = 30.0  # seconds: bound of any wait
LONGEST_RETRY_AFTER = 3600.0  # seconds; a server that asks for more is asked again after that
QUIET = 30.0  # seconds of failures after which a person gets a message
_jitter = random.Random()


class Failure(Exception):
    """An attempt that failed for a reason that may pass.

    Args:
        reason: In words.
        retry_after: Seconds to wait, as the server asked.
        everyone: Every call to this server fails at the moment (unreachable, overloaded), not just this one.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, everyone: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.everyone = retry_after, everyone


class Unavailable(Failure):
    """There was no whole answer, or the server has lost the model: the next attempt should be at another server."""


class Attempts:
    """The failed attempts at one call. A failure of every call uses up no retries: only `give_up_after` ends it.

    Args:
        endpoint: For `max_retries` and `give_up_after`.

    Attributes:
        failed: Number of failed attempts.
        since: When the first one failed, by `time.monotonic`.
        last: Why the last one failed.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint = endpoint
        self.failed = self._own = 0
        self.since = 0.0
        self.last = Failure("")

    def count(self, state: RetryCallState) -> None:
        """tenacity's `after`: an attempt has failed."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Failure):
            self.since = self.since or time.monotonic()
            self.last, self.failed, self._own = error, self.failed + 1, self._own + (not error.everyone)

    def wait(self, state: RetryCallState) -> float:
        """tenacity's `wait`: seconds until the next attempt."""
        bound = min(FIRST_WAIT * 2 ** min(self.failed - 1, 32), LONGEST_WAIT)
        return self.last.retry_after + _jitter.uniform(0, bound)

    def enough(self, state: RetryCallState) -> bool:
        """tenacity's `stop`: whether no further attempt is made."""
        return self._own > self.endpoint.max_retries or self.seconds > self.endpoint.give_up_after

    @property
    def seconds(self) -> float:
        """Since the first attempt failed."""
        return time.monotonic() - self.since if self.failed else 0.0


def retry_after(header: str) -> float:
    """Seconds that the header `Retry-After` asks for, as a number or as a date; 0 where it is missing or neither."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)  # 0 for nan
