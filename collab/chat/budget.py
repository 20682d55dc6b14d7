"""What hosted calls cost, by role, and the budget that they must fit into."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from collab.config.schema import BudgetConfig
from collab.conversation import Usage
from collab.util.errors import BadInput, RunStopped
from collab.util.files import write_json

ROLES = ("policy", "user", "judge", "extractor")
_WRITE_EVERY = 1.0  # seconds between two writes of the ledger


class BudgetExhausted(RunStopped):
    """The next call might cost more than `budget` allows. No other call is under way."""


@dataclass
class Spend:
    """What one role has used. Failed attempts are not counted: a server may bill them, but does not say so."""

    calls: int = 0  # answered by a server
    cached: int = 0  # answered by the cache
    retries: int = 0  # attempts that failed and were repeated
    failed: int = 0  # calls without a reply, after all retries
    filtered: int = 0  # failed calls whose reply was removed by a content filter; they are paid for
    prompt_tokens: int = 0
    completion_tokens: int = 0  # reasoning included
    reasoning_tokens: int = 0
    usd: float = 0.0  # models without a price count as 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """Adds up what is spent. A call starts only if it fits into the budget together with all calls under way.

    Args:
        budget: Caps and prices.
        path: JSON file of the ledger. If it exists, its content was spent earlier by the same run.
        share: Number of processes that divide what is left of the budget equally.
        others: Ledgers of the run's other processes. Their content was spent earlier too.

    Attributes:
        spent: Role -> what it has used.

    Raises:
        BadInput: `path` is no ledger.
    """

    def __init__(
        self, budget: BudgetConfig, path: Path | None = None, share: int = 1, others: Sequence[Path] = ()
    ) -> None:
        self.budget, self.path = budget, path
        self.spent = _read(path) if path is not None and path.exists() else {}
        earlier = [*self.spent.values(), *(spend for file in others for spend in _read(file).values())]

        def cap(most: float | None, own: float, whole: float) -> float:
            return math.inf if most is None else own + (most - whole) / share

        # What this process may have spent by the end of the run.
        self._max_usd = cap(budget.max_usd, self.total_usd, sum(spend.usd for spend in earlier))
        self._max_tokens = cap(budget.max_tokens, self.total_tokens, sum(spend.tokens for spend in earlier))
        self._reserved: list[tuple[float, int]] = []  # dollars and tokens of each call under way, at most
        self._changed = asyncio.Condition()
        self._written = 0.0

    @property
    def capped(self) -> bool:
        """Whether there is a budget."""
        return self.budget.max_usd is not None or self.budget.max_tokens is not None

    def of(self, role: str) -> Spend:
        return self.spent.setdefault(role, Spend())

    @asynccontextmanager
    async def room_for(self, model: str | None, most: Usage) -> AsyncIterator[None]:
        """Wait until a call that uses at most `most` fits into the budget, and reserve that much for it.

        Raises:
            BudgetExhausted: It does not fit, and no other call is under way.
        """
        tokens = most.prompt_tokens + most.completion_tokens
        call = (price(self.budget, model, most.prompt_tokens, most.completion_tokens), tokens)
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(call) or not self._reserved)
            if not self._fits(call):
                self.write()
                raise BudgetExhausted(self._exhausted())
            self._reserved.append(call)
        try:
            yield
        finally:
            async with self._changed:
                self._reserved.remove(call)
                self._changed.notify_all()

    def add(self, role: str, model: str | None, usage: Usage) -> None:
        """Count a call that was answered."""
        spend = self.of(role)
        spend.calls += 1
        spend.prompt_tokens += usage.prompt_tokens
        spend.completion_tokens += usage.completion_tokens
        spend.reasoning_tokens += usage.reasoning_tokens
        spend.usd += price(self.budget, model, usage.prompt_tokens, usage.completion_tokens)
        if time.monotonic() - self._written > _WRITE_EVERY:
            self.write()

    @property
    def total_usd(self) -> float:
        return sum(spend.usd for spend in self.spent.copy().values())  # the HTTP thread adds roles

    @property
    def total_tokens(self) -> int:
        return sum(spend.tokens for spend in self.spent.copy().values())

    @property
    def share_spent(self) -> float:
        """Which share of its budget this process has spent, the larger one of dollars and tokens; 0 without a cap."""
        pairs = ((self.total_usd, self._max_usd), (self.total_tokens, self._max_tokens))
        return max(spent / cap if cap else 1.0 for spent, cap in pairs)

    def metrics(self, roles: Iterable[str]) -> dict[str, float]:
        """For loggers: `<role>_calls`, `<role>_usd` and so on, and the sums `usd` and `tokens`."""
        by_role = {
            f"{role}_{count.name}": float(getattr(self.spent.get(role, Spend()), count.name))
            for role in roles
            for count in fields(Spend)
        }
        return {"usd": self.total_usd, "tokens": float(self.total_tokens), **by_role}

    def shown(self) -> dict[str, str]:
        """For the progress bar."""
        return {"hosted": f"{self.total_tokens} tokens, {self.total_usd:.2f} $"} if self.spent else {}

    def table(self) -> list[str]:
        """A line for each role."""
        lines = []
        for role, spend in sorted(self.spent.copy().items()):
            filtered = f", {spend.filtered} of them by a content filter" if spend.filtered else ""
            lines.append(
                f"{role}: {spend.calls} calls ({spend.cached} more from the cache, {spend.retries} retries, "
                f"{spend.failed} failed{filtered}), {spend.prompt_tokens} + {spend.completion_tokens} tokens, "
                f"{spend.usd:.4f} $"
            )
        return lines

    def write(self) -> None:
        self._written = time.monotonic()
        if self.path is not None and self.spent:
            write_json(self.path, {role: asdict(spend) for role, spend in sorted(self.spent.copy().items())})

    def _fits(self, call: tuple[float, int]) -> bool:
        usd, tokens = (sum(values) for values in zip(call, *self._reserved, strict=True))
        return self.total_usd + usd <= self._max_usd and self.total_tokens + tokens <= self._max_tokens

    def _exhausted(self) -> str:
        caps = {"max_usd": self.budget.max_usd, "max_tokens": self.budget.max_tokens}
        named = " and ".join(f"budget.{name}={cap}" for name, cap in caps.items() if cap is not None)
        return (
            f"The next hosted call could cost more than {named} allows: {self.total_usd:.4f} $ and {self.total_tokens} "
            "tokens are spent. Raise the budget and resume: answered calls are not repeated."
        )


def price(budget: BudgetConfig, model: str | None, prompt_tokens: float, reply_tokens: float) -> float:
    """US dollars for these tokens; 0 where the model has no price."""
    prompt, reply = budget.prices.get(model or "", (0.0, 0.0))
    return (prompt_tokens * prompt + reply_tokens * reply) / 1e6


def _read(path: Path) -> dict[str, Spend]:
    try:
        return {role: Spend(**counts) for role, counts in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} does not say what was spent earlier: {error}. Remove it to start from 0.") from None
