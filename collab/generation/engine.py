"""The local rollout engine: continuous batching over any Hugging Face causal LM, in the training process.

Requests wait in a queue and join the running batch between two tokens. A finished request leaves at once, so a
conversation that waits for its user takes no place. Rollouts run on the very weights that are trained, without any
synchronisation; a CPU keeps a second copy of them in a faster layout (`collab.lm.fused_linear`).

Running requests fill the rows of `kv_rows.KVRows` from the top. A new request takes the next row; the last one takes
the row of a finished one. One forward call serves prompts and single tokens alike: rows `first..last` are extended by
`width` tokens each, every row from its own position on, under an explicit 4-D mask.

What conversations share is computed once. The keys and values of prompts and finished replies are kept: the candidates
of a context and the next turn of a conversation start from them. The beginning that new prompts share, such as a system
prompt, is kept too.

Matrix products round differently with the number of rows. So the requests that are decoded together may, rarely, change
what one of them draws. `deterministic=True` rules that out; see `modes.DeterministicMode`.

Shapes: N rows, T new tokens per row, L positions, V vocabulary.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from collab.chat.base import Sampling
from collab.conversation import Message, Reply
from collab.generation.drawing import draw_tokens
from collab.generation.graphs import StepGraphs
from collab.generation.kv_rows import KeyValues, KVRows, PrefixCache, up_to_block
from collab.generation.modes import DeterministicMode, FastMode
from collab.generation.schemas import Schemas, forbid
from collab.lm.attention import additive_masks, check_layers, use_by_layout
from collab.lm.chat_format import ChatFormat, check_fits, end_tokens
from collab.lm.fused_linear import FusedLinears
from collab.lm.inner import inner_of
from collab.lm.logits import check_logits, final_logits
from collab.randomness import RngKey
from collab.util.errors import BadInput

_MIN_SHARED_PREFIX = 16  # tokens; a shorter beginning of several prompts is read with each of them


@dataclass(eq=False)
class _Request:
    prompt: tuple[int, ...]
    boundaries: list[int]  # lengths of the prompt's beginnings that may have been kept
    sampling: Sampling
    stream: np.random.Generator
    done: asyncio.Future[Reply]
    matcher: Any = None  # of `sampling.schema`
    on_token: Callable[[Sequence[int]], None] | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ids)


@dataclass
class _Prompt:
    """A prompt that is about to be read."""

    ids: tuple[int, ...]
    requests: list[_Request]  # all that have it
    kept: KeyValues | None  # keys and values of its beginning
    start: int  # positions of that beginning; the rest is to be read


class LocalEngine:
    """A `ChatModel` over local weights.

    One event loop at a time may use an engine, and one engine at a time may decode with a model.

    Args:
        lm: A transformers causal LM, with or without a peft adapter.
        tokenizer: Its tokenizer.
        max_batch: Largest number of requests that are decoded together.
        cache_bytes: Memory for kept keys and values; 0 keeps none.
        deterministic: Bit-equal tokens and log-probs of a request in any batch, order of arrival or state of the
            cache, on one machine.

    Attributes:
        new_tokens: Number of tokens decoded since the engine was made.
        positions: Maximum tokens of a conversation; None for no limit.
        rows: Keys and values of running requests.
        prefixes: Kept keys and values.
        graphs: CUDA graphs of decoding steps.

    Raises:
        BadInput: The model's logits are not those that the engine and the update compute (`check_logits`); a mixture of
            experts with `deterministic`.
    """

    def __init__(
        self, lm: Any, tokenizer: Any, max_batch: int = 64, cache_bytes: int = 2 << 30, deterministic: bool = False
    ) -> None:
        self.lm, self.tokenizer, self.max_batch = lm, tokenizer, max_batch
        self.format = ChatFormat(tokenizer)
        self._mode = DeterministicMode(max_batch) if deterministic else FastMode(lm.device)
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
        self._stops = end_tokens(lm, self.format)
        self._schemas = Schemas(tokenizer, self._head.weight.shape[0], self._stops)
        self.positions = getattr(self._config, "max_position_embeddings", None)
        self.rows = KVRows(self._config.num_hidden_layers, self._mode.whole_blocks)
        self.prefixes = PrefixCache(cache_bytes)
        self.graphs = StepGraphs()
        self._fused = FusedLinears(lm)
        self._waiting: list[_Request] = []
        self._joining: list[_Request] = []
        self._running: list[_Request] = []
        self._task: asyncio.Task[None] | None = None
        self.new_tokens = 0

    async def complete(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        key: RngKey,
        on_token: Callable[[Sequence[int]], None] | None = None,
    ) -> Reply:
        """One reply; see `ChatModel`.

        Args:
            messages, sampling, key: See `ChatModel`.
            on_token: Called after each token with the ids so far, for a person who reads along.

        Raises:
            BadInput: The prompt is empty; the model's logits are not finite.
            ContextFull: Prompt and `max_new_tokens` do not fit the model's positions.
        """
        prompt, boundaries = self.format.encode(messages)
        check_fits(prompt, sampling.max_new_tokens, self.positions)
        boundaries = self._mode.boundaries(prompt, boundaries)
        done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        held = sampling.schema and not self.format.opens_thought  # a reply that begins in a thought is no object
        matcher = self._schemas.matcher(sampling.schema) if held else None
        self._waiting.append(_Request(tuple(prompt), boundaries, sampling, key.stream(), done, matcher, on_token))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())
            # Nobody awaits this task. Ask for its error: if a signal ends it, asyncio else prints a traceback below the
            # line that says how to go on.
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await done

    async def idle(self) -> None:
        """Return when all requests are answered and the model's layers are as they were.

        `clear_cache` needs it if the event loop goes on after the rollout.
        """
        if self._task is not None:
            await asyncio.wait([self._task])

    def clear_cache(self, weights: bool = False) -> None:
        """Drop whatever was computed from the trained weights: call it when they have changed, between two rollouts.

        With `weights`, also drop the copies of frozen weights.
        """
        assert not self._running, "clear_cache() while replies are being decoded"
        self._fused.clear_cache(weights)
        self.graphs.clear_cache()
        self.prefixes.clear()
        self.rows.clear()

    async def _serve(self) -> None:
        try:
            with self._fused:
                while self._running or self._waiting:
                    adapter = self._next_adapter
                    as_it_is = adapter or not hasattr(self.lm, "disable_adapter")
                    # Not at every token: peft takes long to switch.
                    with contextlib.nullcontext() if as_it_is else self.lm.disable_adapter():
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

    @property
    def _next_adapter(self) -> bool:
        """Whether the running batch, or the next one if none is running, is decoded with the adapter on."""
        return (self._running or self._waiting)[0].sampling.adapter

    # --- joining -----------------------------------------------------------------------------------------------

    def _admit(self, adapter: bool) -> None:
        """Read the prompts of waiting requests and give each its first token.

        A batch has the adapter on or off for all, never mixed. The other kind waits until the batch is empty. Once the
        oldest waiting request is of the other kind, no request joins any more.
        """
        self._waiting = [request for request in self._waiting if not request.done.cancelled()]
        base = len(self._running)
        if not self._waiting or base >= self.max_batch or self._waiting[0].sampling.adapter != adapter:
            return
        self._joining = [r for r in self._waiting if r.sampling.adapter == adapter][: self.max_batch - base]
        chosen = set(self._joining)
        self._waiting = [request for request in self._waiting if request not in chosen]
        reach = max(r.length + r.sampling.max_new_tokens for r in (*self._running, *self._joining))
        self.rows.reserve(base + len(self._joining), reach)
        prompts = self._prompts(adapter, base)
        for row, prompt in enumerate(prompts, start=base):
            if prompt.kept is not None:
                self.rows.copy_in(row, prompt.kept, prompt.start)
        logits = self._mode.read(self._extend, base, [p.ids for p in prompts], [p.start for p in prompts])
        # Copy each prompt to the rows of all requests that have it, from the bottom up so that no source is overwritten
        # before it is copied.
        sources = [i for i, prompt in enumerate(prompts) for _ in prompt.requests]
        joined = [request for prompt in prompts for request in prompt.requests]
        for offset in reversed(range(len(joined))):
            if sources[offset] != offset:
                self.rows.copy_row(base + sources[offset], base + offset, len(joined[offset].prompt))
        for i, prompt in enumerate(prompts):
            same_waits = any(r.prompt == prompt.ids and r.sampling.adapter == adapter for r in self._waiting)
            length = self._mode.length_to_keep(prompt.ids, same_waits or len(prompt.requests) > 1)
            if length:
                self.prefixes.keep(adapter, prompt.ids[:length], self.rows, base + sources.index(i))
        self._running, self._joining = self._running + joined, []
        self._draw(joined, logits[sources])
        self._retire()

    def _prompts(self, adapter: bool, row: int) -> list[_Prompt]:
        """The distinct prompts of joining requests, those with the least to read first; `row` is free for reading."""
        same: dict[tuple[int, ...], list[_Request]] = {}
        for request in self._joining:
            same.setdefault(request.prompt, []).append(request)
        prompts = [
            _Prompt(ids, requests, *self.prefixes.longest(adapter, ids, requests[0].boundaries))
            for ids, requests in same.items()
        ]
        if self._mode.keeps_any_length:
            self._read_shared_prefix(adapter, [prompt for prompt in prompts if not prompt.start], row)
        return sorted(prompts, key=lambda prompt: len(prompt.ids) - prompt.start)

    def _read_shared_prefix(self, adapter: bool, prompts: Sequence[_Prompt], row: int) -> None:
        """Read what all prompts begin with, such as the system prompt, into a row, and keep it for later prompts."""
        if len(prompts) < 2:
            return
        first, last = min(p.ids for p in prompts), max(p.ids for p in prompts)  # the two that differ first
        length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        if length < _MIN_SHARED_PREFIX:
            return
        self._extend(row, [list(first[:length])], [0])
        self.prefixes.keep(adapter, first[:length], self.rows, row, shared=True)
        copy = self.rows.copy_out(row, length)
        for prompt in prompts:
            prompt.kept, prompt.start = copy, min(length, len(prompt.ids) - 1)

    # --- one token for all -------------------------------------------------------------------------------------

    def _step(self) -> None:
        if not self._running:
            return
        graphed = self.graphs.usable(self._head.weight.device)
        count = max(len(self._running), self._mode.min_rows)
        if graphed:
            count = min(self.max_batch, 1 << (count - 1).bit_length())  # the next power of two
        idle = count - len(self._running)
        new = [[request.ids[-1]] for request in self._running] + [[0]] * idle
        starts = [request.length - 1 for request in self._running] + [0] * idle
        logits = self._replay(new, starts) if graphed else None
        if logits is None:
            logits = self._extend(0, new, starts)
        self._draw(self._running, logits[: len(self._running)])
        self._retire()

    def _extend(
        self, first: int, new: list[list[int]], starts: Sequence[int], sizes: list[int] | None = None
    ) -> torch.Tensor:
        """Append tokens `new[i]` to row `first + i` from position `starts[i]` on.

        With `sizes`, only the first `sizes[i]` tokens of a row count and the rest is padding. Returns `[N, V]` logits
        after the last token of each row.
        """
        device = self._head.weight.device
        width = max(len(ids) for ids in new)
        self.rows.reserve(first + len(new), max(starts) + width)
        reach = self.rows.keys_to_read(max(starts) + width, width, device)
        ends = torch.tensor(sizes or [len(ids) for ids in new], device=device) - 1
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in new], device=device)
        # Padding lies behind the end of a short row: no token attends to it, and the next write replaces it.
        positions = (torch.tensor(starts)[:, None] + torch.arange(width)).to(device)
        # Whole prompts need no mask but the causal one.
        hidden = self._forward(first, ids, positions, reach, masked=any(starts) or reach != width)
        return self._logits(hidden[torch.arange(len(new), device=device), ends])

    def _replay(self, new: list[list[int]], starts: Sequence[int]) -> torch.Tensor | None:
        """`_extend` the first rows by one token each through a CUDA graph; None where it cannot be recorded."""
        reach = up_to_block(max(starts) + 1)
        self.rows.reserve(len(new), reach)
        self.graphs.keep_if(self.rows.data)

        def step(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return self._logits(self._forward(0, ids, positions, reach, masked=True)[:, 0])

        device = self._head.weight.device
        ids, positions = torch.tensor(new, device=device), torch.tensor(starts, device=device)[:, None]
        return self.graphs.run((reach, self._next_adapter), step, ids, positions)

    def _forward(
        self, first: int, ids: torch.Tensor, positions: torch.Tensor, reach: int, masked: bool
    ) -> torch.Tensor:
        """Append `[N, T]` tokens to the rows from `first` on; returns `[N, T, channels]` hidden states.

        Args:
            first: Row of the first tokens.
            ids, positions: [N, T] tokens and their positions.
            reach: Keys that are read.
            masked: False where each row is a whole prompt, under a causal mask alone.
        """
        self.rows.select(first, first + len(ids), positions, reach)
        mask: Any = None
        if masked:
            keys = torch.arange(reach, device=ids.device)[None]
            visible = positions[:, :, None] >= keys[:, None]  # [N, T, L]
            mask = additive_masks(self._config, visible, positions, keys, self._head.weight.dtype)
        hidden: torch.Tensor = self._trunk(
            input_ids=ids,
            # Padding may lie behind the model's last position.
            position_ids=positions.clamp(max=self.positions - 1) if self.positions else positions,
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
        forbid(logits, [r.matcher for r in requests])
        tokens, logprobs = draw_tokens(logits, samplings, streams, self._mode.draw)
        for request, token, logprob in zip(requests, tokens, logprobs, strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
            if request.matcher is not None:
                request.matcher.consume_token(token)
            if request.on_token is not None:
                request.on_token(request.ids)
        self.new_tokens += len(requests)

    def _retire(self) -> None:
        """Return finished replies to their callers; the last rows close the gaps."""
        for row in reversed(range(len(self._running))):
            request = self._running[row]
            stopped = request.ids[-1] in self._stops and not request.sampling.ignore_eos or self._says_stop(request)
            done = stopped or len(request.ids) >= request.sampling.max_new_tokens
            if not done and not request.done.cancelled():
                continue
            if done and self._mode.keeps_any_length:
                ids = (*request.prompt, *request.ids)  # the last was drawn and never fed: it has no keys and values
                self.prefixes.keep(request.sampling.adapter, ids, self.rows, row, len(ids) - 1)
            last = len(self._running) - 1
            if row != last:
                self.rows.copy_row(last, row, self._running[last].length)
                self._running[row] = self._running[last]
            self._running.pop()
            if not request.done.done():
                reply = Reply(
                    text="",
                    token_ids=tuple(request.ids),
                    logprobs=tuple(request.logprobs),
                    finish_reason="stop" if stopped else "length",
                    prompt_ids=request.prompt,
                )
                request.done.set_result(self.format.read(reply, request.sampling))

    def _says_stop(self, request: _Request) -> bool:
        if not (stops := request.sampling.stop):
            return False
        # A token holds a byte or more, and a character has four at most.
        tail = request.ids[-4 * max(map(len, stops)) :]
        text = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in stops)
