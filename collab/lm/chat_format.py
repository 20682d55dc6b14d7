"""From messages to token ids, append-only.

Chat templates are not append-only: rendering a longer conversation again may tokenise an earlier reply in another way
or rewrite it, and then the policy would be trained on tokens that it never sampled. So a reply enters as the ids that
were sampled, and only what lies between two replies is taken from the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from collab.conversation import Message
from collab.lm.inner import inner_of
from collab.util.errors import BadInput

_MARK = "~assistant~"


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
            The ids, and the lengths of its prefixes that end with an assistant message: what an earlier request for the
            same conversation has already computed.
        """
        first = next((i for i, message in enumerate(messages) if message.role == "assistant"), len(messages))
        ids = self._tokenize(self._render(messages[:first], generate=True))
        boundaries = []
        for i in range(first, len(messages)):
            message = messages[i]
            if message.role != "assistant":
                continue
            reply = list(message.token_ids) if message.token_ids else self._tokenize(message.content)
            following = next((j for j in range(i + 1, len(messages)) if messages[j].role == "assistant"), len(messages))
            ids += reply
            boundaries.append(len(ids))
            ids += self._between(messages[:first], messages[i + 1 : following], reply)
        return ids, boundaries

    def encode_reply(self, text: str, cut: bool = False) -> list[int]:
        """Token ids of a reply that is known as text, as they would have been sampled: at least one.

        Args:
            text: The reply.
            cut: It ran into the length limit, so that no end-of-turn token was sampled.
        """
        ids = self._tokenize(text)
        return ids if ids and cut else [*ids, *self._end]

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of a reply, stripped, without special tokens and without what begins with a stop string."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text[: min((text.find(one) for one in stop if one in text), default=None)].strip()

    @cached_property
    def _end(self) -> list[int]:
        """The end-of-turn token."""
        return self._between([Message("user", "?")], [], [])[:1]

    def _between(self, opening: Sequence[Message], added: Sequence[Message], reply: list[int]) -> list[int]:
        """The ids from the end of a reply to the start of the next one.

        They are what the template puts behind a marked reply; the end-of-turn token is left out where the reply already
        holds it (it was sampled), and put in where the reply was cut.
        """
        mark = _MARK
        while any(mark in message.content for message in added):
            mark += "~"
        text = self._render([*opening, Message("assistant", mark), *added], generate=True)
        ids = self._tokenize(text[text.rindex(mark) + len(mark) :])
        return ids[1:] if reply and ids and reply[-1] == ids[0] else ids

    def _render(self, messages: Sequence[Message], generate: bool) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        text: str = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generate)
        return text

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def check_fits(prompt: Sequence[int], max_new_tokens: int, positions: int | None) -> None:
    """Raise `BadInput` where a prompt is empty, or leaves too few of a model's positions for the reply."""
    if not prompt:
        raise BadInput(
            "The conversation is rendered as no token at all, and a reply needs one to follow. Give a message that is "
            "not empty, or a tokenizer whose chat template says who speaks next."
        )
    if positions and len(prompt) + max_new_tokens > positions:
        raise BadInput(
            f"A conversation of {len(prompt)} tokens plus max_new_tokens={max_new_tokens} does not fit the model's "
            f"{positions} positions. Lower task.max_turns or task.max_new_tokens."
        )


def end_tokens(lm: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a reply: those that a transformers model generates until, and its tokenizer's."""
    inner = inner_of(lm)
    stops = inner.generation_config.eos_token_id if inner.generation_config else None
    stops = stops if isinstance(stops, list) else [stops]
    return {stop for stop in (*stops, tokenizer.eos_token_id) if stop is not None}
