"""Which characters of a reply each of its tokens wrote."""

from __future__ import annotations

import itertools
from typing import Any

from tokenizers.decoders import DecodeStream

from collab.conversation import Reply


def token_lengths(tokenizer: Any, reply: Reply) -> list[int]:
    """The number of characters of `reply.text` that each of `reply.token_ids` wrote.

    A character that several tokens write counts for the last of them. Control tokens, a thought and stripped white
    space have none.

    Args:
        tokenizer: A transformers tokenizer.
        reply: A sampled reply.

    Returns:
        One number per token; their sum is `len(reply.text)`. Empty if the tokens cannot be matched with the text: a
        reply over HTTP, or a tokenizer without `backend_tokenizer`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not reply.token_ids:
        return []
    stream = DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(backend, index) or "" for index in reply.token_ids]
    start = "".join(pieces).rfind(reply.text)
    if start < 0:
        return []
    ends = itertools.accumulate(map(len, pieces), initial=0)
    places = [min(max(end - start, 0), len(reply.text)) for end in ends]
    return [end - begin for begin, end in itertools.pairwise(places)]
