"""Scores and MR by the official package, collabllm 0.0.8, with the metrics of its repository.

The package brings no metrics: they are in the folder examples/metrics of https://github.com/microsoft/CollabLLM, which
has to be named.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["ENABLE_COLLABLLM_LOGGING"] = "0"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise fetched from the network
os.environ["RUN_USER_DIR"] = tempfile.mkdtemp()

from wire import answer

_METRICS = ("accuracy", "bleu", "efficiency", "interactivity", "pass_rate")


def start(examples: str, url: str) -> Any:
    from importlib.metadata import version

    from collabllm.reward import multiturn_aware_reward

    for name in _METRICS:  # each registers itself; the folder's others need more packages
        spec = importlib.util.spec_from_file_location(name, Path(examples, "metrics", f"{name}.py"))
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    def speaker(role: str) -> dict[str, Any]:
        return {"model": f"openai/{role}", "api_base": url, "api_key": "none"}

    def reward(
        task: str,
        prompt: str,
        reference: str,
        metadata: dict[str, str],
        weights: dict[str, float],
        messages: list[dict[str, str]],
        samples: int = 1,
        new: int = 0,
    ) -> dict[str, Any]:
        """Every part and the MR of `samples` futures of `new` further messages after `messages`."""
        found = multiturn_aware_reward(
            task_desc=task,
            single_turn_prompt=prompt,
            single_turn_completion=reference,
            metric_names=list(weights),
            metric_weights=list(weights.values()),
            reward_generation_kwargs=speaker("judge"),
            metadata=metadata,
            chat_history=messages,
            num_samples=samples,
            max_new_turns=new,
            assistant_generation_kwargs=speaker("policy"),
            user_generation_kwargs=speaker("user"),
            verbose=False,
        )
        return {"parts": found}

    return {"version": version("collabllm")}, {"reward": reward}


if __name__ == "__main__":
    answer(start)
