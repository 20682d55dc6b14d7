"""One update of this project, as `PolicyModule.training_step` makes it, without the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from update_sides import TEMPERATURE, draw, measured
from wire import answer


def start(model: str, dtype: str, device: str, checkpointing: bool, history: int, candidates: int, tokens: int) -> Any:
    import torch

    from collab.config.schema import ModelConfig
    from collab.lm.loading import load_model

    torch.manual_seed(0)
    config = ModelConfig(name="benchmark", path=model, gradient_checkpointing=checkpointing)
    lm = load_model(config, getattr(torch, dtype), torch.device(device))
    update, trained = update_of(lm, history, candidates, tokens)
    return {"versions": ""}, {"update": lambda: measured(update, trained, device)}


def group_of(lm: Any, history: int, candidates: int, tokens: int) -> tuple[Any, Any]:
    """A GRPO module with the model as its policy, in training mode, and an `Example` without log-probs."""
    from collab.config.algorithms import GRPOConfig
    from collab.conversation import Reply
    from collab.modules.base import Example
    from collab.modules.grpo import GRPO

    module = GRPO(GRPOConfig(), lambda: lm, None, TEMPERATURE, max_steps=1)
    module.configure_model()
    assert module.policy is not None
    module.policy.train()
    prompt, ids, advantages = draw(history, candidates, tokens, lm.config.vocab_size)
    replies = (Reply("", tuple(row), (0.0,) * tokens, "length", tuple(prompt)) for row in ids)
    return module, Example(tuple(replies), tuple(advantages))


def update_of(lm: Any, history: int, candidates: int, tokens: int) -> tuple[Callable[[], None], list[Any]]:
    """One update of a model, and the parameters that it trains."""
    import torch

    from collab.modules.packing import pack

    module, group = group_of(lm, history, candidates, tokens)
    # As if the candidates had been sampled from these very weights.
    with torch.no_grad():
        found = module.policy(pack([group.replies], TEMPERATURE).to(lm.device)).logprobs
    rows = zip(group.replies, found.view(candidates, tokens).tolist(), strict=True)
    group = replace(group, replies=tuple(replace(reply, logprobs=tuple(row)) for reply, row in rows))

    def update() -> None:
        packed = pack([group.replies], TEMPERATURE).to(lm.device)
        output = module.policy(packed)
        (module.loss([group], packed, output, None) / module.units(group)).backward()

    return update, [parameter for parameter in module.policy.parameters() if parameter.requires_grad]


if __name__ == "__main__":
    answer(start)
