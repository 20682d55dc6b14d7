"""From messages to token ids, append-only.

Chat templates are not append-only: when a longer conversation is rendered again, an earlier reply may be rewritten or
tokenised in another way. The policy would then be trained on tokens that it never sampled. So a reply enters as the ids
that were sampled, and the template gives only what lies between two replies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from collab.conversation import Message
from collab.lm.inner import inner_of
from collab.util.errors import BadInput


class ChatFormat:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: A transformers tokenizer with a chat template and an end-of-turn token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Token ids of the prompt that asks for the next assistant message.

        Returns:
            The ids, and the lengths of the prefixes that end with an assistant message: earlier requests for the same
            conversation have computed these.
        """
        replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
        ends = [*replies, len(messages)]
        opening = messages[: ends[0]]
        ids = self._tokenize(self._render(opening))
        boundaries = []
        for place, following in itertools.pairwise(ends):
            message = messages[place]
            reply = list(message.token_ids) if message.token_ids else self._tokenize(message.content)
            ids += reply
            boundaries.append(len(ids))
            ids += self._between(opening, messages[place + 1 : following], reply)
        return ids, boundaries

    def encode_reply(self, text: str, cut: bool = False) -> list[int]:
        """Token ids of a reply that is known as text, as if it had been sampled; at least one.

        Args:
            text: The reply.
            cut: Whether it was cut at the length limit, before an end-of-turn token.
        """
        ids = self._tokenize(text)
        return ids if ids and cut else [*ids, *self._end]

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of a reply before its first stop string, stripped and without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text[: min((text.find(one) for one in stop if one in text), default=None)].strip()

    @cached_property
    def _end(self) -> list[int]:
        """The end-of-turn token."""
        return self._between([Message("user", "?")], [], [])[:1]

    def _between(self, opening: Sequence[Message], added: Sequence[Message], reply: list[int]) -> list[int]:
        """The ids from the end of a reply to the start of the next one.

        They are what the template puts behind a mark in place of the reply. A sampled reply already ends with the
        end-of-turn token, so it is left out; a reply that was cut gets it here.
        """
        mark = "~assistant~"
        while any(mark in message.content for message in added):
            mark += "~"
        text = self._render([*opening, Message("assistant", mark), *added])
        ids = self._tokenize(text[text.rindex(mark) + len(mark) :])
        return ids[1:] if reply and ids and reply[-1] == ids[0] else ids

    def _render(self, messages: Sequence[Message]) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        text: str = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        return text

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def check_fits(prompt: Sequence[int], max_new_tokens: int, positions: int | None) -> None:
    """Raise `BadInput` if a prompt is empty, or leaves too few of a model's positions for the reply."""
    if not prompt:
        raise BadInput(
            "The conversation is rendered as no token at all, and a reply has to follow at least one. Give a message "
            "that is not empty, or a tokenizer with a chat template that says who speaks next."
        )
    if positions and len(prompt) + max_new_tokens > positions:
        raise BadInput(
            f"A conversation of {len(prompt)} tokens plus max_new_tokens={max_new_tokens} does not fit the model's "
            f"{positions} positions. Lower task.max_turns or task.max_new_tokens."
        )


def end_tokens(lm: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a reply: those of a transformers model's generation config, and its tokenizer's."""
    inner = inner_of(lm)
    stops = inner.generation_config.eos_token_id if inner.generation_config else None
    stops = stops if isinstance(stops, list) else [stops]
    return {stop for stop in (*stops, tokenizer.eos_token_id) if stop is not None}
