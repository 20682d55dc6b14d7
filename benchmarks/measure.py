"""What all rows share: the model, sides that take turns, medians."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.environments import ENVIRONMENTS, preloads, python_of
from benchmarks.peer import Peer
from benchmarks.rows import FOLDER
from collab.chat.base import Sampling
from collab.config.schema import ModelConfig
from collab.generation.engine import LocalEngine
from collab.lm.loading import load_model, load_tokenizer
from collab.lm.smollm2 import smollm2_folder

TEMPERATURE = 0.7


@dataclass
class Setting:
    """How everything is measured.

    Attributes:
        model: Folder or Hugging Face id of the model.
        device: Where both sides run.
        dtype: In what both sides hold the weights.
        runs: Counted runs of each side.
        requests: Sequences decoded at a time, in rows on decoding.
        tokens: New tokens of each, there; forward samples have at most 48 a turn.
        contexts: In the rows against the official package.
        checkpointing: Whether the update recomputes activations.
    """

    model: str
    device: torch.device
    dtype: torch.dtype
    runs: int = 3
    requests: int = 32
    tokens: int = 64
    contexts: int = 4
    checkpointing: bool = False
    _peers: list[Peer] = field(default_factory=list)

    @cached_property
    def lm(self) -> Any:
        """The model without an adapter."""
        return self._load()

    @cached_property
    def stock_lm(self) -> Any:
        """The same once more, for peers in this process: an engine changes the attention of the model it is over."""
        return self._load()

    def _load(self) -> Any:
        return load_model(ModelConfig(name="benchmark", path=self.model), self.dtype, self.device, adapter=False)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(ModelConfig(name="benchmark", path=self.model))

    @property
    def named_dtype(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def engine(self) -> LocalEngine:
        return LocalEngine(self.lm, self.tokenizer, max(64, self.requests))

    def peer(self, environment: str | None, script: str, **arguments: Any) -> Peer:
        """A peer that has just been started; None as `environment` is this very interpreter."""
        python = sys.executable if environment is None else python_of(environment)
        variables: dict[str, str | None] = {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(FOLDER.parent) if environment is None else None,
        }
        if environment == "vllm":  # its workers take their threads from the cores that they are bound to
            variables |= {"OMP_NUM_THREADS": None, "LD_PRELOAD": preloads() or None}
        log = ENVIRONMENTS / f"{script}-{environment or 'ours'}.log"
        self._peers.append(Peer(python, FOLDER / "peers" / f"{script}.py", arguments, variables, log))
        return self._peers[-1]

    def close(self) -> None:
        """End all peers, so that none is idle beside the next row."""
        while self._peers:
            self._peers.pop().close()


@dataclass(frozen=True)
class Figures:
    """Medians of both sides, and of the ratio ours / peer of neighbouring runs, which are all in `ratios`."""

    ours: float
    peer: float
    ratio: float
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, ours: Sequence[float], peer: Sequence[float]) -> Figures:
        """From the values of both sides, run by run."""
        ratios = tuple(a / b for a, b in zip(ours, peer, strict=True))
        return cls(statistics.median(ours), statistics.median(peer), statistics.median(ratios), ratios)


def in_turn(runs: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Each side's values, taken alternately after one run that does not count."""
    for side in sides:
        side()
    values: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for found, side in zip(values, sides, strict=True):
            found.append(side())
    return values


def compare(setting: Setting, ours: Callable[[], float], peer: Callable[[], float]) -> Figures:
    """Both sides in turn."""
    return Figures.of(*in_turn(setting.runs, ours, peer))


def seconds(work: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def exactly(tokens: int) -> Sampling:
    """So many new tokens, whatever is drawn."""
    return Sampling(tokens, TEMPERATURE, ignore_eos=True)


def model_folder(name: str | None) -> str:
    """`--model` as a folder that peers can load too."""
    if name is None:
        return str(smollm2_folder())
    if name == "random-1b":
        return str(_random_1b())
    return str(Path(name).absolute()) if Path(name).exists() else name


def _random_1b() -> Path:
    """A Llama with the layers of Llama 3.2 1B, random weights and SmolLM2's tokenizer, made once."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = ENVIRONMENTS / "random-1b"
    if not (folder / "tokenizer.json").is_file():  # written last
        tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype=torch.bfloat16,
        )
        lm: Any = LlamaForCausalLM(config)
        lm.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
