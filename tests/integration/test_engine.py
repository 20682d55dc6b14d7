"""The rollout engine against the slow and plain way: `generate`, and one forward pass over the whole conversation."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import math
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from marks import slow
from models import keep_tokens, tiny_lm, with_adapter
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma3Config,
    HyperCLOVAXConfig,
    MixtralConfig,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from collab.app.resume import interruptible
from collab.chat.base import ContextFull, Sampling
from collab.conversation import Message, Reply
from collab.generation.drawing import inverse_cdf
from collab.generation.engine import LocalEngine
from collab.generation.modes import PREFILL_CHUNK
from collab.lm.device import resolve_dtype
from collab.lm.inner import inner_of
from collab.lm.logits import final_logits
from collab.modules.policy import Policy
from collab.randomness import RngKey
from collab.util.errors import BadInput

T = TypeVar("T")

WORDS = "kiln glaze origami dumpling railway museum harbour ferry orchard pear violin concert lantern river".split()
USERS = (
    "Hi, can you help me write a notice about the {}?",
    "Yes. The {} opens at nine, and 12 people may come.",
    "Please write the final text about the {} now.",
    "Thanks!",
)


def run(work: Coroutine[Any, Any, T], seconds: float = 120) -> T:
    """Await `work`; a hang fails instead of waiting for ever."""

    async def limited() -> T:
        return await asyncio.wait_for(work, seconds)

    return asyncio.run(limited())


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model's with fewer tokens: most of what a tiny model computes is logits."""
    folder = tmp_path_factory.mktemp("tokenizer")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    keep_tokens(folder / "tokenizer.json", 4096)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def sharp(tiny_model: Path, tokenizer: Any) -> Any:
    """The tiny model of these tokens made peaked and chaotic: what it says next depends on all that was said, and one
    token in twelve ends its turn, so replies are of very different lengths."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    lm.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(15)
            elif "embed" in name:
                parameter.mul_(20)
    stops = [lm.config.eos_token_id, *range(20, len(tokenizer), 12)]
    lm.generation_config.eos_token_id = stops
    return lm


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Callable[[torch.dtype], Any]:
    """The real model in a precision, loaded once for each."""
    return functools.cache(lambda dtype: AutoModelForCausalLM.from_pretrained(smollm2, dtype=dtype).eval())


@pytest.fixture
def adapted(sharp: Any) -> Any:
    """A copy of `sharp` under an adapter that has learned something."""
    return with_adapter(copy.deepcopy(sharp), 0.3)


async def talk(
    engine: LocalEngine, number: int, turns: int, sampling: Sampling, system: str = "", pause: bool = False
) -> list[Reply]:
    """A chat of so many turns; chats with one `number` modulo 14 say the same."""
    messages = [Message("system", system)] if system else []
    replies = []
    for turn in range(turns):
        messages.append(Message("user", USERS[turn].format(WORDS[number % len(WORDS)])))
        if pause:
            await asyncio.sleep(0.001 * (number % 5))
        key = RngKey(7, role="policy", goal=str(number), turn=turn)
        replies.append(await engine.complete(messages, sampling, key))
        messages.append(Message("assistant", replies[-1].text, replies[-1].token_ids))
    return replies


async def many_talks(engine: LocalEngine, temperature: float, count: int = 20, longest: int = 30) -> list[Reply]:
    """Chats of one to four turns, with and without a system prompt, some of them alike; length limits differ."""
    chats = [
        talk(
            engine,
            number % 14,
            turns=1 + number % 4,
            sampling=Sampling(3 + (7 * number) % longest, temperature),
            system="Be brief. " * (number % 3),
            pause=number % 2 == 0,
        )
        for number in range(count)
    ]
    return [reply for replies in await asyncio.gather(*chats) for reply in replies]


def greedy_reference(lm: Any, reply: Reply, max_new_tokens: int) -> list[int]:
    prompt = torch.tensor([reply.prompt_ids])
    made = lm.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
    )
    return made[0, prompt.shape[1] :].tolist()


def plain_logits(lm: Any, reply: Reply) -> torch.Tensor:
    """`[T, V]` logits that each token of the reply was drawn from, by one forward pass without any cache."""
    ids = torch.tensor([[*reply.prompt_ids, *reply.token_ids]])
    with torch.no_grad():
        logits = lm(input_ids=ids, use_cache=False).logits[0].float()
    return logits[len(reply.prompt_ids) - 1 : -1]


def assert_logprobs_are_plain(lm: Any, replies: Sequence[Reply], temperature: float) -> None:
    for reply in replies:
        assert len(reply.logprobs) == len(reply.token_ids)
        expected = (plain_logits(lm, reply) / temperature).log_softmax(-1)
        expected = expected.gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(reply.logprobs), expected, atol=1e-4, rtol=0)


class Fed:
    """Counts what a model's trunk is fed."""

    def __init__(self, lm: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.handle = inner_of(lm).get_decoder().register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: Any, args: Any, kwargs: Any) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))

    def __enter__(self) -> Fed:
        return self

    def __exit__(self, *exc: object) -> None:
        self.handle.remove()


