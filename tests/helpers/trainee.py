"""A policy with an adapter that is trained, an engine over servers for it, and what the engine says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_lm, word_tokenizer
from tiny_vllm import TinyVLLM
from transformers import PreTrainedTokenizerFast

from collab.callbacks.rollout import policy_logprobs
from collab.chat.base import Sampling
from collab.config.schema import LoraConfig, ModelConfig, VLLMEngineConfig
from collab.conversation import Message, Reply
from collab.generation.vllm import CHECK_CONVERSATION, VLLMEngine
from collab.lm.loading import load_model, load_tokenizer
from collab.modules.policy import Policy
from collab.randomness import RngKey

HELLO = [Message("system", "Be brief."), Message("user", "Hello, can you help me with a note?")]
KEY = RngKey(3, role="policy")


def make_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """Whole words, those of the check, for a vocabulary that costs nothing."""
    words = sorted({word for message in CHECK_CONVERSATION for word in re.findall(r"\w+|[^\w\s]+", message.content)})
    template = (
        "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant {% endif %}"
    )
    return word_tokenizer(["system", "user", "assistant", *words, *more], template)


def make_model(tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int, layers: int = 2) -> Path:
    """A random model whose distributions are far from uniform."""
    fields = {"max_position_embeddings": 1024, "initializer_range": 0.3, "num_hidden_layers": layers}
    lm = tiny_lm(len(tokenizer), seed=seed, bos_token_id=1, eos_token_id=2, pad_token_id=2, **fields)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Trainee:
    """A policy, what is done to it, and what `sync_weights` gets of it."""

    def __init__(self, base: Path, *, adapter: bool = True) -> None:
        config = ModelConfig("tiny", str(base), lora=LoraConfig(r=4))
        torch.manual_seed(1)
        self.lm: Any = load_model(config, torch.float32, torch.device("cpu"), adapter=adapter)
        self.tokenizer = load_tokenizer(config)
        self.logprobs = policy_logprobs(Policy(self.lm, False), torch.device("cpu"))

    def learn(self, size: float = 0.1) -> None:
        for name, parameter in self.lm.named_parameters():
            if "lora_B" in name:
                parameter.data += size * torch.randn_like(parameter)


def make_engine(servers: TinyVLLM | list[TinyVLLM], trainee: Trainee, run: Path, **fields: Any) -> VLLMEngine:
    temperature, tell = fields.pop("temperature", 0.7), fields.pop("tell", lambda text: None)
    url: Any = [server.url for server in servers] if isinstance(servers, list) else servers.url
    config = VLLMEngineConfig(base_url=url, **{"connect_timeout": 5.0, **fields})
    return VLLMEngine(trainee.lm, trainee.tokenizer, config, run, temperature, tell)


def taken_up(engine: VLLMEngine, trainee: Trainee) -> VLLMEngine:
    engine.sync_weights(trainee.logprobs, lambda value: value)
    return engine


def says(engine: VLLMEngine, messages: list[Message] = HELLO, key: RngKey = KEY, **sampling: Any) -> Reply:
    return asyncio.run(
        engine.complete(messages, Sampling(**{"max_new_tokens": 12, "temperature": 0.7, **sampling}), key)
    )


def assert_speaks_as(trainee: Trainee, reply: Reply, adapter: bool = True) -> None:
    ours = trainee.logprobs(reply.prompt_ids, reply.token_ids, 0.7, adapter)
    assert reply.logprobs == pytest.approx(ours, abs=1e-4)
