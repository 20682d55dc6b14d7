"""The protocol `ChatModel` of everything that speaks: policy, user and judge, from local weights or a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from collab.conversation import Message, Reply
from collab.randomness import RngKey
from collab.util.errors import BadInput

CONTEXT_FULL = "context_full"  # why a conversation ends that has become longer than a model reads


@dataclass(frozen=True)
class Sampling:
    """How to draw one reply.

    Attributes:
        max_new_tokens: Length limit, in tokens of the speaking model.
        temperature: Softmax temperature; 0 is greedy.
        top_p: Nucleus mass in (0, 1]; 1 keeps the whole distribution.
        top_k: Number of most likely tokens kept; 0 keeps all.
        stop: The reply ends before the first of these strings that appears in it.
        ignore_eos: Generate `max_new_tokens` tokens, also past the end of the turn; for measurements.
        adapter: Use the trained adapter; False is the reference model from the same weights.
        schema: The JSON schema of the reply, as JSON; "" for free text. The local engine draws nothing else, with
            nearly all tokenizers. A server is asked for it. Other replies have to be repaired or asked for again.
        show_thoughts: Local weights: the text of a reply has the thought before it, with its marks.

    Raises:
        BadInput: A number is out of its range; a stop string is empty.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    adapter: bool = True
    schema: str = ""
    show_thoughts: bool = False

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "a finite number of at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1, which keeps all tokens"),
            "top_k": (self.top_k >= 0, "at least 0, which keeps all tokens"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a tuple of strings, none empty"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise BadInput(f"{name} ({getattr(self, name)}) must be {rule}.")


class ChatFailed(Exception):
    """A call got no reply, after all retries."""


class ContextFull(ChatFailed):
    """The conversation, with the longest reply that is allowed, does not fit the model's positions."""


class ChatModel(Protocol):
    """Anything that answers a list of messages."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        """One reply to `messages`; its randomness comes from `key` alone.

        Raises:
            ChatFailed: No reply, after all retries.
        """
        ...