# --- the same tokens as generate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [slow(64), 3])
def test_greedy_replies_are_those_of_generate(sharp: Any, tokenizer: Any, max_batch: int) -> None:
    engine = LocalEngine(sharp, tokenizer, max_batch=max_batch)
    replies = run(many_talks(engine, temperature=0))
    limits = [3 + (7 * n) % 30 for n in range(20) for _ in range(1 + n % 4)]
    assert len(replies) == len(limits) == 50
    for reply, limit in zip(replies, limits, strict=True):
        assert list(reply.token_ids) == greedy_reference(sharp, reply, limit)
    # The run was worth it: cut and finished replies of many lengths.
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    assert len({len(reply.token_ids) for reply in replies}) > 8
    assert engine.new_tokens == sum(len(reply.token_ids) for reply in replies)


SMALL = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "head_dim": 24, "initializer_range": 0.3,
}  # fmt: skip
# Three layers each: biases; norms of queries and keys; windows, soft caps and other head sizes; other rotary bases.
FAMILIES: dict[str, Any] = {
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "gemma2": ("Gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3", {"sliding_window": 16, "query_pre_attn_scalar": 24, "sliding_window_pattern": 2}),
    "granite": ("Granite", {"logits_scaling": 8.0}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
}


def family(name: str, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of another family, with the vocabulary of `tokenizer`."""
    cls, fields = FAMILIES[name]
    lm = tiny_lm(len(tokenizer), cls, seed=2, bias=0.3, **SMALL, **fields).to(dtype)
    lm.generation_config.eos_token_id = list(range(20, len(tokenizer), 12))
    return lm


FEW_FAMILIES = ("qwen2", "gemma3", "granite")  # biases, windows and norms, scaled logits; the others are slow


@pytest.mark.parametrize("name", [name if name in FEW_FAMILIES else slow(name) for name in FAMILIES])
def test_other_families_speak_as_in_generate(tokenizer: Any, name: str) -> None:
    lm = family(name, tokenizer)
    replies = run(many_talks(LocalEngine(lm, tokenizer, max_batch=3), temperature=0, count=5))
    limits = [3 + (7 * n) % 30 for n in range(5) for _ in range(1 + n % 4)]
    for reply, limit in zip(replies, limits, strict=True):
        assert list(reply.token_ids) == greedy_reference(lm, reply, limit)
    assert len({reply.token_ids for reply in replies}) > 6 and max(len(r.prompt_ids) for r in replies) > 5 * 16
    assert_logprobs_are_plain(lm, run(many_talks(LocalEngine(lm, tokenizer), temperature=0.7, count=3)), 0.7)


@pytest.mark.parametrize(
    ("name", "attention"),
    [*((name, None) if name in FEW_FAMILIES else slow(name, None) for name in FAMILIES), ("mistral", "eager")],
)
def test_the_deterministic_mode_speaks_as_generate_in_other_families(
    tokenizer: Any, name: str, attention: str | None
) -> None:
    lm = family(name, tokenizer)
    if attention:
        lm.set_attn_implementation(attention)

    async def chats(count: int) -> list[Reply]:
        engine = LocalEngine(lm, tokenizer, max_batch=3, deterministic=True)
        work = [talk(engine, n, 2, Sampling(6, 0), system="Be brief. " * 8) for n in range(count)]
        return (await asyncio.gather(*work))[0]

    alone = run(chats(1))
    assert run(chats(3)) == alone  # log-probs too
    for reply in alone:
        assert list(reply.token_ids) == greedy_reference(lm, reply, 6)


def test_a_model_inside_one_that_also_sees_speaks_as_in_generate(tokenizer: Any) -> None:
    text = {"vocab_size": len(tokenizer), "sliding_window": 16, "query_pre_attn_scalar": 24, **SMALL}
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config={**small, "image_size": 28, "patch_size": 14})
    lm = AutoModelForCausalLM.from_config(config).eval()
    reply = run(LocalEngine(lm, tokenizer).complete([Message("user", "Hello there " * 9)], Sampling(6, 0), RngKey(1)))
    assert list(reply.token_ids) == plain_logits(lm, reply).argmax(-1).tolist()


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (HyperCLOVAXConfig, {"logits_scaling": 0.25, **SMALL}, "HyperCLOVAXForCausalLM does something with its logits"),
        (BloomConfig, {"hidden_size": 32, "n_head": 4, "n_layer": 1}, "BloomForCausalLM does not take .* the mask"),
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(
    tokenizer: Any, config_class: Any, fields: dict[str, Any], message: str
) -> None:
    lm = AutoModelForCausalLM.from_config(config_class(vocab_size=99, **fields)).eval()
    with pytest.raises(BadInput, match=message):
        LocalEngine(lm, tokenizer)
    with pytest.raises(BadInput, match=message):
        Policy(lm, with_reference=False)


def test_experts_are_refused_in_the_deterministic_mode(tokenizer: Any) -> None:
    config = MixtralConfig(vocab_size=99, num_local_experts=4, **SMALL)
    lm = AutoModelForCausalLM.from_config(config).eval()
    LocalEngine(lm, tokenizer)
    with pytest.raises(BadInput, match="MixtralForCausalLM is a mixture of experts"):
        LocalEngine(lm, tokenizer, deterministic=True)


def test_layers_that_are_no_attention_are_refused(tokenizer: Any) -> None:
    lm = family("qwen3", tokenizer)
    lm.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(BadInput, match="linear_attention"):
        LocalEngine(lm, tokenizer)


def test_prompts_grow_by_exactly_what_was_sampled(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer)
    replies = run(talk(engine, 3, 4, Sampling(12, 1.0)))
    for earlier, later in zip(replies, replies[1:], strict=False):
        said = earlier.prompt_ids + earlier.token_ids
        assert later.prompt_ids[: len(said)] == said and len(later.prompt_ids) > len(said)


def test_finish_reason_tells_whether_the_turn_was_ended(sharp: Any, tokenizer: Any) -> None:
    stops = set(sharp.generation_config.eos_token_id)
    replies = run(many_talks(LocalEngine(sharp, tokenizer), temperature=1.0))
    for reply in replies:
        assert not stops & set(reply.token_ids[:-1])
        assert (reply.finish_reason == "stop") == (reply.token_ids[-1] in stops)
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}


def test_a_stop_at_the_length_limit_is_a_stop(sharp: Any, tokenizer: Any) -> None:
    def reply(number: int, max_new_tokens: int) -> Reply:
        engine = LocalEngine(sharp, tokenizer)
        return run(engine.complete([Message("user", "Hello")], Sampling(max_new_tokens), RngKey(number)))

    number, free = next((n, found) for n in range(99) if len((found := reply(n, 99)).token_ids) > 3)
    assert free.finish_reason == "stop"
    again = reply(number, len(free.token_ids))
    assert (again.token_ids, again.finish_reason) == (free.token_ids, "stop")
    assert again.logprobs == pytest.approx(free.logprobs)  # with less room they may differ in their last digits
    short = reply(number, len(free.token_ids) - 1)
    assert short.finish_reason == "length" and short.token_ids == free.token_ids[:-1]
    assert short.logprobs == pytest.approx(free.logprobs[:-1])


def test_stop_strings_end_the_replies_that_ask_for_them(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer)

    async def replies(stops: Sequence[tuple[str, ...]]) -> list[Reply]:
        message = [Message("user", "Hello")]
        work = [engine.complete(message, Sampling(40, stop=stop), RngKey(n)) for n, stop in enumerate(stops)]
        return list(await asyncio.gather(*work))

    free = run(replies([()] * 8))
    # A stop inside a word of a later token, one that nobody says, and one that is said behind another.
    stops = [(reply.text[len(reply.text) // 2 :][:3].strip() or "~~~", "~~~~") for reply in free[:6]] + [(), ("~~~~",)]
    stopped = run(replies(stops))
    assert [reply.token_ids for reply in stopped[6:]] == [reply.token_ids for reply in free[6:]]  # in the same batch
    for reply, whole, stop in zip(stopped[:6], free, stops, strict=False):
        assert reply.text == whole.text.partition(stop[0])[0].strip() and reply.finish_reason == "stop"
        assert reply.token_ids == whole.token_ids[: len(reply.token_ids)]
        assert stop[0] not in tokenizer.decode(reply.token_ids[:-1], skip_special_tokens=True)
    assert any(len(reply.token_ids) < len(whole.token_ids) for reply, whole in zip(stopped, free, strict=True))


def test_the_real_model_with_requests_that_come_and_go(real: Callable[[torch.dtype], Any], smollm2: Path) -> None:
    lm = real(torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    async def chats(temperature: float, *limits: int) -> list[Reply]:
        engine = LocalEngine(lm, tokenizer, max_batch=3)
        work = [
            talk(engine, n // 2, 1 + n % 2, Sampling(limit, temperature), "Ask a short question." * (n < 2), n == 1)
            for n, limit in enumerate(limits)
        ]
        return [reply for replies in await asyncio.gather(*work) for reply in replies]

    greedy = run(chats(0, 30, 5, 14, 24))
    assert [len(reply.token_ids) for reply in greedy if reply.finish_reason == "length"]
    for reply in greedy:  # what `generate` gives is the likeliest token each time
        assert list(reply.token_ids) == plain_logits(lm, reply).argmax(-1).tolist()
    assert list(greedy[1].token_ids) == greedy_reference(lm, greedy[1], 5)
    ended = next(reply for reply in greedy if reply.finish_reason == "stop")
    assert ended.token_ids[-1] == tokenizer.eos_token_id and ended.text == tokenizer.decode(list(ended.token_ids[:-1]))
    assert_logprobs_are_plain(lm, run(chats(0.7, 6, 9)), 0.7)


# --- the right distribution ------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_a_plain_forward_pass(sharp: Any, tokenizer: Any) -> None:
    replies = run(many_talks(LocalEngine(sharp, tokenizer, max_batch=6), temperature=0.7))
    assert len(replies) == 50
    assert_logprobs_are_plain(sharp, replies, 0.7)


@pytest.mark.parametrize(("temperature", "deterministic"), [slow(1.0, False), (0.8, False), (0.8, True)])
def test_tokens_come_as_often_as_softmax_says(
    sharp: Any, tokenizer: Any, temperature: float, deterministic: bool
) -> None:
    engine, draws = LocalEngine(sharp, tokenizer, max_batch=256, deterministic=deterministic), 2000
    message = [Message("user", "Hello")]

    async def sample() -> list[Reply]:
        sampling = Sampling(1, temperature)
        keys = (RngKey(1, candidate=i) for i in range(draws))
        return list(await asyncio.gather(*(engine.complete(message, sampling, key) for key in keys)))

    replies = run(sample())
    probabilities = (plain_logits(sharp, replies[0]) / temperature).softmax(-1)[0].double().numpy()
    # The 15 likeliest tokens on their own, all others in 15 bins of equal probability.
    likeliest = np.argsort(-probabilities)[:15]
    rest = probabilities.copy()
    rest[likeliest] = 0
    bins = np.minimum(np.floor(15 * (np.cumsum(rest) - rest / 2) / rest.sum()), 14).astype(int)
    bins[likeliest] = 15 + np.arange(15)
    expected = np.bincount(bins, probabilities, 30) * draws
    found = np.bincount(bins[[reply.token_ids[0] for reply in replies]], minlength=30)
    assert expected.min() > 5
    # 99.9 % of correct samplers lie below the quantile of chi-square with 29 degrees of freedom.
    assert ((found - expected) ** 2 / expected).sum() < 58.3


@pytest.mark.parametrize("vocabulary", [5, 256, 700])
def test_drawing_by_blocks_inverts_the_running_sum(vocabulary: int) -> None:
    noise = torch.Generator().manual_seed(0)
    scores = 4 * torch.randn(400, vocabulary, generator=noise) + 50
    scores[:, :2], scores[:, -1] = -torch.inf, -torch.inf  # never drawn, also by the first and the last number
    uniforms = torch.rand(400, generator=noise)
    uniforms[:2] = torch.tensor([0.0, 1.0])
    tokens, normaliser = inverse_cdf(scores, uniforms)
    torch.testing.assert_close(normaliser, scores.logsumexp(-1))
    reached = scores.double().softmax(-1).cumsum(-1)
    chosen, above = tokens[:, None], uniforms.double()[:, None]
    assert (reached.gather(1, chosen) > above - 1e-6).all()
    assert (reached.gather(1, chosen - 1) < above + 1e-6).all()
    assert torch.isfinite(scores.gather(1, chosen)).all() and len(set(tokens.tolist())) > 1


@pytest.mark.parametrize(
    ("top_p", "top_k", "warpers"),
    [
        (0.6, 0, [TopPLogitsWarper(0.6)]),
        (1.0, 7, [TopKLogitsWarper(7)]),
        (0.5, 20, [TopKLogitsWarper(20), TopPLogitsWarper(0.5)]),
    ],
)
def test_filtered_sampling_is_that_of_transformers(
    sharp: Any, tokenizer: Any, top_p: float, top_k: int, warpers: list[Any]
) -> None:
    engine = LocalEngine(sharp, tokenizer)

    async def sample() -> list[Reply]:
        sampling, message = Sampling(10, 0.8, top_p, top_k), [Message("user", "Hello")]
        return list(await asyncio.gather(*(engine.complete(message, sampling, RngKey(2, sample=i)) for i in range(12))))

    for reply in run(sample()):
        logits = plain_logits(sharp, reply) / 0.8
        for warper in warpers:
            logits = warper(None, logits)
        expected = logits.log_softmax(-1).gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        assert expected.isfinite().all()
        torch.testing.assert_close(torch.tensor(reply.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("number", [0.0, 1 - 1e-12])
def test_the_ends_of_the_distribution_draw_a_possible_token(
    sharp: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    class Fixed:
        def random(self) -> float:
            return number

    monkeypatch.setattr(RngKey, "stream", lambda self: Fixed())
    engine = LocalEngine(sharp, tokenizer)
    for sampling in (Sampling(4), Sampling(4, top_k=3), Sampling(4, top_p=0.3)):
        reply = run(engine.complete([Message("user", "Hello")], sampling, RngKey(0)))
        assert all(math.isfinite(logprob) for logprob in reply.logprobs)


def test_final_logits_caps_where_the_model_does() -> None:
    class Capped:
        final_logit_softcapping = 30.0

    logits = torch.tensor([0.0, 15.0, 300.0])
    expected = torch.tensor([0.0, 30 * math.tanh(0.5), 30.0])
    torch.testing.assert_close(final_logits(logits, Capped()), expected)
    assert final_logits(logits, object()) is logits


# --- independence of a request ---------------------------------------------------------------------------------------


def test_a_request_draws_the_same_alone_and_in_company(sharp: Any, tokenizer: Any) -> None:
    sampling = Sampling(20, 0.7)

    async def together() -> list[list[Reply]]:
        engine = LocalEngine(sharp, tokenizer, max_batch=7)
        return list(await asyncio.gather(*(talk(engine, n, 2, sampling, pause=n % 2 == 0) for n in range(10))))

    def same(one: Reply, other: Reply) -> bool:
        return (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)

    company = run(together())
    for number in range(10):
        alone = run(talk(LocalEngine(sharp, tokenizer), number, 2, sampling))
        assert all(map(same, alone, company[number]))
    # Pauses take the clock's time, so the company is another one now; log-probs may differ in their last digits.
    for again, before in zip(run(together()), company, strict=True):
        assert all(map(same, again, before))
    # Same words, other keys: other draws.
    assert len({reply[0].token_ids for reply in company}) == 10


async def company(engine: LocalEngine, draw: np.random.Generator, sampling: Sampling) -> list[Reply]:
    """One chat of three turns, whose prompts are longer than two chunks, somewhere among up to eight random others."""

    async def wanted() -> list[Reply]:
        await asyncio.sleep(float(draw.uniform(0, 0.02)))
        return await talk(engine, 0, 3, sampling, system="Be brief. " * 20)

    others = [
        talk(engine, int(number), int(draw.integers(1, 4)), Sampling(int(draw.integers(2, 40)), 0.9), pause=True)
        for number in draw.integers(1, 14, size=draw.integers(9))
    ]
    place = int(draw.integers(len(others) + 1))
    return (await asyncio.gather(*others[:place], wanted(), *others[place:]))[place]


@pytest.mark.parametrize(
    ("temperature", "trials", "dtype"),
    [
        (1.0, 4, torch.float32),
        (1.0, 4, torch.bfloat16),
        slow(0.0, 25, torch.float32),
        slow(1.0, 25, torch.float32),
        slow(1.0, 25, torch.bfloat16),
    ],
)
def test_the_deterministic_mode_is_bit_equal_in_any_company_order_and_cache(
    adapted: Any, tokenizer: Any, temperature: float, trials: int, dtype: torch.dtype
) -> None:
    sampling, draw = Sampling(25, temperature), np.random.default_rng(3)
    adapted.to(dtype)

    def engine(cache_bytes: int = 1 << 30) -> LocalEngine:
        return LocalEngine(adapted, tokenizer, max_batch=6, cache_bytes=cache_bytes, deterministic=True)

    alone = run(talk(engine(), 0, 3, sampling, system="Be brief. " * 20))
    assert all(len(reply.prompt_ids) > 2 * PREFILL_CHUNK for reply in alone)
    warm = engine()
    for trial in range(trials):
        found = run(company(warm if trial % 2 else engine(int(draw.integers(2)) << 18), draw, sampling))
        assert found == alone  # tokens, text and log-probs, bit for bit
    assert len(warm.prefixes.kept) > 3


@pytest.mark.slow
def test_the_deterministic_mode_is_bit_equal_on_the_real_model(
    real: Callable[[torch.dtype], Any], smollm2: Path
) -> None:
    lm = real(resolve_dtype("auto", torch.device("cpu")))  # bf16 where that is not emulated
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    sampling = Sampling(4, 0.9)

    async def wanted_in(others: int, engine: LocalEngine) -> list[Reply]:
        company = [talk(engine, 5 + n, 1, Sampling(2 + 2 * n, 0.9)) for n in range(others)]
        return (await asyncio.gather(*company, talk(engine, 0, 2, sampling, system="Be brief. " * 12)))[-1]

    engine = LocalEngine(lm, tokenizer, max_batch=4, deterministic=True)
    alone = run(wanted_in(0, engine))
    assert run(wanted_in(3, engine)) == alone  # warm
    assert run(wanted_in(2, LocalEngine(lm, tokenizer, max_batch=4, cache_bytes=0, deterministic=True))) == alone


def test_the_deterministic_mode_says_what_the_fast_one_says(sharp: Any, tokenizer: Any) -> None:
    fast = run(many_talks(LocalEngine(sharp, tokenizer), 0.0, count=10))
    fixed = run(many_talks(LocalEngine(sharp, tokenizer, max_batch=4, deterministic=True), 0.0, count=10))
    assert [reply.token_ids for reply in fixed] == [reply.token_ids for reply in fast]
    sampled = run(many_talks(LocalEngine(sharp, tokenizer, deterministic=True), 0.7, count=8))
    assert_logprobs_are_plain(sharp, sampled, 0.7)


@pytest.mark.parametrize("cache_bytes", [0, slow(1), 300_000])
def test_kept_prefixes_change_nothing(sharp: Any, tokenizer: Any, cache_bytes: int) -> None:
    with_cache = run(many_talks(LocalEngine(sharp, tokenizer, max_batch=5), temperature=0.7))
    small = LocalEngine(sharp, tokenizer, max_batch=5, cache_bytes=cache_bytes)
    without = run(many_talks(small, temperature=0.7))
    assert [reply.token_ids for reply in with_cache] == [reply.token_ids for reply in without]
    assert small.prefixes.nbytes <= cache_bytes and (len(small.prefixes.kept) > 0) == (cache_bytes > 1)


def test_the_least_recently_used_is_dropped_and_what_is_too_large_drops_nothing(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer)
    cache = engine.prefixes

    def said(messages: list[Message]) -> tuple[Reply, tuple[int, ...]]:
        reply = run(engine.complete(messages, Sampling(4, 0, ignore_eos=True), RngKey(1)))
        return reply, (*reply.prompt_ids, *reply.token_ids)

    def kept(*prefixes: tuple[int, ...]) -> bool:
        return cache.kept.keys() == {(True, ids) for ids in prefixes}

    (river, river_ids), (_, violin_ids) = said([Message("user", "river")]), said([Message("user", "violin")])
    cache.max_bytes = cache.nbytes
    said([Message("user", "word " * 90)])
    assert kept(river_ids, violin_ids)
    per_token = cache.nbytes // (len(river_ids) + len(violin_ids) - 2)
    further = [Message("user", "river"), Message("assistant", river.text, river.token_ids), Message("user", "Go on.")]
    longer = len(engine.format.encode(further)[0]) + 4
    cache.max_bytes += (longer - len(violin_ids)) * per_token  # what is said next takes the place of one alone
    _, further_ids = said(further)  # reads the older one
    assert kept(river_ids, further_ids) and cache.nbytes == cache.max_bytes


def test_candidates_that_do_not_all_fit_the_batch_share_their_prompt(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer, max_batch=2)
    message = [Message("user", "word " * 30)]

    async def candidates() -> list[Reply]:
        first = engine.complete([Message("user", "Hello")], Sampling(20, 0, ignore_eos=True), RngKey(1))
        keys = (RngKey(3, candidate=i) for i in range(4))
        sampling = Sampling(3, ignore_eos=True)
        return list(await asyncio.gather(first, *(engine.complete(message, sampling, key) for key in keys)))

    with Fed(sharp) as fed:
        replies = run(candidates())
    assert [len(reply.token_ids) for reply in replies] == [20, 3, 3, 3, 3]  # whatever ends a turn is ignored
    opening = fed.shapes[0][1]  # is read before what the two kinds of prompts go on with
    assert sum(width == len(replies[1].prompt_ids) - opening for _, width in fed.shapes) == 1


def test_short_prompts_are_not_padded_to_a_long_one(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer)
    texts = ["word " * 300, *WORDS]

    async def everyone() -> list[Reply]:
        work = (engine.complete([Message("user", text)], Sampling(2, 0), RngKey(1)) for text in texts)
        return list(await asyncio.gather(*work))

    with Fed(sharp) as fed:
        replies = run(everyone())
    lengths = [len(reply.prompt_ids) for reply in replies]
    opening = fed.shapes[0][1]
    assert fed.shapes[:3] == [(1, opening), (len(WORDS), max(lengths[1:]) - opening), (1, lengths[0] - opening)]
    for reply in replies:
        assert list(reply.token_ids) == greedy_reference(sharp, reply, 2)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_what_new_prompts_begin_with_is_read_once(sharp: Any, tokenizer: Any, cache_bytes: int) -> None:
    engine = LocalEngine(sharp, tokenizer, cache_bytes=cache_bytes)
    system = Message("system", "You help with notices about all that goes on in a small town by the sea. Be brief.")

    async def all_at_once(words: Sequence[str]) -> list[Reply]:
        work = (engine.complete([system, Message("user", word)], Sampling(2, 0), RngKey(1)) for word in words)
        return list(await asyncio.gather(*work))

    with Fed(sharp) as fed:
        replies = run(all_at_once(WORDS[:6]))
        (rows, opening), (others, rest) = fed.shapes[:2]
        assert (rows, others) == (1, 6) and opening > 20 > rest
        assert opening + rest == max(len(reply.prompt_ids) for reply in replies)
        fed.shapes.clear()
        (late,) = run(all_at_once(WORDS[6:7]))
        assert fed.shapes[0] == (1, len(late.prompt_ids) - (opening if cache_bytes else 0))
    for reply in (*replies, late):
        assert list(reply.token_ids) == greedy_reference(sharp, reply, 2)


def test_what_is_shared_is_computed_once(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer)
    message = [Message("user", USERS[0].format("kiln"))]

    async def candidates(first: int) -> list[Reply]:
        keys = (RngKey(3, candidate=i) for i in range(first, first + 6))
        return list(await asyncio.gather(*(engine.complete(message, Sampling(5), key) for key in keys)))

    with Fed(sharp) as fed:
        replies = run(candidates(0))
    prompt = len(replies[0].prompt_ids)
    assert fed.shapes[0] == (1, prompt) and all(width == 1 for _, width in fed.shapes[1:])
    with Fed(sharp) as fed:  # candidates of the same context that come later
        run(candidates(6))
    assert fed.shapes[0] == (1, 1)
    reply = replies[0]
    longer = [*message, Message("assistant", reply.text, reply.token_ids), Message("user", "Go on.")]
    with Fed(sharp) as fed:  # the next turn: the reply's last token, and what is new
        following = run(engine.complete(longer, Sampling(1), RngKey(3)))
    assert fed.shapes == [(1, len(following.prompt_ids) - len(reply.prompt_ids) - len(reply.token_ids) + 1)]


# --- which weights answer --------------------------------------------------------------------------------------------


def test_adapter_on_and_off_mixed_in_one_run(adapted: Any, tokenizer: Any) -> None:
    engine = LocalEngine(adapted, tokenizer, max_batch=8)

    async def mixed() -> list[list[Reply]]:
        # The same words to both, so that a prefix kept of one would fit the other.
        work = [talk(engine, n // 2, 3, Sampling(8, 0, adapter=n % 2 == 0), pause=n % 3 == 0) for n in range(12)]
        return list(await asyncio.gather(*work))

    for number, replies in enumerate(run(mixed())):
        for reply in replies:
            if number % 2 == 0:
                expected = greedy_reference(adapted, reply, 8)
            else:
                with adapted.disable_adapter():
                    expected = greedy_reference(adapted, reply, 8)
            assert list(reply.token_ids) == expected
    on, off = run(mixed())[:2]
    assert on[0].prompt_ids == off[0].prompt_ids and on[0].token_ids != off[0].token_ids


def test_the_adapter_is_switched_once_a_batch_and_nobody_starves(
    adapted: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, switched = LocalEngine(adapted, tokenizer), []
    switch = adapted.disable_adapter
    monkeypatch.setattr(adapted, "disable_adapter", lambda: switched.append(1) or switch())

    async def both() -> int:
        async def keep_asking(number: int) -> None:
            for turn in range(40):
                await engine.complete([Message("user", "Hi")], Sampling(2 + number, ignore_eos=True), RngKey(turn))

        asking = [asyncio.create_task(keep_asking(number)) for number in range(3)]
        while engine.new_tokens < 5:
            await asyncio.sleep(0)
        before = engine.new_tokens
        await engine.complete([Message("user", "Hi")], Sampling(8, 0, ignore_eos=True, adapter=False), RngKey(1))
        waited = engine.new_tokens - before
        await asyncio.gather(*asking)
        return waited

    assert run(both()) < 30
    assert len(switched) == 1


def test_new_weights_answer_once_the_cache_is_cleared(sharp: Any, tokenizer: Any) -> None:
    lm = copy.deepcopy(sharp)
    engine = LocalEngine(lm, tokenizer)

    async def candidates(speaker: LocalEngine) -> list[Reply]:
        keys, message = [RngKey(n) for n in range(3)], [Message("user", "Hello")]
        return list(await asyncio.gather(*(speaker.complete(message, Sampling(6, 0.7), key) for key in keys)))

    run(candidates(engine))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "v_proj" in name:
                parameter.neg_()
    stale = run(candidates(engine))
    engine.clear_cache()
    fresh = run(candidates(engine))
    assert fresh == run(candidates(LocalEngine(lm, tokenizer)))
    assert_logprobs_are_plain(lm, fresh, 0.7)
    assert stale != fresh  # it had to be called


# --- when it goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [0, 2, 9])
def test_a_failure_in_the_model_reaches_every_caller(
    sharp: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    engine = LocalEngine(sharp, tokenizer, max_batch=4)
    left = [calls]

    def fail(*args: Any) -> None:
        if left[0] == 0:
            raise RuntimeError("out of memory, say")
        left[0] -= 1

    async def ask(number: int) -> Reply:
        return await engine.complete([Message("user", WORDS[number])], Sampling(30, 0), RngKey(number))

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*(ask(n) for n in range(10)), return_exceptions=True))

    handle = sharp.get_decoder().layers[1].register_forward_pre_hook(fail)
    try:
        found = run(all_of_them(), seconds=30)
    finally:
        handle.remove()
    failed = [result for result in found if isinstance(result, BaseException)]
    assert failed and all(str(error) == "out of memory, say" for error in failed)
    assert len(failed) + sum(isinstance(result, Reply) for result in found) == 10
    # The engine is as good as new.
    for reply in run(all_of_them()):
        assert list(reply.token_ids) == greedy_reference(sharp, reply, 30)


async def ask_once(engine: LocalEngine, sampling: Sampling) -> Reply:
    return await engine.complete([Message("user", "Hi")], sampling, RngKey(1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, r"max_new_tokens \(0\) must be at least 1"),
        ({"temperature": -1.0}, r"temperature \(-1.0\) must be a finite number"),
        ({"temperature": math.nan}, r"temperature \(nan\) must be a finite number"),
        ({"top_p": 0.0}, r"top_p \(0.0\) must be above 0"),
        ({"top_k": -1}, r"top_k \(-1\) must be at least 0"),
        ({"stop": "END"}, r"stop \(END\) must be a tuple of strings"),
        ({"stop": ("END", "")}, "stop .* must be a tuple of strings, none empty"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Sampling(**{"max_new_tokens": 5, **fields})


def test_an_empty_prompt_is_refused(sharp: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(sharp, tokenizer)
    monkeypatch.setattr(engine.format, "encode", lambda messages: ([], []))
    with pytest.raises(BadInput, match="no token at all"):
        run(ask_once(engine, Sampling(3)))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_said_to_be_so(
    sharp: Any, tokenizer: Any, deterministic: bool, temperature: float
) -> None:
    lm = copy.deepcopy(sharp)
    engine = LocalEngine(lm, tokenizer, max_batch=2, deterministic=deterministic)
    with torch.no_grad():
        lm.model.norm.weight[0] = math.nan
    with pytest.raises(BadInput, match="logits are not finite.*algorithm.lr"):
        run(ask_once(engine, Sampling(3, temperature)))


def test_a_conversation_that_does_not_fit_is_refused(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer)
    messages = [Message("user", "word " * 100)]
    prompt = len(engine.format.encode(messages)[0])
    with pytest.raises(ContextFull, match=rf"{prompt} tokens plus max_new_tokens={2049 - prompt} .* 2048 positions"):
        run(engine.complete(messages, Sampling(2049 - prompt), RngKey(1)))


def test_a_model_with_learned_positions_speaks_to_its_last_one(tokenizer: Any) -> None:
    size = len(tokenizer)
    lm = tiny_lm(size, "GPT2", max_position_embeddings=128, initializer_range=0.5)
    lm.generation_config.eos_token_id = tokenizer.eos_token_id
    engine = LocalEngine(lm, tokenizer)

    async def at_once() -> list[Reply]:
        start = [Message("user", "word " * 50)]
        first = await engine.complete(start, Sampling(5, 0), RngKey(1))
        # Joined to a long new prompt, whose width would lead the continued one past the end.
        longer = [*start, Message("assistant", first.text, first.token_ids), Message("user", "Go on.")]
        left = 128 - len(engine.format.encode(longer)[0])
        work = [engine.complete(longer, Sampling(left, 0), RngKey(2))]
        work.append(engine.complete([Message("user", "other " * 60)], Sampling(5, 0), RngKey(3)))
        return [first, *await asyncio.gather(*work)]

    replies = run(at_once())
    assert len(replies[1].prompt_ids) + len(replies[1].token_ids) == 128
    for reply in replies:
        assert list(reply.token_ids) == plain_logits(lm, reply).argmax(-1).tolist()


def test_who_gives_up_leaves_the_batch_and_the_queue(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer, max_batch=2)
    sampling = Sampling(40, 0.9, ignore_eos=True)

    async def chats() -> list[Reply]:
        tasks = [asyncio.create_task(talk(engine, number, 1, sampling)) for number in range(4)]
        while not engine.new_tokens:
            await asyncio.sleep(0)
        for given_up in (tasks[0], tasks[2]):  # one that speaks, and one that waits
            given_up.cancel()
        return [(await task)[0] for task in (tasks[1], tasks[3])]

    found = run(chats())
    assert engine.new_tokens < 3 * 40
    for number, reply in zip((1, 3), found, strict=True):
        assert reply.token_ids == run(talk(LocalEngine(sharp, tokenizer), number, 1, sampling))[0].token_ids


def test_requests_beyond_the_batch_all_get_their_turn(sharp: Any, tokenizer: Any) -> None:
    engine = LocalEngine(sharp, tokenizer, max_batch=2)
    with Fed(sharp) as fed:
        replies = run(many_talks(engine, temperature=0, count=9))
    assert len(replies) == sum(1 + n % 4 for n in range(9))
    assert max(rows for rows, _ in fed.shapes) == 2


def test_a_signal_while_a_token_is_computed_leaves_no_traceback(
    sharp: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = LocalEngine(sharp, tokenizer)  # may try the model
    trunk = inner_of(sharp).get_decoder()
    hook = trunk.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        with interruptible("python train.py resume=RUN"):
            run(talk(engine, 3, 1, Sampling(4, 0)))
        pytest.fail("it was not interrupted")
    except SystemExit as error:
        assert error.code == 128 + signal.SIGINT
    finally:
        hook.remove()
    del engine
    gc.collect()  # asyncio speaks of an error that nobody asked for when the task is collected
    assert capsys.readouterr().err.splitlines()[-1] == "Interrupted. Go on with: python train.py resume=RUN"
    assert not [record for record in caplog.records if record.name == "asyncio"]
