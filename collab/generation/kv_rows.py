"""Keys and values: of the running requests, in rows of one tensor, and of prefixes that are kept for later requests.

One tensor holds the keys of all layers, another the values, `[layer, row, head, position, channel]`; in bf16 on a CPU
the keys of a channel lie side by side (see `collab.lm.attention.by_layout`).

A CPU reserves memory ahead: pages of zeros that nobody has written take neither memory nor time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

KeyValues = tuple[torch.Tensor, torch.Tensor]

_POSITIONS = 512  # that a row has at least in fp32 on a CPU
POSITION_BLOCK = 64  # rows grow by this many positions; a deterministic row's keys are a multiple of it


class _RowsLayer(DynamicLayer):
    """One layer's view of the rows, in transformers' cache interface."""

    def __init__(self, rows: KVRows, index: int) -> None:
        super().__init__()
        self.rows, self.index = rows, index

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> KeyValues:
        return self.rows.write(self.index, key_states, value_states)


class KVRows:
    """Keys and values of the running requests, a row for each.

    Args:
        layers: Number of the model's layers.
        whole_blocks: A forward call always reads a multiple of `POSITION_BLOCK` keys.

    Attributes:
        data: Keys and values, `[layer, row, head, position, channel]` each; None until the first forward call.
        cache: The `past_key_values` of a transformers model.
        reach: Number of keys that the next forward call reads.
    """

    def __init__(self, layers: int, whole_blocks: bool) -> None:
        self.data: KeyValues | None = None
        self.layers, self.whole_blocks = layers, whole_blocks
        self.first = self.last = self.reach = 0
        self.row_index = self.positions = torch.empty(0)
        self.cache = Cache(layers=[_RowsLayer(self, index) for index in range(layers)])
        self._size = (0, 0)  # rows, positions
        self._used = 0  # rows that may have been written

    def clear(self) -> None:
        """Give the memory back."""
        self.data, self._size, self._used = None, (0, 0), 0

    def reserve(self, rows: int, positions: int) -> None:
        """Grow (never shrink) to this number of rows and positions."""
        self._size = (max(self._size[0], rows), max(self._size[1], up_to_block(positions)))
        if self.data is None:
            return
        held = self.data[0].shape[1], self.data[0].shape[3]
        if held[0] < self._size[0] or held[1] < self._size[1]:
            older, self.data = self.data, self._empty(*(part[0, 0, :, 0] for part in self.data))
            for part, filled in zip(self.data, older, strict=True):
                part[:, : self._used, :, : filled.shape[3]] = filled[:, : self._used]

    def _empty(self, *like: torch.Tensor) -> KeyValues:
        """Keys and values of the reserved size at least, with the heads and channels of `like`, `[head, channel]`."""
        (heads, key_channels), (_, value_channels) = like[0].shape, like[1].shape
        rows, positions = self._size
        on_cpu, in_fp32 = like[0].device.type == "cpu", like[0].dtype == torch.float32
        if on_cpu:
            rows = _power_of_two(rows)
            positions = _power_of_two(max(positions, _POSITIONS)) if in_fp32 else positions
        if on_cpu and not in_fp32:
            keys = _zeros(like[0], self.layers, rows, heads, key_channels, positions).transpose(3, 4)
        else:
            keys = _zeros(like[0], self.layers, rows, heads, positions, key_channels)
        return keys, _zeros(like[1], self.layers, rows, heads, positions, value_channels)

    def keys_to_read(self, positions: int, width: int, device: torch.device) -> int:
        """How many keys a forward call of `width` tokens a row reads if it needs `positions` of them.

        In bf16 a CPU multiplies single queries with whole rows faster than with parts of rows, which it has to copy
        first.
        """
        if self.whole_blocks:
            return up_to_block(positions)
        by_channel = device.type == "cpu" and self.data is not None and self.data[0].dtype != torch.float32
        return self._size[1] if by_channel and width == 1 and 3 * positions > 2 * self._size[1] else positions

    def select(self, first: int, last: int, positions: torch.Tensor, reach: int) -> None:
        """Choose rows and `[N, T]` positions that the next forward call writes, and the number of keys it reads."""
        self.first, self.last, self.positions, self.reach = first, last, positions, reach
        self.row_index = torch.arange(first, last, device=positions.device)[:, None]
        self._used = max(self._used, last)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeyValues:
        """Write a layer's new `[N, head, T, channel]` keys and values; returns those that its queries read."""
        if self.data is None:
            self.data = self._empty(keys[0, :, 0], values[0, :, 0])
        held = self.data[0][layer], self.data[1][layer]
        for part, new in zip(held, (keys, values), strict=True):
            part[self.row_index, :, self.positions] = new.transpose(1, 2)
        seen = slice(self.first, self.last), slice(None), slice(self.reach)
        return held[0][seen], held[1][seen]

    def nbytes(self, length: int) -> int:
        """Bytes of a row's first `length` positions."""
        assert self.data is not None
        return sum(part[:, 0, :, :length].nbytes for part in self.data)

    def copy_out(self, row: int, length: int) -> KeyValues:
        """Copies of a row's first positions, `[layer, head, position, channel]`."""
        assert self.data is not None
        return self.data[0][:, row, :, :length].clone(), self.data[1][:, row, :, :length].clone()

    def copy_in(self, row: int, kept: KeyValues, length: int) -> None:
        """Write the first positions of copies into a row."""
        assert self.data is not None
        self._used = max(self._used, row + 1)
        for part, source in zip(self.data, kept, strict=True):
            part[:, row, :, :length] = source[:, :, :length]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy a row's first positions over another row."""
        assert self.data is not None
        self._used = max(self._used, target + 1)
        for part in self.data:
            part[:, target, :, :length] = part[:, source, :, :length]


