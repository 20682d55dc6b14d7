"""The hosted models of a run: one model for each endpoint, one cache and one ledger for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from collab.chat.budget import Ledger
from collab.chat.cache import ReplyCache
from collab.chat.http import HttpChatModel
from collab.chat.probe import served_model
from collab.config.schema import Config, EndpointConfig


class Endpoints:
    """A context manager around everything that speaks to a server.

    Args:
        config: The checked config: cache, budget and output folder.
        tell: Gets lines that a person should see while the run goes on.
        rank: Global rank of this process.
        processes: Processes of the run, which divide limits and budget equally.

    Attributes:
        ledger: What was spent.
        tell: As given.

    Raises:
        BadInput: The cache or the ledger cannot be used.
    """

    def __init__(
        self, config: Config, tell: Callable[[str], None] = lambda text: None, rank: int = 0, processes: int = 1
    ) -> None:
        self.tell, self._config, self._processes = tell, config, processes
        folder = Path(config.output_dir)
        spend = folder / (f"spend-rank{rank}.json" if rank else "spend.json")
        others = [path for path in folder.glob("spend*.json") if path != spend]
        self.ledger = Ledger(config.budget, spend, processes, others)
        self._cache: ReplyCache | None = None
        self._models: dict[str, HttpChatModel] = {}

    def __enter__(self) -> Endpoints:
        return self

    def __exit__(self, *details: object) -> None:
        async def close() -> None:
            for model in self._models.values():
                await model.close()

        asyncio.run(close())
        if self._cache is not None:
            self._cache.close()
        self.ledger.write()

    def model(self, endpoint: EndpointConfig) -> HttpChatModel:
        """The model behind an endpoint. Equal endpoints share one model, with its connections and limits.

        Raises:
            BadInput: The endpoint has no key, or it has several models and none is named.
        """
        name = repr(asdict(endpoint))
        if name not in self._models:
            if self._cache is None and self._config.cache != "off":
                self._cache = ReplyCache(Path(self._config.cache_file), self._config.cache == "readwrite", self.tell)
            share: dict[str, Any] = {
                limit: max(1, value // self._processes)
                for limit in ("max_concurrency", "requests_per_minute", "tokens_per_minute")
                if (value := getattr(endpoint, limit)) is not None
            }
            share["model"] = endpoint.model or served_model(endpoint)
            self._models[name] = HttpChatModel(replace(endpoint, **share), self.tell, self._cache, self.ledger)
        return self._models[name]

    def shown_by(self, advance: Callable[..., None]) -> Callable[[], None]:
        """The progress bar's `advance`, which then also shows what has been spent."""
        return lambda: advance(**self.ledger.shown())
