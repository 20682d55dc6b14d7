"""The two modes of the local engine: fast, and deterministic (a request's tokens depend on that request alone).

A mode decides how prompts are read, which prefixes are kept, how many rows a decoding step has and how tokens are
drawn.

Shapes: N rows, T new tokens per row, V vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from collab.generation.drawing import Draw, by_gumbel_max, by_inverse_cdf

# (first row, new tokens of each row, start of each row, number of tokens of each row without padding or None for all)
# -> [N, V] logits after the last token of each row
Extend = Callable[[int, list[list[int]], Sequence[int], list[int] | None], torch.Tensor]

PREFILL_CHUNK = 32  # tokens of a prompt that the deterministic mode reads at a time
# What a forward call costs beside its tokens, in tokens: it reads all weights, and its kernels have to be called.
_CALL_ON_CPU, _CALL = 32, 256


class FastMode:
    """The requests that are decoded together may, rarely, change what one of them draws.

    Args:
        device: Of the model.
    """

    whole_blocks = False  # keys are read up to the last position that is needed
    min_rows = 1  # of a decoding step
    keeps_any_length = True  # replies, and beginnings that prompts share, are kept wherever they end
    draw: Draw = staticmethod(by_inverse_cdf)

    def __init__(self, device: torch.device) -> None:
        self._call = _CALL_ON_CPU if device.type == "cpu" else _CALL

    def boundaries(self, prompt: list[int], turns: list[int]) -> list[int]:
        """Lengths of a prompt's beginnings that may have been kept, ascending."""
        return [*turns, len(prompt)]

    def length_to_keep(self, prompt: tuple[int, ...], shared: bool) -> int:
        """How many positions of a prompt to keep once it is read; `shared`: several requests have it."""
        return len(prompt) if shared else 0  # candidates of a context may come in several batches

    def read(
        self, extend: Extend, first: int, prompts: Sequence[tuple[int, ...]], starts: Sequence[int]
    ) -> torch.Tensor:
        """Fill the rows from `first` on with prompts, each from its start on; returns `[N, V]` logits after them.

        Prompts with the least to read come first. They are read in parts of similar length, since all of a part are
        padded to its longest.
        """
        new = [list(prompt[start:]) for prompt, start in zip(prompts, starts, strict=True)]
        cuts = cheapest_cuts(list(map(len, new)), self._call)
        logits = [extend(first + a, new[a:b], starts[a:b], None) for a, b in itertools.pairwise(cuts)]
        return torch.cat(logits)

    def threads(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which tokens are computed."""
        return contextlib.nullcontext()


def cheapest_cuts(lengths: Sequence[int], call: int) -> list[int]:
    """Where to cut rows, shortest first, into forward calls: 0, .., the number of rows.

    Args:
        lengths: Tokens of each row, ascending; all rows of a call are padded to its longest.
        call: What a call costs beside its tokens, in tokens.
    """
    cost, start = [0], [0]  # of the first rows, and where their last call starts
    for end, longest in enumerate(lengths, start=1):
        best = min((cost[a] + call + (end - a) * longest, a) for a in range(end))
        cost.append(best[0])
        start.append(best[1])
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(start[cuts[-1]])
    return cuts[::-1]


class DeterministicMode:
    """Bit-equal tokens and log-probs of a request, whatever else the engine does.

    Every decoding step has `min_rows` rows, idle ones included. Prompts are read one by one in chunks of
    `PREFILL_CHUNK` tokens that start at multiples of it. Only whole chunks are kept; replies, which were computed in
    steps, are not. Keys behind a request's end have a weight of exactly 0, and the number of keys is a multiple of
    `kv_rows.POSITION_BLOCK`, so the lengths of other requests have no effect either. Tokens are drawn by Gumbel-max,
    which needs no running sum. On a CPU one thread computes everything, because how several threads share a product
    depends on the row. Mixtures of experts are refused: how many rows an expert gets depends on the other requests.

    Args:
        min_rows: Rows of each decoding step.
    """

    whole_blocks = True
    keeps_any_length = False
    draw: Draw = staticmethod(by_gumbel_max)

    def __init__(self, min_rows: int) -> None:
        self.min_rows = min_rows

    def boundaries(self, prompt: list[int], turns: list[int]) -> list[int]:
        """See `FastMode`, here and below."""
        return list(range(PREFILL_CHUNK, len(prompt), PREFILL_CHUNK))

    def length_to_keep(self, prompt: tuple[int, ...], shared: bool) -> int:
        return (len(prompt) - 1) // PREFILL_CHUNK * PREFILL_CHUNK

    def read(
        self, extend: Extend, first: int, prompts: Sequence[tuple[int, ...]], starts: Sequence[int]
    ) -> torch.Tensor:
        last = []
        for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True), start=first):
            for position in range(start, len(prompt), PREFILL_CHUNK):
                chunk = list(prompt[position : position + PREFILL_CHUNK])
                padded = [*chunk, *[0] * (PREFILL_CHUNK - len(chunk))]
                logits = extend(row, [padded], [position], [len(chunk)])
            last.append(logits)
        return torch.cat(last)

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
