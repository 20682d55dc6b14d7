"""Replies that fit a JSON schema: before each draw, the tokens that would break it are forbidden (llguidance).

Shapes: N requests, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from transformers import PreTrainedTokenizerFast

# As models write JSON. Free white space would let a model write it without end.
_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Schemas:
    """Makes the matcher of a request.

    Args:
        tokenizer: Of the model.
        vocabulary: V; larger than the tokenizer's where the model has spare rows.
        ends: Tokens that end a reply.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, sorted(ends)
        self._known: Any = None  # the tokenizer in llguidance's form, False if it has none; it takes a second to make

    def matcher(self, schema: str) -> LLMatcher | None:
        """A matcher at the beginning of a reply that fits `schema`; None if llguidance cannot read tokenizer or schema.

        The reply is then as free as that of a server without schemas.
        """
        if self._known is None:
            fast = isinstance(self._tokenizer, PreTrainedTokenizerFast)
            with contextlib.suppress(ValueError):  # another decoder than of bytes, say
                self._known = fast and from_tokenizer(self._tokenizer, self._vocabulary, self._ends)
            self._known = self._known or False
        if not self._known:
            return None
        matcher = LLMatcher(self._known, LLMatcher.grammar_from_json_schema(schema, overrides=_LAYOUT), log_level=0)
        return None if matcher.is_error() else matcher


def forbid(logits: torch.Tensor, matchers: Sequence[LLMatcher | None]) -> None:
    """Set `[N, V]` logits to minus infinity where the matcher of a row forbids a token. Other rows stay as they are."""
    rows = [(row, matcher) for row, matcher in enumerate(matchers) if matcher is not None]
    if not rows:
        return
    bits = allocate_token_bitmask(len(rows), logits.shape[-1])
    for place, (_, matcher) in enumerate(rows):
        fill_next_token_bitmask(matcher, bits, place)
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=logits.shape[-1], bitorder="little").view(bool)
    forbidden = torch.from_numpy(~allowed).to(logits.device)
    if len(rows) == len(logits):
        logits.masked_fill_(forbidden, -torch.inf)
        return
    for place, (row, _) in enumerate(rows):
        logits[row].masked_fill_(forbidden[place], -torch.inf)
