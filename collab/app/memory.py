"""GPU memory of a run by arithmetic, as docs/scaling.md explains it. A test makes the tables of that page from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from collab.config.schema import ModelConfig
from collab.util.errors import BadInput

GB, GIB = 1e9, 2**30
CONTEXT = 5.0  # GB of CUDA, NCCL and fragments, at most


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated MLPs, as Llama.

    Attributes:
        width: Of the residual stream, h.
        inner: Width of the MLP, f.
        layers: Decoder layers, l.
        queries: Heads of queries times their size.
        keys: Heads of keys times their size.
        vocabulary: Tokens.
        tied: Whether the head is the embedding.
    """

    width: int
    inner: int
    layers: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool = False

    @property
    def layer(self) -> int:
        """Parameters of a decoder layer."""
        return 2 * self.width * (self.queries + self.keys) + 3 * self.width * self.inner + 2 * self.width

    @property
    def ends(self) -> int:
        """Parameters of embeddings and head."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """P: all parameters. Biases, which some families have, are not counted."""
        return self.layers * self.layer + self.ends + self.width

    def adapter(self, rank: int) -> int:
        """A: parameters of a LoRA adapter on all linear layers but the head."""
        attention = 2 * (self.width + self.queries) + 2 * (self.width + self.keys)
        return self.layers * rank * (attention + 3 * (self.width + self.inner))

    def kv(self, item: int = 2) -> int:
        """Bytes of keys and values per token, `item` bytes each."""
        return 2 * self.layers * self.keys * item


# Gated models, whose config.json cannot be read without a licence.
KNOWN = {
    "meta-llama/Llama-3.1-8B-Instruct": Shape(4096, 14336, 32, 4096, 1024, 128256),
    "meta-llama/Llama-3.1-70B-Instruct": Shape(8192, 28672, 80, 8192, 1024, 128256),
}


def shape_of(path: str | None) -> Shape:
    """The sizes of the model at `model.path`; reads its config alone.

    Raises:
        BadInput: There is none, or it says too little.
    """
    if path in KNOWN:
        return KNOWN[path]
    from transformers import AutoConfig

    from collab.lm.loading import UNREADABLE, locate

    try:
        base, _ = locate(ModelConfig(path=path))
        found: Any = AutoConfig.from_pretrained(base).get_text_config()
        heads = found.num_attention_heads
        size = getattr(found, "head_dim", None) or found.hidden_size // heads
        return Shape(
            found.hidden_size,
            found.intermediate_size,
            found.num_hidden_layers,
            heads * size,
            (getattr(found, "num_key_value_heads", None) or heads) * size,
            found.vocab_size,
            bool(found.tie_word_embeddings),
        )
    except (*UNREADABLE, AttributeError) as error:
        raise BadInput(
            f"model.path={path}: the sizes of the model cannot be read ({error}). Fetch its config.json first "
            f"(hf download {path} config.json), or name a folder."
        ) from error


@dataclass(frozen=True)
class Setup:
    """What decides the memory of a process.

    Attributes:
        shape: Of the policy.
        rank: Of the LoRA adapter; 0 trains all weights.
        processes: Of the run.
        fsdp: Whether they share one copy.
        local: Whether they decode (`engine=local`).
        max_batch: Conversations that are decoded at a time.
        cache_gib: GiB of kept keys and values.
        longest: L, tokens of the longest conversation.
        packed: T, tokens of a forward and backward pass.
        checkpointed: Whether activations are computed again (`model.gradient_checkpointing`).
        item: Bytes of a weight in computation: 2 in bf16, 4 in fp32.
    """

    shape: Shape
    rank: int
    processes: int = 1
    fsdp: bool = False
    local: bool = True
    max_batch: int = 32
    cache_gib: float = 2.0
    longest: int = 4096
    packed: int = 8192
    checkpointed: bool = True
    item: int = 2

    def between(self) -> float:
        """Bytes between rollouts: weights, trained copies, the optimizer, the reference."""
        p, item = self.shape.parameters, self.item
        if self.rank:
            total = item * p + 16 * self.shape.adapter(self.rank)
        else:
            total = 16 * p + 4 * p if self.fsdp else 5 * item * p
        return total / (self.processes if self.fsdp else 1)

    def rollout(self) -> list[float]:
        """Bytes that a rollout adds: gathered weights, keys and values in use, kept ones."""
        if not self.local:
            return []
        shape, item = self.shape, self.item
        whole = item * shape.parameters + (4 * shape.adapter(self.rank) if self.rank else item * shape.ends)
        used = 2 * self.max_batch * self.longest * shape.kv(item)
        return [*([whole] if self.fsdp else []), used, self.cache_gib * GIB]

    def update(self) -> list[float]:
        """Bytes that an update adds: gathered weights, their gradients, activations."""
        shape, item = self.shape, self.item
        gathered = [item * (shape.ends + 2 * shape.layer), 0.0]
        if not self.rank:
            gathered = [gathered[0] + item * shape.ends, 2 * gathered[0]]
        one = self.packed * (10 * shape.width + 4 * shape.inner) * item  # of a layer
        kept = self.packed * shape.width * item * shape.layers + one
        activations = kept if self.checkpointed else one * shape.layers
        return [*(filter(None, gathered) if self.fsdp else []), activations]

    def peak(self) -> tuple[str, float]:
        """(phase, GB) of the phase that needs most, CUDA and NCCL not counted."""
        phases: dict[str, Callable[[], list[float]]] = {"rollout": self.rollout, "update": self.update}
        found = {name: (self.between() + sum(more())) / GB for name, more in phases.items()}
        name = max(found, key=lambda phase: found[phase])
        return name, found[name]

    def row(self) -> str:
        """Cells of the table of docs/scaling.md: GB between, in a rollout and in an update, `a + b = sum`."""

        def cell(parts: list[float]) -> str:
            figures = [f"{part / GB:.1f}" for part in (self.between(), *parts)]
            total = (self.between() + sum(parts)) / GB
            return " + ".join(figures) + (f" = {total:.1f}" if parts else "")

        return " | ".join([f"{self.between() / GB:.1f}", cell(self.rollout()), cell(self.update())])
