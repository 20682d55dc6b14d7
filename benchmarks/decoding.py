"""Rows on decoding: new tokens a second of one batch of requests, prompts included."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import TEMPERATURE, Figures, Setting, compare, exactly, seconds
from collab.conversation import Message
from collab.generation.engine import LocalEngine
from collab.randomness import RngKey

SYSTEM = "You are an editor. Ask the user short clarifying questions. Use the user's facts to write the text."


def chats(count: int) -> list[list[Message]]:
    """Chats of the same number of tokens."""
    text = "Hello, I need a notice about shed number {:02d} of the garden club. Can you help me with that?"
    return [[Message("system", SYSTEM), Message("user", text.format(n))] for n in range(count)]


def _prompts(setting: Setting) -> list[list[int]]:
    """`chats` as token ids."""
    engine = setting.engine()
    ids = [engine.format.encode(chat)[0] for chat in chats(setting.requests)]
    assert len({len(row) for row in ids}) == 1, "no side gets padding"
    return ids


def _rate(setting: Setting, work: Callable[[], Any]) -> Callable[[], float]:
    return lambda: setting.requests * setting.tokens / seconds(work)


def engine_rate(setting: Setting, engine: LocalEngine | None = None) -> Callable[[], float]:
    """Measures the tokens/s of an engine, by default of `setting.engine()`."""
    asked, sampling, engine = chats(setting.requests), exactly(setting.tokens), engine or setting.engine()

    def work() -> None:
        engine.clear_cache()

        async def everyone() -> None:
            keys = (RngKey(1, goal=str(n)) for n in range(len(asked)))
            replies = await asyncio.gather(*(engine.complete(c, sampling, k) for c, k in zip(asked, keys, strict=True)))
            assert all(len(reply.token_ids) == setting.tokens for reply in replies)

        asyncio.run(everyone())

    return _rate(setting, work)


def decode_vs_generate(setting: Setting) -> Figures:
    batch = torch.tensor(_prompts(setting), device=setting.device)

    def generate() -> None:
        with torch.no_grad():
            out = setting.stock_lm.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                top_p=1.0,
                min_new_tokens=setting.tokens,
                max_new_tokens=setting.tokens,
                pad_token_id=0,
            )
        assert out.shape[1] == batch.shape[1] + setting.tokens

    return compare(setting, engine_rate(setting), _rate(setting, generate))


def decode_vs_vllm(setting: Setting) -> Figures:
    peer = setting.peer(
        "vllm", "vllm_engine", model=setting.model, dtype=setting.named_dtype, threads=torch.get_num_threads()
    )
    prompts = _prompts(setting)

    def vllm() -> float:
        took = peer.ask("decode", prompts=prompts, tokens=setting.tokens, temperature=TEMPERATURE)["seconds"]
        return setting.requests * setting.tokens / took

    return compare(setting, engine_rate(setting), vllm)


def decode_vs_floor(setting: Setting) -> Figures:
    linears = [module for module in setting.stock_lm.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {
        width: torch.randn(setting.requests, width, dtype=setting.dtype, device=setting.device)
        for width in {linear.in_features for linear in linears}
    }

    def products() -> None:
        with torch.no_grad():
            for _ in range(setting.tokens):
                for linear in linears:
                    linear(inputs[linear.in_features])

    return compare(setting, engine_rate(setting), _rate(setting, products))


def decode_vs_continuous_batching(setting: Setting) -> Figures:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    prompts = _prompts(setting)
    drawing = GenerationConfig(
        max_new_tokens=setting.tokens,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        eos_token_id=-1,
        pad_token_id=0,
    )

    memory = ContinuousBatchingConfig(max_memory_percent=0.5)  # of what is free: the engine needs some beside it

    def continuous() -> None:
        # The manager is kept, so that its warm-up and its allocations fall into the run that does not count.
        out = setting.stock_lm.generate_batch(
            prompts, generation_config=drawing, continuous_batching_config=memory, persistent_manager=True
        )
        assert [len(found.generated_tokens) for found in out.values()] == [setting.tokens] * setting.requests

    try:
        return compare(setting, engine_rate(setting), _rate(setting, continuous))
    finally:
        setting.stock_lm.destroy_cached_continuous_batching_manager()
