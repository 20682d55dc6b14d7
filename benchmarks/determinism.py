"""How often the same request gets the same reply in other company, and what it costs to make that always.

    python benchmarks/determinism.py

The same chats are answered twice, all at once and a few at a time, by the fast engine and by the deterministic one.
Agreement is the share of replies whose tokens are all equal; cost is the time for all at once, deterministic over fast.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.decoding import SYSTEM, chats
from collab.chat.base import Sampling
from collab.config.schema import ModelConfig
from collab.conversation import Message, Reply
from collab.generation.engine import LocalEngine
from collab.lm.device import resolve_device, resolve_dtype
from collab.lm.loading import load_model, load_tokenizer
from collab.randomness import RngKey
from collab.util.quiet import quiet


async def answer(engine: LocalEngine, chats: list[list[Message]], sampling: Sampling, together: int) -> list[Reply]:
    """Replies to all chats, so many at a time."""
    limit = asyncio.Semaphore(together)

    async def one(number: int) -> Reply:
        async with limit:
            return await engine.complete(chats[number], sampling, RngKey(1, goal=str(number)))

    return list(await asyncio.gather(*map(one, range(len(chats)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32, help="chats, and max_batch of the deterministic engine")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of each reply")
    parser.add_argument("--few", type=int, default=5, help="chats at a time the second time")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each engine; medians are shown")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    args = parser.parse_args()
    quiet()
    device = resolve_device("auto")
    dtype = resolve_dtype(args.precision, device)
    model = ModelConfig(name="smollm2")
    lm, tokenizer = load_model(model, dtype, device, adapter=False), load_tokenizer(model)
    asked, sampling = chats(args.requests), Sampling(args.tokens, 0.7, ignore_eos=True)
    print(f"{args.requests} chats of {args.tokens} tokens, {dtype}, {torch.get_num_threads()} threads: {SYSTEM!r}")
    medians: dict[bool, float] = {}
    for deterministic in (False, True):
        times: list[float] = []
        for _ in range(args.runs):
            engine = LocalEngine(lm, tokenizer, max_batch=args.requests, deterministic=deterministic)
            started = time.perf_counter()
            all_at_once = asyncio.run(answer(engine, asked, sampling, args.requests))
            times.append(time.perf_counter() - started)
        engine = LocalEngine(lm, tokenizer, max_batch=args.requests, deterministic=deterministic)
        few = asyncio.run(answer(engine, asked, sampling, args.few))
        medians[deterministic] = statistics.median(times)
        print(
            f"{'deterministic' if deterministic else 'fast'}: {medians[deterministic]:.1f} s, "
            f"{agreement(all_at_once, few)}"
        )
    print(f"cost of the deterministic mode: {medians[True] / medians[False]:.1f} times the fast one's time")


def agreement(first: list[Reply], second: list[Reply]) -> str:
    pairs: Any = list(zip(first, second, strict=True))
    equal = sum(a.token_ids == b.token_ids for a, b in pairs)
    bits = sum(a == b for a, b in pairs)
    flips = sum(a.token_ids != b.token_ids for a, b in pairs)
    shared = sum(
        next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=True)) if x != y), len(a.token_ids))
        for a, b in pairs
    )
    rate = flips / (shared + flips)
    return (
        f"{equal} of {len(pairs)} replies with equal tokens, {bits} with equal log-probs too; "
        f"a draw differs first at {rate:.2%} of the tokens"
    )


if __name__ == "__main__":
    main()
