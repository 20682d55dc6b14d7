"""Part of the GPU check on memory at 8B: what an update and a rollout take, and the largest ones that fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.models import random_lm
from benchmarks.gpu.process import Check, Figure, Figures, tried
from benchmarks.gpu.update import free
from collab.app.memory import Setup, Shape

MARGIN = 1.15  # measured memory may be this factor of the arithmetic's


@dataclass(frozen=True)
class Memory:
    """Bytes of a LoRA policy on one GPU, by the arithmetic of docs/scaling.md.

    Attributes:
        between: Base, adapter, its gradients and AdamW's state.
        rollout: While `rows` conversations of `length` tokens are decoded.
        update: On `tokens` packed tokens, with gradient checkpointing.
    """

    between: int
    rollout: int
    update: int

    @classmethod
    def of(cls, config: Any, parameters: int, adapter: int, rows: int, length: int, tokens: int) -> Memory:
        """From the sizes of docs/scaling.md: `config` has h, f, l and k, `parameters` is P and `adapter` is A."""
        width, queries, keys = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        shape = Shape(
            width, config.intermediate_size, config.num_hidden_layers, width, width // queries * keys, vocabulary=0
        )
        setup = Setup(shape, 1, max_batch=rows, longest=length, packed=tokens)
        between = 2 * parameters + 16 * adapter
        return cls(between, between + int(sum(setup.rollout())), between + int(sum(setup.update())))


def memory(check: Check) -> Figures:
    """Memory of an 8B LoRA policy against the arithmetic of docs/scaling.md; the largest batches that fit."""
    policy = _Policy(check)
    yield from tried("update", policy.update)
    yield from tried("rollout", policy.rollout)
    rows, widest = ((1, 2), 256) if check.tiny else ((32, 1024), 131_072)
    named = f"most rows of {policy.length} tokens"
    yield from tried("rows", lambda: policy.largest(named, policy.decode, *rows, "rows"))
    yield from tried("tokens", lambda: policy.largest("longest update", policy.learn, policy.tokens, widest, "tokens"))


class _Policy:
    """A LoRA policy of 8B, what is done with it, and the memory that this takes.

    Attributes:
        rows: Conversations of a rollout whose memory is measured.
        length: Their tokens.
        tokens: Packed tokens of an update whose memory is measured.
    """

    def __init__(self, check: Check) -> None:
        self.device = check.device
        self.rows, self.length, self.tokens = (2, 64, 128) if check.tiny else (32, 4096, 8192)
        self.lm = random_lm(check.size("8b"), check.dtype, check.device, lora=True, checkpointing=True)
        adapter = sum(p.numel() for p in self.lm.parameters() if p.requires_grad)
        base = sum(p.numel() for p in self.lm.parameters()) - adapter
        self.expected = Memory.of(self.lm.config, base, adapter, self.rows, self.length, self.tokens)

    def learn(self, width: int) -> float:
        """Compute the gradient of one update on packed tokens: a history, and eight candidates.

        Returns:
            Its seconds.
        """
        from update_ours import update_of
        from update_sides import measured

        history = min(512, width // 2)
        update, trained = update_of(self.lm, history, 8, (width - history) // 8)
        figures = measured(update, trained, self.device)
        self.lm.eval()
        return figures["seconds"]

    def decode(self, rows: int) -> None:
        self._decode(rows, self.length)

    def update(self) -> Figures:
        import torch

        optimizer = torch.optim.AdamW([p for p in self.lm.parameters() if p.requires_grad], lr=1e-5)
        self.learn(64)
        optimizer.step()
        self._fresh()
        yield self._compared("between rollouts", self._allocated(), self.expected.between)
        seconds = self.learn(self.tokens)
        yield self._compared(f"update on {self.tokens} tokens", self._allocated(peak=True), self.expected.update)
        yield Figure(f"update on {self.tokens} tokens", seconds, "s")
        optimizer.zero_grad()

    def rollout(self) -> Figures:
        self.lm.zero_grad()
        self._fresh()
        before = self._allocated()
        self._decode(self.rows, self.length // 2, self.length)
        taken = self._allocated(peak=True) - before
        wanted = self.expected.rollout - self.expected.between
        yield self._compared(f"rollout of {self.rows} rows of {self.length} tokens", taken, wanted)

    def largest(self, name: str, work: Callable[[int], Any], start: int, end: int, unit: str) -> Figures:
        """The largest count that `work` has memory for, within a factor of 1.5."""
        good, bad = 0, start
        while bad <= end and self._fits(work, bad):
            good, bad = bad, 2 * bad
        told = f"{bad} were not tried" if bad > end else f"{bad} do not fit"
        if good and bad <= end:
            middle = (good + bad) // 2
            good, told = (middle, told) if self._fits(work, middle) else (good, f"{middle} do not fit")
        self._fresh()
        yield Figure(name, good, unit, ok=good > 0, note=told)

    def _fits(self, work: Callable[[int], Any], count: int) -> bool:
        import torch

        self._fresh()
        try:
            work(count)
        except torch.OutOfMemoryError:
            return False
        return True

    def _fresh(self) -> None:
        import torch

        free(self.device)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _allocated(self, peak: bool = False) -> int:
        import torch

        if self.device != "cuda":
            return 0
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()

    def _compared(self, name: str, found: int, wanted: int) -> Figure:
        told = f"arithmetic {wanted / 1e9:.4g} GB; at most {MARGIN - 1:.0%} more"
        return Figure(name, found / 1e9, "GB", found <= MARGIN * wanted if self.device == "cuda" else None, told)

    def _decode(self, rows: int, *lengths: int) -> None:
        """Decode 4 tokens in each of `rows` conversations of these lengths with one prompt, which is read once."""
        from collab.chat.base import Sampling
        from collab.config.schema import ModelConfig
        from collab.conversation import Message
        from collab.generation.engine import LocalEngine
        from collab.lm.loading import load_tokenizer
        from collab.randomness import RngKey

        engine = LocalEngine(self.lm, load_tokenizer(ModelConfig(name="check")), max_batch=rows)

        async def everyone(chat: list[Message]) -> None:
            sampling = Sampling(4, 0.7, ignore_eos=True)
            await asyncio.gather(*(engine.complete(chat, sampling, RngKey(1, sample=n)) for n in range(rows)))

        for length in lengths:
            empty = len(engine.format.encode([Message("user", "")])[0])
            asyncio.run(everyone([Message("user", " a" * (length - 4 - empty))]))
        engine.clear_cache(weights=True)