class PrefixCache:
    """Keys and values of prompts and finished replies, which later prompts may begin with.

    Prefixes with and without the adapter are kept apart. The least recently used are dropped first.

    Args:
        max_bytes: Memory for them; 0 keeps none.

    Attributes:
        nbytes: Memory that they take.
        kept: Copies of keys and values, by (adapter, token ids).
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self.kept: OrderedDict[tuple[bool, tuple[int, ...]], KeyValues] = OrderedDict()
        self._shared: set[int] = set()  # lengths of beginnings that prompts had in common

    def clear(self) -> None:
        self.kept.clear()
        self._shared.clear()
        self.nbytes = 0

    def longest(
        self, adapter: bool, prompt: tuple[int, ...], boundaries: Sequence[int]
    ) -> tuple[KeyValues | None, int]:
        """The longest kept prefix of a prompt, and how many of its positions may be used.

        (None, 0) where no prefix is kept. The prompt's last token is always computed, since its logits are needed.

        Args:
            adapter: Whether the prompt is read with the adapter on.
            prompt: Token ids.
            boundaries: Lengths of the prompt's beginnings that may have been kept.
        """
        for boundary in sorted({*boundaries, *self._shared}, reverse=True):
            kept = self.kept.get((adapter, prompt[:boundary]))
            if kept is not None:
                self.kept.move_to_end((adapter, prompt[:boundary]))
                return kept, min(kept[0].shape[2], len(prompt) - 1)
        return None, 0

    def keep(
        self,
        adapter: bool,
        ids: tuple[int, ...],
        rows: KVRows,
        row: int,
        length: int | None = None,
        shared: bool = False,
    ) -> None:
        """Keep a copy of a row, unless there is one or it takes more than all the memory.

        Args:
            adapter: Whether the row was computed with the adapter on.
            ids: Tokens of the row.
            rows, row: The row to copy.
            length: Positions to copy, if not all of `ids`.
            shared: Several prompts begin with `ids`: `longest` tries this length with every prompt.
        """
        if shared:
            self._shared.add(len(ids))
        length = len(ids) if length is None else length
        if (adapter, ids) in self.kept or rows.nbytes(length) > self.max_bytes:
            return
        kept = rows.copy_out(row, length)
        self.kept[adapter, ids] = kept
        self.nbytes += sum(part.nbytes for part in kept)
        while self.nbytes > self.max_bytes:
            _, dropped = self.kept.popitem(last=False)
            self.nbytes -= sum(part.nbytes for part in dropped)


def _zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    # torch would write the zeros; numpy asks the system for pages of zeros.
    memory = np.zeros(math.prod(shape) * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(like.dtype).view(shape)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def up_to_block(positions: int) -> int:
    """The next multiple of `POSITION_BLOCK`."""
    return -(-positions // POSITION_BLOCK) * POSITION_BLOCK
