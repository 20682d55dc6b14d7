"""One update of this project, as `PolicyModule.training_step` makes it, without the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
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


def update_of(lm: Any, history: int, candidates: int, tokens: int) -> tuple[Callable[[], None], list[Any]]:
    """One update of a model, and the parameters that it trains."""
    import torch

    from collab.config.algorithms import GRPOConfig
    from collab.conversation import Reply
    from collab.modules.base import Example
    from collab.modules.grpo import GRPO
    from collab.modules.packing import pack

    module = GRPO(GRPOConfig(), lambda: lm, None, TEMPERATURE, max_steps=1)
    module.configure_model()
    policy = module.policy
    assert policy is not None
    policy.train()
    prompt, replies, advantages = draw(history, candidates, tokens, lm.config.vocab_size)

    def example(logprobs: list[list[float]]) -> Example:
        rows = zip(replies, logprobs, strict=True)
        return Example(
            tuple(Reply("", tuple(r), tuple(p), "length", tuple(prompt)) for r, p in rows), tuple(advantages)
        )

    # As if the candidates had been sampled from these very weights.
    with torch.no_grad():
        found = policy(pack([example([[0.0] * tokens] * candidates).replies], TEMPERATURE).to(lm.device)).logprobs
    chosen = example(found.view(candidates, tokens).tolist())

    def update() -> None:
        packed = pack([chosen.replies], TEMPERATURE).to(lm.device)
        output = policy(packed)
        (module.loss([chosen], packed, output, None) / module.units(chosen)).backward()

    return update, [parameter for parameter in policy.parameters() if parameter.requires_grad]


if __name__ == "__main__":
    answer(start)
