"""The protocol `RolloutEngine` of what decodes for the policy."""

from __future__ import annotations

from typing import Any, Protocol

from collab.chat.base import ChatModel


class RolloutEngine(ChatModel, Protocol):
    """A `ChatModel` that speaks with the weights that are trained.

    A reply needs its `token_ids`, their `logprobs` and its `prompt_ids`: the policy learns from them. With
    `sampling.adapter` off, the base speaks.

    Attributes:
        lm: The transformers causal LM that it was made for, with or without a peft adapter.
        new_tokens: Tokens decoded since the engine was made.
    """

    lm: Any
    new_tokens: int

    def clear_cache(self, weights: bool = False) -> None:
        """Called after each rollout: drop all that was computed from the weights, which are about to change.

        With `weights`, also drop copies of the weights; the engine is not used again.
        """
        ...
