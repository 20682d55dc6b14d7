"""Parts of the GPU check on decoding: tokens a second of the engine, and a rollout step by stages."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib.util
import math
import statistics
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from benchmarks.gpu.machine import copy_bandwidth
from benchmarks.gpu.models import SIZES, random_lm
from benchmarks.gpu.process import Check, Figure, Figures, tried


def engine(check: Check, size: str) -> Figures:
    """Tokens a second of the engine by streams, with and without graphs, beside peers and the bandwidth's limit."""
    from benchmarks.decoding import decode_vs_continuous_batching, decode_vs_generate
    from collab.lm.attention import FLASH_WHERE_UNMASKED

    rates = _Rates(check, check.size(size))
    streams = (1, 3) if check.tiny else (1, 32, 128, 512)
    for count in streams:
        yield from tried(f"{count} streams", partial(rates.alone, count))
    rates.setting.requests = streams[1]
    yield from tried("no CUDA graphs", rates.without_graphs)
    yield from tried("generate", lambda: rates.against("generate", decode_vs_generate))
    if check.device == "cuda":
        peer = "continuous batching"
        yield from tried(peer, lambda: rates.against(peer, decode_vs_continuous_batching))
    yield from tried("eager", lambda: rates.attention("eager"))
    if check.device == "cuda" and importlib.util.find_spec("flash_attn"):
        yield from tried("flash_attention_2", lambda: rates.attention(FLASH_WHERE_UNMASKED))


class _Rates:
    """Tokens a second of a model of random weights, `setting.requests` streams at a time."""

    def __init__(self, check: Check, key: str) -> None:
        import torch

        from benchmarks.measure import Setting
        from collab.config.schema import ModelConfig
        from collab.lm.loading import load_tokenizer

        runs, tokens = (1, 3) if check.tiny else (2, 128)
        device = torch.device(check.device)
        self.lm = random_lm(key, check.dtype, device)
        self.setting = Setting("", device, check.dtype, runs=runs, tokens=tokens)
        self.setting.lm, self.setting.stock_lm = self.lm, copy.deepcopy(self.lm)
        self.setting.tokenizer = load_tokenizer(ModelConfig(name="check"))
        read = sum(parameter.nbytes for parameter in self.lm.parameters())
        if not SIZES[key]["tied"]:
            read -= self.lm.get_input_embeddings().weight.nbytes  # a few of its rows are read
        self.limit = copy_bandwidth(check.device) / read  # tokens/s of one stream

    def rate(self, engine: Any = None) -> float:
        from benchmarks.decoding import engine_rate
        from benchmarks.measure import in_turn

        return statistics.median(in_turn(self.setting.runs, engine_rate(self.setting, engine))[0])

    def alone(self, count: int) -> Figures:
        self.setting.requests = count
        found, limit = self.rate(), count * self.limit
        told = f"{found / limit:.1%} of the limit of {limit:.4g}, all weights read once a token"
        yield Figure(f"{count} streams", found, "tokens/s", note=told)

    def without_graphs(self) -> Figures:
        engine = self.setting.engine()
        engine.graphs.works = False
        yield Figure(f"{self.setting.requests} streams, no CUDA graphs", self.rate(engine), "tokens/s")

    def attention(self, name: str) -> Figures:
        self.lm.set_attn_implementation(name)
        try:
            yield Figure(f"{self.setting.requests} streams, {name}", self.rate(), "tokens/s")
        finally:
            self.lm.set_attn_implementation("sdpa")

    def against(self, peer: str, compare: Any) -> Figures:
        figures = compare(self.setting)
        told = f"ours {figures.ours:.4g}, peer {figures.peer:.4g} tokens/s"
        yield Figure(f"{self.setting.requests} streams, ours / {peer}", figures.ratio, note=told)


class Busy(threading.Thread):
    """The share of the time in this context in which the GPU is busy, according to NVML."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._values: list[int] = []
        self._over = threading.Event()

    def run(self) -> None:
        import torch

        with contextlib.suppress(Exception):  # no NVML: then there is no value
            while not self._over.wait(0.1):
                self._values.append(torch.cuda.utilization())

    def __enter__(self) -> Busy:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()

    @property
    def share(self) -> float | None:
        return statistics.fmean(self._values) / 100 if self._values else None


def rollout(check: Check) -> Figures:
    """One rollout of doc_edit with an 8B policy and the agenda user, by stages."""
    import torch

    from collab.app import build
    from collab.app.compose import load_config
    from collab.chat.endpoints import Endpoints
    from collab.config.schema import ModelConfig
    from collab.datamodules.goals import load_splits
    from collab.generation.engine import LocalEngine
    from collab.lm.loading import load_tokenizer
    from collab.randomness import RngKey
    from collab.simulation.conversation_loop import draw_context, sample_candidates
    from collab.simulation.schedule import context_turn

    small = ["task.max_turns=2", "task.max_new_tokens=6", "sampler.group_size=2"] if check.tiny else []
    config = load_config("train", ["experiment=doc_edit", *small], str(check.folder / "rollout"))
    goals = load_splits(config.task).train[: 2 if check.tiny else 32]
    lm = random_lm(check.size("8b"), check.dtype, torch.device(check.device), lora=True)
    engine = LocalEngine(lm, load_tokenizer(ModelConfig(name="check")), max_batch=256)
    simulation = build.simulation(config, Endpoints(config), lambda: None)
    players, key = simulation.players(engine), RngKey(config.seed, split="train")

    turns = [context_turn(config.seed, n, simulation.turns) for n in range(len(goals))]
    contexts, figure = _stage(
        f"contexts of {len(goals)} goals",
        engine,
        lambda: [
            draw_context(players, goal, config.task.system_prompt, turn, key.at(goal=goal.id, split=f"context/{n}"))
            for n, (goal, turn) in enumerate(zip(goals, turns, strict=True))
        ],
    )
    yield figure
    drawn = [(context, key.at(goal=context.goal.id)) for context in contexts if context.pending is not None]
    replies, figure = _stage(
        "candidates",
        engine,
        lambda: [sample_candidates(players, c, simulation.candidates_at(c.turn), k) for c, k in drawn],
    )
    yield figure
    groups, figure = _stage(
        "futures and rewards",
        engine,
        lambda: [simulation.scored(players, c, r, k) for (c, k), r in zip(drawn, replies, strict=True)],
    )
    yield figure
    scored = [candidate for group in groups for candidate in group]
    finite = all(candidate.mr is not None and math.isfinite(candidate.mr) for candidate in scored)
    yield Figure("candidates with a finite MR", len(scored), ok=bool(scored) and finite)


def _stage(name: str, engine: Any, work: Callable[[], Sequence[Coroutine]]) -> tuple[list[Any], Figure]:
    """The results of coroutines that run beside each other, and their time."""

    async def everyone() -> list[Any]:
        return list(await asyncio.gather(*work()))

    before, started = engine.new_tokens, time.monotonic()
    with Busy() as busy:
        results = asyncio.run(everyone())
    seconds, tokens = time.monotonic() - started, engine.new_tokens - before
    share = "" if busy.share is None else f"GPU busy {busy.share:.0%} of the time; "
    return results, Figure(name, seconds, "s", note=f"{share}{tokens} tokens, {tokens / seconds:.4g} tokens/s")
