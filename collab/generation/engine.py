"""The local rollout engine: continuous batching over any Hugging Face causal LM, in the training process.

Requests wait in a queue and join the running batch between two tokens; whoever finishes leaves at once, so a
conversation that waits for its user holds no place. Rollouts run on the very weights that are trained, without any
synchronisation; a CPU alone keeps them in a second, faster layout (`fused_linear`).

How a batch lies in memory: one tensor holds the keys of all layers, another the values, `[layer, row, head, position,
channel]`; on a CPU the keys of a channel lie side by side (see `attention.by_layout`). Running requests fill the
rows from the top; a new one takes the next row, a finished one is replaced by the last. One forward call serves prompts
and single tokens alike: rows `first..last` are extended by `width` tokens each, every row from its own position on,
under an explicit 4-D mask.

What conversations share is computed once: the keys and values of prompts and finished replies are kept (least recently
used ones are dropped), so the candidates of a context and the next turn of a conversation start from them; and so is
what new prompts begin with, such as the system prompt.

Matrix products round differently with the number of rows, so what a request draws may change, rarely, with whoever
happens to be decoded beside it. `deterministic=True` takes all such freedom away; `_Fixed` says how.

Shapes: N rows, T new tokens per row, L positions, V vocabulary.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicLayer

from collab.chat.base import Sampling
from collab.conversation import Message, Reply
from collab.generation.graphs import StepGraphs, padded
from collab.lm.attention import additive_masks, check_layers, use_by_layout
from collab.lm.chat_format import ChatFormat, check_fits, end_tokens
from collab.lm.fused_linear import FusedLinears
from collab.lm.inner import inner_of
from collab.lm.logits import check_logits, final_logits
from collab.randomness import RngKey
from collab.util.errors import BadInput

_CHUNK = 32  # tokens of a prompt that the deterministic mode reads at a time
_STRIDE = 64  # positions by which the memory of rows grows, and a deterministic row's keys
_BLOCK = 256  # tokens of the vocabulary whose probabilities are added up first
_PADDING = 256  # tokens of padding for which prompts of other lengths are not read apart
_OPENING = 16  # tokens that new prompts have in common from which on they are read once

# By the model's id, who has changed it and will change it back.
_AT_WORK: weakref.WeakValueDictionary[int, asyncio.Task[None]] = weakref.WeakValueDictionary()


@dataclass
class _Request:
    prompt: list[int]
    boundaries: list[int]
    sampling: Sampling
    stream: np.random.Generator
    done: asyncio.Future[Reply]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ids)


class _RowsLayer(DynamicLayer):
    """One layer's view of the shared key/value tensor, in transformers' cache interface."""

    def __init__(self, rows: _Rows, index: int) -> None:
        super().__init__()
        self.rows, self.index = rows, index

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows.write(self.index, key_states, value_states)


class _Rows:
    """Keys and values of the running requests, two tensors `[layer, row, head, position, channel]`."""

    def __init__(self, layers: int, whole_blocks: bool) -> None:
        self.data: tuple[torch.Tensor, torch.Tensor] | None = None
        self.layers, self.whole_blocks = layers, whole_blocks
        self.wanted = (0, 0)  # rows, positions
        self.first = self.last = self.reach = 0
        self.row_index = self.positions = torch.empty(0)
        self.cache = Cache(layers=[_RowsLayer(self, index) for index in range(layers)])

    def reserve(self, rows: int, positions: int) -> None:
        """Grow (never shrink) to hold so many rows and positions."""
        self.wanted = (max(self.wanted[0], rows), max(self.wanted[1], -(-positions // _STRIDE) * _STRIDE))
        if self.data is not None and (self.data[0].shape[1], self.data[0].shape[3]) != self.wanted:
            older, self.data = self.data, self._empty(*(part[0, 0, :, 0] for part in self.data))
            for part, filled in zip(self.data, older, strict=True):
                part[:, : filled.shape[1], :, : filled.shape[3]] = filled

    def _empty(self, *like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values for all that is wanted, with the heads and channels of `like`, `[head, channel]` each."""
        (heads, key_channels), (_, value_channels) = like[0].shape, like[1].shape
        rows, positions = self.wanted
        if like[0].device.type == "cpu":
            keys = like[0].new_zeros(self.layers, rows, heads, key_channels, positions).transpose(3, 4)
        else:
            keys = like[0].new_zeros(self.layers, rows, heads, positions, key_channels)
        return keys, like[1].new_zeros(self.layers, rows, heads, positions, value_channels)

    def seen(self, positions: int, width: int, device: torch.device) -> int:
        """How many keys a forward call of so many tokens a row reads to see so many positions.

        A CPU multiplies single queries with whole rows faster than with parts of them, which it copies first.
        """
        if self.whole_blocks:
            return -(-positions // _STRIDE) * _STRIDE
        whole = device.type == "cpu" and width == 1 and 3 * positions > 2 * self.wanted[1]
        return self.wanted[1] if whole else positions

    def aim(self, first: int, last: int, positions: torch.Tensor, reach: int) -> None:
        """Choose the rows and, `[N, T]`, the positions that the next forward call writes; it sees `reach` keys."""
        self.first, self.last, self.positions, self.reach = first, last, positions, reach
        self.row_index = torch.arange(first, last, device=positions.device)[:, None]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.data is None:
            self.data = self._empty(keys[0, :, 0], values[0, :, 0])
        held = self.data[0][layer], self.data[1][layer]
        for part, new in zip(held, (keys, values), strict=True):
            part[self.row_index, :, self.positions] = new.transpose(1, 2)
        seen = slice(self.first, self.last), slice(None), slice(self.reach)
        return held[0][seen], held[1][seen]

    def nbytes(self, length: int) -> int:
        """What so many positions of a row take."""
        assert self.data is not None
        return sum(part[:, 0, :, :length].nbytes for part in self.data)

    def take(self, row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of a row's first positions, `[layer, head, position, channel]`."""
        assert self.data is not None
        return self.data[0][:, row, :, :length].clone(), self.data[1][:, row, :, :length].clone()

    def put(self, row: int, kept: tuple[torch.Tensor, torch.Tensor], length: int) -> None:
        assert self.data is not None
        for part, source in zip(self.data, kept, strict=True):
            part[:, row, :, :length] = source[:, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        assert self.data is not None
        for part in self.data:
            part[:, target, :, :length] = part[:, source, :, :length]


class _Free:
    """How the engine reads, keeps and draws when it is to be fast."""

    whole_blocks = False
    keeps_anything = True  # openings and replies too, wherever they end

    def boundaries(self, prompt: list[int], turns: list[int]) -> list[int]:
        """Lengths of a prompt's beginnings that may have been kept, ascending."""
        return [*turns, len(prompt)]

    def kept_of(self, prompt: tuple[int, ...], shared: bool) -> int:
        """How much of a prompt, which several requests came with or one, to keep once it is read."""
        return len(prompt) if shared else 0  # a context's candidates: a next one may come in another batch

    def read(
        self, engine: LocalEngine, first: int, prompts: Sequence[tuple[int, ...]], starts: Sequence[int]
    ) -> torch.Tensor:
        """Fill the rows from `first` on with prompts, from `starts` on; `[N, V]` logits after their last tokens.

        Prompts come with the least to read first, and are read in parts of like length: all at once, each would be
        padded to the longest.
        """
        parts: list[list[list[int]]] = []
        for prompt, start in zip(prompts, starts, strict=True):
            new = list(prompt[start:])
            if not parts or (len(parts[-1]) + 1) * len(new) > 2 * sum(map(len, [*parts[-1], new])) + _PADDING:
                parts.append([])
            parts[-1].append(new)
        logits, row = [], 0
        for part in parts:
            logits.append(engine._extend(first + row, part, starts[row : row + len(part)]))
            row += len(part)
        return torch.cat(logits)

    def rows(self, new: list[list[int]], starts: list[int]) -> tuple[list[list[int]], list[int]]:
        """The rows of a decoding step."""
        return new, starts

    def draw(self, scores: torch.Tensor, streams: Sequence[np.random.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, V]` scores and each request's randomness -> `[N]` tokens and what makes log-probs of their scores."""
        return _inverse_cdf(scores, torch.tensor([s.random() for s in streams], device=scores.device))

    def threads(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()


class _Fixed(_Free):
    """How it does so when a request's tokens must not depend on anything else.

    Every decoding step has `slots` rows, idle ones included. Prompts are read one by one in chunks of `_CHUNK` tokens
    that start at multiples of it; only whole chunks are kept, and no reply, since it was computed in steps and not in
    chunks. Keys behind a request's end weigh exactly nothing, and their number is a multiple of `_STRIDE`, so the
    company's lengths do not show either. Tokens are drawn as the largest of perturbed logits (Gumbel-max), which turns
    on no running sum. On a CPU one thread does it all: how several share out a product depends on the row. Mixtures of
    experts are refused: how many rows an expert gets depends on what the company says.
    """

    whole_blocks = True
    keeps_anything = False

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def boundaries(self, prompt: list[int], turns: list[int]) -> list[int]:
        return list(range(_CHUNK, len(prompt), _CHUNK))

    def kept_of(self, prompt: tuple[int, ...], shared: bool) -> int:
        return (len(prompt) - 1) // _CHUNK * _CHUNK

    def read(
        self, engine: LocalEngine, first: int, prompts: Sequence[tuple[int, ...]], starts: Sequence[int]
    ) -> torch.Tensor:
        last = []
        for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True), start=first):
            for position in range(start, len(prompt), _CHUNK):
                chunk = list(prompt[position : position + _CHUNK])
                padded = [*chunk, *[0] * (_CHUNK - len(chunk))]
                logits = engine._extend(row, [padded], [position], sizes=[len(chunk)])
            last.append(logits)
        return torch.cat(last)

    def rows(self, new: list[list[int]], starts: list[int]) -> tuple[list[list[int]], list[int]]:
        idle = self.slots - len(new)
        return [*new, *[[0]] * idle], [*starts, *[0] * idle]

    def draw(self, scores: torch.Tensor, streams: Sequence[np.random.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        return _gumbel_max(scores, streams)

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class LocalEngine:
    """A `ChatModel` over local weights.

    Args:
        lm: A transformers causal LM, with or without a peft adapter.
        tokenizer: Its tokenizer.
        max_batch: Requests that are decoded together at most.
        cache_bytes: Memory for kept keys and values; 0 keeps none.
        deterministic: Bit-equal tokens and log-probs of a request in any batch, order of arrival or state of the
            cache, on one machine.

    Engines over one model take turns: one begins when the other is idle.

    Raises:
        BadInput: The model computes otherwise than the engine and the update do (`check_logits`); a mixture of experts
            with `deterministic`.
    """

    def __init__(
        self, lm: Any, tokenizer: Any, max_batch: int = 64, cache_bytes: int = 2 << 30, deterministic: bool = False
    ) -> None:
        self.lm, self.tokenizer, self.max_batch, self.cache_bytes = lm, tokenizer, max_batch, cache_bytes
        self._mode = _Fixed(max_batch) if deterministic else _Free()
        self.format = ChatFormat(tokenizer)
        inner = inner_of(lm)
        self._trunk, self._head = inner.get_decoder(), inner.get_output_embeddings()
        self._config = inner.config.get_text_config()
        check_layers(self._config)
        if deterministic and any("experts" in name and value for name, value in self._config.to_dict().items()):
            raise BadInput(
                f"engine.deterministic=true, and {type(inner).__name__} is a mixture of experts: how many rows an "
                "expert gets depends on what is decoded beside a request. Set engine.deterministic=false, or take a "
                "model without experts."
            )
        use_by_layout(inner)
        check_logits(inner)
        self._stops = end_tokens(lm, tokenizer)
        self._limit = getattr(self._config, "max_position_embeddings", None)
        self._rows = _Rows(self._config.num_hidden_layers, self._mode.whole_blocks)
        self._fused = FusedLinears(lm)
        self._graphs = StepGraphs()
        self._waiting: list[_Request] = []
        self._joining: list[_Request] = []
        self._running: list[_Request] = []
        self._kept: OrderedDict[tuple[bool, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._kept_bytes = 0
        self._openings: set[int] = set()  # lengths of beginnings that prompts had in common
        self._task: asyncio.Task[None] | None = None
        self.new_tokens = 0  # decoded since the engine was made

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        """One reply; see `ChatModel`.

        Raises:
            BadInput: The prompt is empty or does not fit the model's positions; the model's logits are not finite.
            RuntimeError: Another event loop has requests in this engine, or is served by another one over its model.
        """
        prompt, boundaries = self.format.encode(messages)
        check_fits(prompt, sampling.max_new_tokens, self._limit)
        self._leave_other_loop()
        boundaries = self._mode.boundaries(prompt, boundaries)
        done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(prompt, boundaries, sampling, key.stream(), done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())
        return await done

    def _leave_other_loop(self) -> None:
        """Take the engine out of an event loop that was left before the engine was idle in it."""
        if self._task is None or self._task.done() or self._task.get_loop() is asyncio.get_running_loop():
            return
        if (self._running or self._waiting) and not self._task.get_loop().is_closed():
            raise RuntimeError("this engine has requests of another event loop: finish them there, or cancel them")
        self._running, self._joining, self._waiting = [], [], []
        self._task.get_coro().close()  # gives back what it holds of the model
        self._task = None

    def clear_cache(self, weights: bool = False) -> None:
        """Drop all that was computed from the weights. Call it whenever they have changed.

        With `weights`, also copies of the weights themselves in other layouts.

        Raises:
            RuntimeError: Replies are being decoded, from keys and values that would be lost.
        """
        if self._running:
            raise RuntimeError(
                f"clear_cache() while {len(self._running)} replies are being decoded: await or cancel them"
            )
        self._fused.clear_cache(weights)
        self._graphs.clear_cache()
        self._kept.clear()
        self._kept_bytes = 0
        self._openings.clear()
        self._rows.data, self._rows.wanted = None, (0, 0)

    async def _serve(self) -> None:
        try:
            await self._turn()
            with self._fused:
                while self._running or self._waiting:
                    adapter = self._adapter
                    with self._speaker(adapter):  # not at every token: peft takes long to switch
                        while (self._running or self._waiting) and self._adapter == adapter:
                            with torch.no_grad(), self._mode.threads():
                                self._admit(adapter)
                                self._step()
                            # Let conversations take their replies, ask their users and come back before the next token.
                            for _ in range(4):
                                await asyncio.sleep(0)
        except BaseException as error:
            for request in (*self._running, *self._joining, *self._waiting):
                if not request.done.done():
                    request.done.set_exception(error if isinstance(error, Exception) else RuntimeError(str(error)))
            self._running, self._joining, self._waiting = [], [], []
            if not isinstance(error, Exception):
                raise
        finally:
            if _AT_WORK.get(id(self._trunk)) is self._task:
                del _AT_WORK[id(self._trunk)]

    async def _turn(self) -> None:
        """Wait until no other engine is at work over the same model: they would undo each other's changes to it."""
        task = self._task
        assert task is not None
        while (other := _AT_WORK.setdefault(id(self._trunk), task)) is not task:
            if other.get_loop() is not task.get_loop():
                raise RuntimeError("another engine is at work over this model in another event loop")
            await asyncio.sleep(0)

    @property
    def _adapter(self) -> bool:
        """Whether the batch that speaks, or else the next one, does so with the adapter on."""
        return (self._running or self._waiting)[0].sampling.adapter

    def _speaker(self, adapter: bool) -> contextlib.AbstractContextManager[Any]:
        as_it_is = adapter or not hasattr(self.lm, "disable_adapter")
        return contextlib.nullcontext() if as_it_is else self.lm.disable_adapter()

    # --- joining -----------------------------------------------------------------------------------------------

    def _admit(self, adapter: bool) -> None:
        """Prefill waiting requests of one kind and give each its first token.

        A batch speaks with the adapter on or off, never mixed: others wait until it is empty, and once the oldest that
        waits is such a one, nobody joins any more.
        """
        self._waiting = [request for request in self._waiting if not request.done.cancelled()]
        if not self._waiting or len(self._running) >= self.max_batch:
            return
        if self._waiting[0].sampling.adapter != adapter:
            return
        fitting = [r for r in self._waiting if r.sampling.adapter == adapter][: self.max_batch - len(self._running)]
        self._joining = fitting
        chosen = {id(request) for request in fitting}
        self._waiting = [request for request in self._waiting if id(request) not in chosen]
        base = len(self._running)
        reach = max(r.length + r.sampling.max_new_tokens for r in (*self._running, *fitting))
        self._rows.reserve(min(self.max_batch, base + len(fitting)), reach)
        same: OrderedDict[tuple[int, ...], list[_Request]] = OrderedDict()
        for request in fitting:
            same.setdefault(tuple(request.prompt), []).append(request)
        found = [(*item, *self._longest_kept(adapter, item[0], item[1][0].boundaries)) for item in same.items()]
        if self._mode.keeps_anything:
            length = self._read_opening(adapter, [prompt for prompt, _, _, start in found if not start], base)
            copy = self._rows.take(base, length) if length else None
            found = [f if f[3] or not length else (*f[:2], copy, min(length, len(f[0]) - 1)) for f in found]
        prompts, sharing, kept, starts = zip(*sorted(found, key=lambda f: len(f[0]) - f[3]), strict=True)
        for offset, (prefix, length) in enumerate(zip(kept, starts, strict=True)):
            if prefix is not None:
                self._rows.put(base + offset, prefix, length)
        logits = self._mode.read(self, base, prompts, starts)
        # Spread each distinct prompt over the rows of those who share it, from the bottom up so that no source is
        # overwritten before it is copied.
        sources = [i for i, requests in enumerate(sharing) for _ in requests]
        flat = [request for requests in sharing for request in requests]
        for offset in reversed(range(len(flat))):
            if sources[offset] != offset:
                self._rows.move(base + sources[offset], base + offset, len(flat[offset].prompt))
        for i, (prompt, requests) in enumerate(zip(prompts, sharing, strict=True)):
            same_waits = any(r.prompt == requests[0].prompt and r.sampling.adapter == adapter for r in self._waiting)
            length = self._mode.kept_of(prompt, same_waits or len(requests) > 1)
            if length:
                self._keep(adapter, prompt[:length], base + sources.index(i))
        self._running, self._joining = self._running + flat, []
        self._draw(flat, logits[sources])
        self._retire()

    def _read_opening(self, adapter: bool, prompts: Sequence[tuple[int, ...]], row: int) -> int:
        """Read what all prompts begin with, such as the system prompt, into a row and keep it for later ones.

        Returns its length; 0 where it is not worth it.
        """
        first, last = min(prompts, default=()), max(prompts, default=())  # the two that differ first
        common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        if len(prompts) < 2 or common < _OPENING:
            return 0
        self._extend(row, [list(first[:common])], [0])
        self._keep(adapter, first[:common], row)
        self._openings.add(common)
        return common

    def _longest_kept(
        self, adapter: bool, prompt: tuple[int, ...], boundaries: list[int]
    ) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, int]:
        """The longest kept prefix and how many of its positions may be used: the last token is always computed."""
        for boundary in sorted({*boundaries, *self._openings}, reverse=True):
            kept = self._kept.get((adapter, prompt[:boundary]))
            if kept is not None:
                self._kept.move_to_end((adapter, prompt[:boundary]))
                return kept, min(kept[0].shape[2], len(prompt) - 1)
        return None, 0

    def _keep(self, adapter: bool, ids: tuple[int, ...], row: int, length: int | None = None) -> None:
        length = len(ids) if length is None else length
        if (adapter, ids) in self._kept or self._rows.nbytes(length) > self.cache_bytes:
            return
        kept = self._rows.take(row, length)
        self._kept[adapter, ids] = kept
        self._kept_bytes += sum(part.nbytes for part in kept)
        while self._kept_bytes > self.cache_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= sum(part.nbytes for part in dropped)

    # --- one token for all -------------------------------------------------------------------------------------

    def _step(self) -> None:
        if not self._running:
            return
        new = [[request.ids[-1]] for request in self._running]
        starts = [request.length - 1 for request in self._running]
        new, starts = self._mode.rows(new, starts)
        logits = self._replay(new, starts) if self._graphs.usable(self._head.weight.device) else None
        logits = self._extend(0, new, starts) if logits is None else logits
        self._draw(self._running, logits[: len(self._running)])
        self._retire()

    def _extend(
        self, first: int, new: list[list[int]], starts: Sequence[int], sizes: list[int] | None = None
    ) -> torch.Tensor:
        """Append `new[i]` to row `first + i`, whose filled part ends at `starts[i]`.

        Returns `[N, V]` logits after the last token of each, or after the first `sizes[i]` where the rest is padding.
        """
        device = self._head.weight.device
        width = max(len(ids) for ids in new)
        self._rows.reserve(first + len(new), max(starts) + width)
        reach = self._rows.seen(max(starts) + width, width, device)
        ends = torch.tensor(sizes or [len(ids) for ids in new], device=device) - 1
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in new], device=device)
        # A short row's surplus positions lie behind its end: no one attends to them, and the next write replaces them.
        positions = (torch.tensor(starts)[:, None] + torch.arange(width)).to(device)
        # Whole prompts are plainly causal: whatever pads a short row lies behind its end.
        hidden = self._forward(first, ids, positions, reach, masked=any(starts) or reach != width)
        return self._logits(hidden[torch.arange(len(new), device=device), ends])

    def _replay(self, new: list[list[int]], starts: Sequence[int]) -> torch.Tensor | None:
        """As `_extend` of the first rows by a token each, `[N or more, V]`, from a CUDA graph; None where it cannot."""
        new, starts = padded(new, starts, self.max_batch)
        reach = -(-(max(starts) + 1) // _STRIDE) * _STRIDE
        self._rows.reserve(len(new), reach)
        self._graphs.keep_if(self._rows.data, *self._fused.adapter_tensors())

        def step(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return self._logits(self._forward(0, ids, positions, reach, masked=True)[:, 0])

        device = self._head.weight.device
        ids, positions = torch.tensor(new, device=device), torch.tensor(starts, device=device)[:, None]
        return self._graphs.run((reach, self._adapter), step, ids, positions)

    def _forward(
        self, first: int, ids: torch.Tensor, positions: torch.Tensor, reach: int, masked: bool
    ) -> torch.Tensor:
        """Append `[N, T]` tokens at their positions to the rows from `first` on; `[N, T, channels]` hidden states."""
        self._rows.aim(first, first + len(ids), positions, reach)
        mask: Any = None
        if masked:
            keys = torch.arange(reach, device=ids.device)[None]
            visible = positions[:, :, None] >= keys[:, None]  # [N, T, L]
            mask = additive_masks(self._config, visible, positions, keys, self._head.weight.dtype)
        hidden: torch.Tensor = self._trunk(
            input_ids=ids,
            position_ids=positions.clamp(max=self._limit - 1) if self._limit else positions,  # of the surplus
            attention_mask=mask,
            past_key_values=self._rows.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return final_logits(self._head(hidden), self._config)

    def _draw(self, requests: list[_Request], logits: torch.Tensor) -> None:
        """Append one token to each request."""
        temperatures = torch.tensor([r.sampling.temperature for r in requests], device=logits.device)
        scaled = logits / temperatures.clamp(min=1e-6)[:, None]  # in fp32, as temperatures are
        if not scaled.amax(-1).isfinite().all():  # minus infinity, which forbids a token, passes
            raise BadInput(
                "The policy's logits are not finite: its weights have diverged, or are damaged. Lower algorithm.lr and "
                "go on from an earlier checkpoint."
            )
        for i, request in enumerate(requests):
            if request.sampling.top_k or request.sampling.top_p < 1:
                scaled[i] = _filtered(scaled[i], request.sampling)
        drawn, normaliser = self._mode.draw(scaled, [request.stream for request in requests])
        if any(request.sampling.temperature == 0 for request in requests):
            drawn = torch.where(temperatures > 0, drawn, logits.argmax(-1))
        chosen = scaled.gather(-1, drawn[:, None])[:, 0] - normaliser
        for request, token, logprob in zip(requests, drawn.tolist(), chosen.tolist(), strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
        self.new_tokens += len(requests)

    def _retire(self) -> None:
        """Hand over what is finished and close the gaps with the last rows."""
        for row in reversed(range(len(self._running))):
            request = self._running[row]
            stopped = request.ids[-1] in self._stops and not request.sampling.ignore_eos or self._says_stop(request)
            done = stopped or len(request.ids) >= request.sampling.max_new_tokens
            if not done and not request.done.cancelled():
                continue
            # The last token was drawn but never fed: keys and values end one before it.
            if done and self._mode.keeps_anything:
                ids = (*request.prompt, *request.ids)
                self._keep(request.sampling.adapter, ids, row, len(ids) - 1)
            last = len(self._running) - 1
            if row != last:
                self._rows.move(last, row, self._running[last].length)
                self._running[row] = self._running[last]
            self._running.pop()
            if not request.done.done():
                request.done.set_result(self._reply(request, stopped))

    def _says_stop(self, request: _Request) -> bool:
        if not (stops := request.sampling.stop):
            return False
        # A token holds a byte or more, and a character has four at most.
        tail = request.ids[-4 * max(map(len, stops)) :]
        text = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in stops)

    def _reply(self, request: _Request, stopped: bool) -> Reply:
        return Reply(
            text=self.format.decode(request.ids, request.sampling.stop),
            token_ids=tuple(request.ids),
            logprobs=tuple(request.logprobs),
            finish_reason="stop" if stopped else "length",
            prompt_ids=tuple(request.prompt),
        )


def _inverse_cdf(scores: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[N, V]` scores and `[N]` numbers in 0..1 -> `[N]` tokens and the log of each row's summed exponentials.

    A running sum over the vocabulary is most of what drawing costs, so it runs over sums of `_BLOCK` tokens, and then
    over the tokens of the block that was hit.
    """
    top = scores.amax(-1, keepdim=True)
    mass = (scores - top).exp_()
    missing = -mass.shape[1] % _BLOCK
    blocks = (F.pad(mass, (0, missing)) if missing else mass).unflatten(1, (-1, _BLOCK))
    reached = blocks.sum(-1).cumsum(-1)
    total = reached[:, -1]
    points = torch.minimum(uniforms * total, _just_below(total))[:, None]
    hit = torch.searchsorted(reached, points, right=True)
    passed = F.pad(reached, (1, 0)).gather(1, hit)
    inside = blocks.take_along_dim(hit[:, :, None], 1)[:, 0].cumsum(-1)
    rest = torch.minimum((points - passed).clamp(min=0), _just_below(inside[:, -1:]))
    return (hit * _BLOCK + torch.searchsorted(inside, rest, right=True))[:, 0], top[:, 0] + total.log()


def _just_below(mass: torch.Tensor) -> torch.Tensor:
    """Rounding may reach the whole mass, and what lies behind it is impossible or no token at all."""
    return mass.nextafter(mass.new_zeros(()))


def _gumbel_max(scores: torch.Tensor, streams: Sequence[np.random.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_inverse_cdf`, by V draws of each request's own stream."""
    # An exponential draw of 0 would win whatever its token's probability is.
    exponential = np.stack([stream.standard_exponential(scores.shape[-1]) for stream in streams]).clip(min=1e-30)
    return (scores - torch.from_numpy(np.log(exponential)).to(scores)).argmax(-1), scores.logsumexp(-1)


def _filtered(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """`[V]` logits with everything outside top-k and the nucleus at minus infinity."""
    if sampling.top_k:
        threshold = logits.topk(min(sampling.top_k, logits.shape[-1])).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.index_fill(0, order[before >= sampling.top_p], -torch.inf)
    return logits
