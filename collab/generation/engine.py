"""The local rollout engine: continuous batching over any Hugging Face causal LM, in the training process.

Requests wait in a queue and join the running batch between two tokens. A finished one leaves at once, so a conversation
that waits for its user takes no place. Rollouts run on the very weights that are trained, without any synchronisation;
a CPU keeps a second copy of them in a faster layout (`collab.lm.fused_linear`).

Running requests fill the rows of `kv_rows.KVRows` from the top. A new one takes the next row; a finished one is
replaced by the last. One forward call serves prompts and single tokens alike: rows `first..last` are extended by
`width` tokens each, every row from its own position on, under an explicit 4-D mask.

What conversations share is computed once. The keys and values of prompts and finished replies are kept, so the
candidates of a context and the next turn of a conversation start from them; so are those of what new prompts begin
with, such as the system prompt.

Matrix products round differently with the number of rows, so what a request draws may change, rarely, with the requests
that are decoded beside it. `deterministic=True` rules that out; see `modes.DeterministicMode`.

Shapes: N rows, T new tokens per row, L positions, V vocabulary.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from collab.chat.base import Sampling
from collab.conversation import Message, Reply
from collab.generation.drawing import draw_tokens
from collab.generation.graphs import StepGraphs, padded
from collab.generation.kv_rows import KVRows, PrefixCache, up_to_block
from collab.generation.modes import DeterministicMode, FastMode
from collab.lm.attention import additive_masks, check_layers, use_by_layout
from collab.lm.chat_format import ChatFormat, check_fits, end_tokens
from collab.lm.fused_linear import FusedLinears
from collab.lm.inner import inner_of
from collab.lm.logits import check_logits, final_logits
from collab.randomness import RngKey
from collab.util.errors import BadInput

_MIN_SHARED_PREFIX = 16  # tokens; a shorter beginning of several prompts is not read apart

# By the trunk's id, the task that decodes with it: it has changed the model and will change it back.
_DECODING: weakref.WeakValueDictionary[int, asyncio.Task[None]] = weakref.WeakValueDictionary()


@dataclass
class _Request:
    prompt: list[int]
    boundaries: list[int]  # lengths of the prompt's beginnings that may have been kept
    sampling: Sampling
    stream: np.random.Generator
    done: asyncio.Future[Reply]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ids)


class LocalEngine:
    """A `ChatModel` over local weights.

    Engines over one model take turns: one begins when the other is idle.

    Args:
        lm: A transformers causal LM, with or without a peft adapter.
        tokenizer: Its tokenizer.
        max_batch: Requests that are decoded together at most.
        cache_bytes: Memory for kept keys and values; 0 keeps none.
        deterministic: Bit-equal tokens and log-probs of a request in any batch, order of arrival or state of the
            cache, on one machine.

    Attributes:
        new_tokens: Decoded since the engine was made.
        rows: Keys and values of running requests.
        prefixes: Those that are kept.
        fused: The model's linear layers, as they are while the engine decodes.
        graphs: CUDA graphs of decoding steps.

    Raises:
        BadInput: The model computes otherwise than the engine and the update do (`check_logits`); a mixture of experts
            with `deterministic`.
    """

    def __init__(
        self, lm: Any, tokenizer: Any, max_batch: int = 64, cache_bytes: int = 2 << 30, deterministic: bool = False
    ) -> None:
        self.lm, self.tokenizer, self.max_batch = lm, tokenizer, max_batch
        self.format = ChatFormat(tokenizer)
        self._mode = DeterministicMode(max_batch) if deterministic else FastMode()
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
        self.rows = KVRows(self._config.num_hidden_layers, self._mode.whole_blocks)
        self.prefixes = PrefixCache(cache_bytes)
        self.fused = FusedLinears(lm)
        self.graphs = StepGraphs()
        self._waiting: list[_Request] = []
        self._joining: list[_Request] = []
        self._running: list[_Request] = []
        self._task: asyncio.Task[None] | None = None
        self.new_tokens = 0

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
        """Detach the engine from an event loop that was left before the engine was idle."""
        if self._task is None or self._task.done() or self._task.get_loop() is asyncio.get_running_loop():
            return
        if (self._running or self._waiting) and not self._task.get_loop().is_closed():
            raise RuntimeError("this engine has requests of another event loop: finish them there, or cancel them")
        self._running, self._joining, self._waiting = [], [], []
        self._task.get_coro().close()  # gives back what it holds of the model
        self._task = None

    def clear_cache(self, weights: bool = False) -> None:
        """Drop all that was computed from the weights. Call it whenever they have changed.

        With `weights`, also drop copies of the weights in other layouts.

        Raises:
            RuntimeError: Replies are being decoded, from keys and values that would be lost.
        """
        if self._running:
            raise RuntimeError(
                f"clear_cache() while {len(self._running)} replies are being decoded: await or cancel them"
            )
        self.fused.clear_cache(weights)
        self.graphs.clear_cache()
        self.prefixes.clear()
        self.rows.clear()

    async def _serve(self) -> None:
        try:
            await self._wait_for_others()
            with self.fused:
                while self._running or self._waiting:
                    adapter = self._next_adapter
                    with self._switched(adapter):  # not at every token: peft takes long to switch
                        while (self._running or self._waiting) and self._next_adapter == adapter:
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
            if _DECODING.get(id(self._trunk)) is self._task:
                del _DECODING[id(self._trunk)]

    async def _wait_for_others(self) -> None:
        """Wait until no other engine decodes with this model: they would undo each other's changes to it."""
        task = self._task
        assert task is not None
        while (other := _DECODING.setdefault(id(self._trunk), task)) is not task:
            if other.get_loop() is not task.get_loop():
                raise RuntimeError("another engine is at work over this model in another event loop")
            await asyncio.sleep(0)

    @property
    def _next_adapter(self) -> bool:
        """Whether the running batch, or else the next one, is decoded with the adapter on."""
        return (self._running or self._waiting)[0].sampling.adapter

    def _switched(self, adapter: bool) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model computes with the adapter on or off."""
        as_it_is = adapter or not hasattr(self.lm, "disable_adapter")
        return contextlib.nullcontext() if as_it_is else self.lm.disable_adapter()

    # --- joining -----------------------------------------------------------------------------------------------

    def _admit(self, adapter: bool) -> None:
        """Prefill waiting requests and give each its first token.

        A batch has the adapter on or off for all, never mixed. The other kind waits until the batch is empty; once the
        oldest waiting request is of the other kind, no request joins any more.
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
        self.rows.reserve(min(self.max_batch, base + len(fitting)), reach)
        same: OrderedDict[tuple[int, ...], list[_Request]] = OrderedDict()
        for request in fitting:
            same.setdefault(tuple(request.prompt), []).append(request)
        found = [(*item, *self.prefixes.longest(adapter, item[0], item[1][0].boundaries)) for item in same.items()]
        if self._mode.keeps_any_length:
            length = self._read_shared_prefix(adapter, [prompt for prompt, _, _, start in found if not start], base)
            copy = self.rows.copy_out(base, length) if length else None
            found = [f if f[3] or not length else (*f[:2], copy, min(length, len(f[0]) - 1)) for f in found]
        prompts, sharing, kept, starts = zip(*sorted(found, key=lambda f: len(f[0]) - f[3]), strict=True)
        for offset, (prefix, length) in enumerate(zip(kept, starts, strict=True)):
            if prefix is not None:
                self.rows.copy_in(base + offset, prefix, length)
        logits = self._mode.read(self._extend, base, prompts, starts)
        # Spread each distinct prompt over the rows of those who share it, from the bottom up so that no source is
        # overwritten before it is copied.
        sources = [i for i, requests in enumerate(sharing) for _ in requests]
        flat = [request for requests in sharing for request in requests]
        for offset in reversed(range(len(flat))):
            if sources[offset] != offset:
                self.rows.copy_row(base + sources[offset], base + offset, len(flat[offset].prompt))
        for i, (prompt, requests) in enumerate(zip(prompts, sharing, strict=True)):
            same_waits = any(r.prompt == requests[0].prompt and r.sampling.adapter == adapter for r in self._waiting)
            length = self._mode.length_to_keep(prompt, same_waits or len(requests) > 1)
            if length:
                self.prefixes.keep(adapter, prompt[:length], self.rows, base + sources.index(i))
        self._running, self._joining = self._running + flat, []
        self._draw(flat, logits[sources])
        self._retire()

    def _read_shared_prefix(self, adapter: bool, prompts: Sequence[tuple[int, ...]], row: int) -> int:
        """Read what all prompts begin with, such as the system prompt, into a row, and keep it for later prompts.

        Returns its length; 0 where that saves nothing.
        """
        first, last = min(prompts, default=()), max(prompts, default=())  # the two that differ first
        common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        if len(prompts) < 2 or common < _MIN_SHARED_PREFIX:
            return 0
        self._extend(row, [list(first[:common])], [0])
        self.prefixes.keep(adapter, first[:common], self.rows, row, shared=True)
        return common

    # --- one token for all -------------------------------------------------------------------------------------

    def _step(self) -> None:
        if not self._running:
            return
        new = [[request.ids[-1]] for request in self._running]
        starts = [request.length - 1 for request in self._running]
        new, starts = self._mode.rows(new, starts)
        logits = self._replay(new, starts) if self.graphs.usable(self._head.weight.device) else None
        logits = self._extend(0, new, starts) if logits is None else logits
        self._draw(self._running, logits[: len(self._running)])
        self._retire()

    def _extend(
        self, first: int, new: list[list[int]], starts: Sequence[int], sizes: list[int] | None = None
    ) -> torch.Tensor:
        """Append tokens `new[i]` to row `first + i`, whose filled part ends at `starts[i]`.

        Returns `[N, V]` logits after the last token of each, or after the first `sizes[i]` where the rest is padding.
        """
        device = self._head.weight.device
        width = max(len(ids) for ids in new)
        self.rows.reserve(first + len(new), max(starts) + width)
        reach = self.rows.keys_to_read(max(starts) + width, width, device)
        ends = torch.tensor(sizes or [len(ids) for ids in new], device=device) - 1
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in new], device=device)
        # A short row's surplus positions lie behind its end: no one attends to them, and the next write replaces them.
        positions = (torch.tensor(starts)[:, None] + torch.arange(width)).to(device)
        # Whole prompts are plainly causal: whatever pads a short row lies behind its end.
        hidden = self._forward(first, ids, positions, reach, masked=any(starts) or reach != width)
        return self._logits(hidden[torch.arange(len(new), device=device), ends])

    def _replay(self, new: list[list[int]], starts: Sequence[int]) -> torch.Tensor | None:
        """`_extend` of the first rows by one token each, from a CUDA graph; `[N or more, V]`, None without a graph."""
        new, starts = padded(new, starts, self.max_batch)
        reach = up_to_block(max(starts) + 1)
        self.rows.reserve(len(new), reach)
        self.graphs.keep_if(self.rows.data, *self.fused.adapter_tensors())

        def step(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return self._logits(self._forward(0, ids, positions, reach, masked=True)[:, 0])

        device = self._head.weight.device
        ids, positions = torch.tensor(new, device=device), torch.tensor(starts, device=device)[:, None]
        return self.graphs.run((reach, self._next_adapter), step, ids, positions)

    def _forward(
        self, first: int, ids: torch.Tensor, positions: torch.Tensor, reach: int, masked: bool
    ) -> torch.Tensor:
        """Append `[N, T]` tokens at their positions to the rows from `first` on; `[N, T, channels]` hidden states."""
        self.rows.select(first, first + len(ids), positions, reach)
        mask: Any = None
        if masked:
            keys = torch.arange(reach, device=ids.device)[None]
            visible = positions[:, :, None] >= keys[:, None]  # [N, T, L]
            mask = additive_masks(self._config, visible, positions, keys, self._head.weight.dtype)
        hidden: torch.Tensor = self._trunk(
            input_ids=ids,
            position_ids=positions.clamp(max=self._limit - 1) if self._limit else positions,  # of the surplus
            attention_mask=mask,
            past_key_values=self.rows.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return final_logits(self._head(hidden), self._config)

    def _draw(self, requests: list[_Request], logits: torch.Tensor) -> None:
        """Append one token to each request."""
        samplings, streams = [r.sampling for r in requests], [r.stream for r in requests]
        tokens, logprobs = draw_tokens(logits, samplings, streams, self._mode.draw)
        for request, token, logprob in zip(requests, tokens, logprobs, strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
        self.new_tokens += len(requests)

    def _retire(self) -> None:
        """Hand over finished replies and close the gaps with the last rows."""
        for row in reversed(range(len(self._running))):
            request = self._running[row]
            stopped = request.ids[-1] in self._stops and not request.sampling.ignore_eos or self._says_stop(request)
            done = stopped or len(request.ids) >= request.sampling.max_new_tokens
            if not done and not request.done.cancelled():
                continue
            # The last token was drawn but never fed: keys and values end one before it.
            if done and self._mode.keeps_any_length:
                ids = (*request.prompt, *request.ids)
                self.prefixes.keep(request.sampling.adapter, ids, self.rows, row, len(ids) - 1)
            last = len(self._running) - 1
            if row != last:
                self.rows.copy_row(last, row, self._running[last].length)
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
