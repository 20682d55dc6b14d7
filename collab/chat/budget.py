"""What hosted calls cost, by who speaks, and the cap on it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from collab.config import BudgetConfig
from collab.conversation import Usage
from collab.errors import BadInput, RunStopped
from collab.reports.results import write_json

ROLES = ("policy", "user", "judge", "extractor")
_WRITE_EVERY = 1.0  # seconds between two writes of the ledger


class BudgetExhausted(RunStopped):
    """The next call might cost more than `budget` allows; all calls that were under way have come back."""


@dataclass
class Spend:
    """What one role has used. Only what a server has answered and counted is known, and is counted here."""

    calls: int = 0  # that were answered
    cached: int = 0  # that the cache answered
    retries: int = 0  # attempts that failed and were made again
    failed: int = 0  # calls without a reply, after all retries
    prompt_tokens: int = 0
    completion_tokens: int = 0  # reasoning included
    reasoning_tokens: int = 0
    usd: float = 0.0  # of those with a price

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """Adds up what is spent, and lets a call go only if it fits into the budget together with all under way.

    Args:
        budget: The caps and the prices.
        path: Where it is written, as JSON; what is there already was spent earlier by the same run.
        share: Processes that the budget is dealt out to; this one takes its part.

    Attributes:
        spent: Role -> what it has used.

    Raises:
        BadInput: `path` holds something else.
    """

    def __init__(self, budget: BudgetConfig, path: Path | None = None, share: int = 1) -> None:
        self.budget, self.path = budget, path
        self._caps = tuple(None if cap is None else cap / share for cap in (budget.max_usd, budget.max_tokens))
        self.spent: dict[str, Spend] = {}
        self._under_way = [0.0, 0.0]  # dollars and tokens at most
        self._changed = asyncio.Condition()
        self._written = 0.0
        if path is not None and path.exists():
            try:
                self.spent = {role: Spend(**counts) for role, counts in json.loads(path.read_text()).items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise BadInput(
                    f"{path} does not say what was spent earlier: {error}. Remove it to count anew."
                ) from None

    def of(self, role: str) -> Spend:
        return self.spent.setdefault(role, Spend())

    def usd(self, model: str | None, usage: Usage) -> float:
        """Price of a call; 0 where none is known."""
        prompt, reply = self.budget.prices.get(model or "", (0.0, 0.0))
        return (usage.prompt_tokens * prompt + usage.completion_tokens * reply) / 1e6

    @asynccontextmanager
    async def room_for(self, model: str | None, most: Usage) -> AsyncIterator[None]:
        """Wait until a call that uses so much at most fits in.

        Raises:
            BudgetExhausted: It does not, though no other call is under way.
        """
        wanted = (self.usd(model, most), float(most.prompt_tokens + most.completion_tokens))
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(wanted) or not any(self._under_way))
            if not self._fits(wanted):
                self.write()
                raise BudgetExhausted(self._exhausted())
            self._under_way = [there + more for there, more in zip(self._under_way, wanted, strict=True)]
        try:
            yield
        finally:
            async with self._changed:
                left = [there - less for there, less in zip(self._under_way, wanted, strict=True)]
                self._under_way = [0.0, 0.0] if left[1] < 0.5 else left  # without what floats leave behind
                self._changed.notify_all()

    def add(self, role: str, model: str | None, usage: Usage) -> None:
        """A call was answered."""
        spend = self.of(role)
        spend.calls += 1
        spend.prompt_tokens += usage.prompt_tokens
        spend.completion_tokens += usage.completion_tokens
        spend.reasoning_tokens += usage.reasoning_tokens
        spend.usd += self.usd(model, usage)
        if time.monotonic() - self._written > _WRITE_EVERY:
            self.write()

    @property
    def total_usd(self) -> float:
        return sum(spend.usd for spend in self.spent.values())

    @property
    def total_tokens(self) -> int:
        return sum(spend.tokens for spend in self.spent.values())

    @property
    def in_use(self) -> bool:
        return bool(self.spent)

    def metrics(self, roles: Iterable[str]) -> dict[str, float]:
        """For loggers: `<role>_calls`, `<role>_usd` and so on, and the sums `usd` and `tokens`."""
        found = {
            f"{role}_{count.name}": float(getattr(self.spent.get(role, Spend()), count.name))
            for role in roles
            for count in fields(Spend)
        }
        return {"usd": self.total_usd, "tokens": float(self.total_tokens), **found}

    def shown(self) -> dict[str, str]:
        """For the progress bar."""
        if not self.in_use:
            return {}
        return {"hosted": f"{self.total_tokens} tokens, {self.total_usd:.2f} $"}

    def table(self) -> list[str]:
        """A line for each role."""
        return [
            f"{role}: {spend.calls} calls ({spend.cached} more from the cache, {spend.retries} retries, {spend.failed} "
            f"failed), {spend.prompt_tokens} + {spend.completion_tokens} tokens, {spend.usd:.4f} $"
            for role, spend in sorted(self.spent.items())
        ]

    def write(self) -> None:
        self._written = time.monotonic()
        if self.path is not None and self.spent:
            write_json(self.path, {role: asdict(spend) for role, spend in sorted(self.spent.items())})

    def _fits(self, wanted: tuple[float, float]) -> bool:
        spent = (self.total_usd, float(self.total_tokens))
        sums = (sum(three) for three in zip(spent, self._under_way, wanted, strict=True))
        return all(cap is None or total <= cap for cap, total in zip(self._caps, sums, strict=True))

    def _exhausted(self) -> str:
        caps = {"max_usd": self.budget.max_usd, "max_tokens": self.budget.max_tokens}
        named = " and ".join(f"budget.{name}={cap}" for name, cap in caps.items() if cap is not None)
        return (
            f"The next hosted call could cost more than {named} allows: {self.total_usd:.4f} $ and {self.total_tokens} "
            "tokens are spent. Raise the budget; what was paid for is not asked for again."
        )
