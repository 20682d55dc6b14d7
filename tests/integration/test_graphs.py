"""Decoding steps by their shape: what a graph is recorded for, when it may be replayed, and what a GPU says."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from collab.chat.base import Sampling
from collab.conversation import Message, Reply
from collab.generation import graphs
from collab.generation.engine import LocalEngine
from collab.generation.graphs import StepGraphs
from collab.randomness import RngKey


def make_lm(path: Path, adapter: bool = False, device: str = "cpu") -> Any:
    """The tiny model with large weights, the same in every run: what it says depends on all that was said."""
    lm: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in lm.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3 if name.endswith("proj.weight") else 0.6)
    lm.generation_config.eos_token_id = [lm.config.eos_token_id, *range(20, lm.config.vocab_size, 12)]
    if adapter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            lm = peft.get_peft_model(lm, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
        teach(lm, seed=1)
    return lm.to(device).eval()


def teach(lm: Any, seed: int) -> None:
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.copy_(0.3 * draw)


async def talks(engine: LocalEngine, count: int = 11, adapter: Sequence[bool] = (True,)) -> list[tuple[Reply, ...]]:
    """Greedy chats of one to three turns and of many lengths."""

    async def talk(number: int) -> tuple[Reply, ...]:
        messages, replies = [], []
        sampling = Sampling(3 + 5 * number % 23, 0, adapter=adapter[number % len(adapter)])
        for turn in range(1 + number % 3):
            messages.append(Message("user", f"Say something {'very ' * number}long, number {turn}."))
            replies.append(await engine.complete(messages, sampling, RngKey(1, goal=str(number), turn=turn)))
            messages.append(Message("assistant", replies[-1].text, replies[-1].token_ids))
        return tuple(replies)

    return list(await asyncio.gather(*map(talk, range(count))))


def words(replies: Sequence[tuple[Reply, ...]]) -> list[tuple[int, ...]]:
    return [reply.token_ids for chat in replies for reply in chat]


class Recorder:
    """Stands in for `record` on a CPU: does the step again, and fails where a graph would use what has moved."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self.recorded: list[tuple[int, int]] = []
        self.replayed: Counter[tuple[int, int]] = Counter()

    def held(self) -> tuple[int, ...]:
        assert self.engine.rows.data is not None
        return tuple(map(id, self.engine.rows.data))

    def __call__(self, step: graphs.Step, ids: torch.Tensor, starts: torch.Tensor) -> Callable[[], torch.Tensor]:
        step(ids, starts)
        logits = step(ids, starts)
        held, shape = self.held(), (len(ids), self.engine.rows.reach)
        self.recorded.append(shape)

        def replay() -> torch.Tensor:
            assert self.held() == held
            self.replayed[shape] += 1
            return logits.copy_(step(ids, starts))

        return replay


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalEngine], Recorder]:
    monkeypatch.setattr("collab.lm.fused_linear.PACK_LIMIT", 0)  # as on a GPU

    def start(engine: LocalEngine) -> Recorder:
        recorder = Recorder(engine)
        monkeypatch.setattr(graphs, "record", recorder)
        monkeypatch.setattr(StepGraphs, "usable", lambda graphs, device: graphs.works)
        return recorder

    return start


@pytest.mark.parametrize("deterministic", [False, True])
def test_replies_are_those_without_graphs(tiny_model: Path, recording: Any, deterministic: bool) -> None:
    lm, tokenizer = make_lm(tiny_model, adapter=True), AutoTokenizer.from_pretrained(tiny_model)
    plain = words(asyncio.run(talks(LocalEngine(lm, tokenizer, 6, deterministic=deterministic), adapter=(True, False))))
    engine = LocalEngine(lm, tokenizer, 6, deterministic=deterministic)
    recorder = recording(engine)
    assert words(asyncio.run(talks(engine, adapter=(True, False)))) == plain
    rows, reaches = zip(*recorder.recorded, strict=True)
    assert set(rows) == ({6} if deterministic else {1, 2, 4, 6})  # powers of two, and the whole batch
    assert {reach % 64 for reach in reaches} == {0} and len(set(reaches)) > 1
    assert sum(recorder.replayed.values()) > 2 * len(recorder.recorded)


def test_graphs_are_recorded_anew_when_weights_or_memory_have_moved(tiny_model: Path, recording: Any) -> None:
    lm, tokenizer = make_lm(tiny_model, adapter=True), AutoTokenizer.from_pretrained(tiny_model)
    engine = LocalEngine(lm, tokenizer, 6)
    recorder = recording(engine)
    first = words(asyncio.run(talks(engine, count=3)))
    assert Counter(recorder.recorded)[2, 64] == 1
    asyncio.run(talks(engine, count=11))  # more and longer rows
    assert words(asyncio.run(talks(engine, count=3))) == first
    assert Counter(recorder.recorded)[2, 64] > 1  # once more, in the new memory
    before = len(recorder.recorded)
    assert words(asyncio.run(talks(engine, count=3))) == first and len(recorder.recorded) == before
    teach(lm, seed=2)
    engine.clear_cache()
    assert not engine.graphs.recorded
    taught = words(asyncio.run(talks(engine, count=3)))
    assert len(recorder.recorded) > before
    fresh = LocalEngine(lm, tokenizer, 6)
    recording(fresh)
    assert taught == words(asyncio.run(talks(fresh, count=3))) != first


def test_a_step_that_cannot_be_recorded_is_computed_as_before(
    tiny_model: Path, recording: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm, tokenizer = make_lm(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    plain = words(asyncio.run(talks(LocalEngine(lm, tokenizer, 6), count=5)))
    engine, tried = LocalEngine(lm, tokenizer, 6), []
    recording(engine)

    def refuse(*given: object) -> None:
        tried.append(given)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record", refuse)
    with caplog.at_level(logging.WARNING):
        assert words(asyncio.run(talks(engine, count=5))) == plain
    assert len(tried) == 1 and caplog.text.count("without CUDA graphs") == 1


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_replays_graphs_and_says_what_generate_says(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    lm, tokenizer = make_lm(tiny_model, adapter=True, device="cuda"), AutoTokenizer.from_pretrained(tiny_model)
    engine, recorded, record = LocalEngine(lm, tokenizer, 6, deterministic=deterministic), [], graphs.record
    monkeypatch.setattr(graphs, "record", lambda *given: (recorded.append(given), record(*given))[1])
    chats = asyncio.run(talks(engine))
    assert recorded and engine.graphs.usable(torch.device("cuda"))
    for number, chat in enumerate(chats):
        for reply in chat:
            prompt = torch.tensor([reply.prompt_ids], device="cuda")
            made = lm.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                max_new_tokens=3 + 5 * number % 23, pad_token_id=0,
            )  # fmt: skip
            assert list(reply.token_ids) == made[0, prompt.shape[1] :].tolist()
