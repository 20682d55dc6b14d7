"""One update of TRL's GRPO on completions that are given, without the optimizer's step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from update_sides import TEMPERATURE, draw, measured
from wire import answer


def start(
    model: str,
    dtype: str,
    device: str,
    checkpointing: bool,
    history: int,
    candidates: int,
    tokens: int,
    rank: int,
    alpha: int,
) -> Any:
    from importlib.metadata import version

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(model)
    update, trained = update_of(lm, tokenizer, history, candidates, tokens, rank, alpha, device, checkpointing)
    return {"versions": f"trl {version('trl')}"}, {"update": lambda: measured(update, trained, device)}


def update_of(
    lm: Any,
    tokenizer: Any,
    history: int,
    candidates: int,
    tokens: int,
    rank: int,
    alpha: int,
    device: str,
    checkpointing: bool = False,
) -> tuple[Callable[[], None], list[Any]]:
    """One update of a model without an adapter, and the parameters that it trains."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    def no_reward(completions: list[str], **_: Any) -> list[float | None]:  # never called: nothing is generated
        return [0.0] * len(completions)

    trainer = GRPOTrainer(
        model=lm,
        processing_class=tokenizer,
        reward_funcs=no_reward,
        train_dataset=Dataset.from_list([{"prompt": "nothing"}] * candidates),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear"
        ),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=candidates,
            num_generations=candidates,
            max_completion_length=tokens,
            temperature=TEMPERATURE,
            gradient_checkpointing=checkpointing,
            bf16=lm.dtype == torch.bfloat16,
            use_cpu=device == "cpu",
            report_to="none",
            seed=0,
        ),
    )
    policy = trainer.accelerator.prepare(trainer.model)
    policy.train()
    # What `train` does before its first step.
    trainer.current_gradient_accumulation_steps = 1
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    prompt, replies, advantages = draw(history, candidates, tokens, lm.config.vocab_size)
    where = trainer.accelerator.device
    prompt_ids = torch.tensor([prompt] * candidates, device=where)
    completion_ids = torch.tensor(replies, device=where)
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": completion_ids,
        "completion_mask": torch.ones_like(completion_ids),
        "advantages": torch.tensor(advantages, device=where),
        "num_items_in_batch": torch.tensor(float(candidates * tokens), device=where),
    }

    def update() -> None:
        trainer.accelerator.backward(trainer.compute_loss(policy, inputs))

    return update, [parameter for parameter in policy.parameters() if parameter.requires_grad]


if __name__ == "__main__":
    answer(start)
