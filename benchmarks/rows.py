"""What is measured: the rows of the table, in their order, and how each side of them is set up. No figures here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One comparison; the function that measures it has the row's name and stands in `benchmarks/<subject>.py`.

    Attributes:
        subject: Module of the function.
        unit: Of both sides' figures.
        wanted: Bound for the ratio ours / peer.
        what: What is measured, for the table.
        ours: How our side is set up.
        peer: How the other side is.
        devices: Where the row can be measured.
    """

    subject: str
    unit: str
    wanted: str
    what: str
    ours: str
    peer: str
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")


_FORWARD = (
    "forward sampling, 4 contexts x 2 candidates x 3 samples, w = 2, 48 tokens a turn, user server with 0.25 s latency"
)
_OUR_FORWARD = (
    "`multiturn_reward` of all contexts at once over the engine; the user is asked over HTTP, the reward is a metric "
    "that returns 0. The engine's cache is emptied before every run."
)
_OFFICIAL = (
    "`multiturn_aware_reward` for one candidate after the other, as in the package's own data generation, with all its "
    "samples in one call, `max_new_turns=4` (it counts messages), the same contexts, candidates and user server, and a "
    "registered metric that returns 0. "
)
_DECODING = "decoding, 32 requests of 64 new tokens each, prompts of one length"
_ENGINE = "32 requests at once to the engine, its cache emptied; reading prompts and detokenising replies counts."
_UPDATE = "policy update, history of 512 tokens, 8 candidates of 64, LoRA r 32 in fp32 on a frozen base"
_OUR_UPDATE = "`pack`, `Policy`, GRPO's loss and the backward pass, in a process of its own"
_TRL = (
    "`GRPOTrainer.compute_loss`, which has its log-probs, and the backward pass, on one batch of the 8 whole sequences "
    "without padding; without a reference model, under its default bf16 autocast, in a process of its own"
)

ROWS: dict[str, Row] = {
    "forward_vs_official": Row(
        "forward",
        "conversations/s",
        ">= 8",
        f"{_FORWARD}: against the official package, local mode",
        _OUR_FORWARD,
        _OFFICIAL + "The local mode generates one conversation at a time through a transformers pipeline; "
        "`min_new_tokens` keeps it from stopping early.",
    ),
    "forward_vs_official_vllm": Row(
        "forward",
        "conversations/s",
        ">= 2",
        "the same: against the official package's vLLM mode",
        _OUR_FORWARD,
        _OFFICIAL + "In the vLLM mode the samples of a candidate are one batch; the engine is that of "
        "`decode_vs_vllm`, its prefix cache is emptied before every run.",
        devices=("cpu",),
    ),
    "decode_vs_generate": Row(
        "decoding",
        "tokens/s",
        ">= 2",
        f"{_DECODING}: against transformers' `generate`",
        _ENGINE,
        "One batch of token ids without padding, pure sampling at the same temperature, `min_new_tokens` as many.",
    ),
    "decode_vs_vllm": Row(
        "decoding",
        "tokens/s",
        ">= 1",
        "the same: against vLLM's CPU build",
        _ENGINE,
        "`LLM.generate` on the same token ids, `ignore_eos`, without detokenising, bound to the same number of cores; "
        "defaults otherwise, libiomp5 and, where the system has it, libtcmalloc preloaded as its manual says. Its "
        "prefix cache is emptied before every run.",
        devices=("cpu",),
    ),
    "decode_vs_floor": Row(
        "decoding",
        "tokens/s",
        ">= 0.4",
        "the same: against the model's own linear layers alone",
        _ENGINE,
        "The linear layers and the head as transformers has them, each called once a token on 32 rows, and nothing "
        "else of a model. No lower bound: the engine computes the same products in a faster layout.",
    ),
    "samples_1_to_8": Row(
        "forward",
        "s",
        "<= 4",
        "forward samples per candidate, 8 against 1 (4 contexts x 2 candidates, w = 2)",
        "8 samples of each candidate, the agenda user answering at once.",
        "1 sample of each.",
    ),
    "update_vs_trl": Row(
        "update",
        "candidate tokens/s",
        ">= 3",
        f"{_UPDATE}: against TRL",
        _OUR_UPDATE + ".",
        _TRL + ". A run counts only where both sides' gradients have the same norm.",
    ),
    "update_memory_vs_trl": Row(
        "update",
        "MB",
        "<= 0.6",
        "peak memory of that update above the loaded weights",
        "Highest resident memory during an update less that before it, freed memory given back to the system first; on "
        "a GPU, of allocated memory.",
        "The same measure in the same way.",
    ),
    "user_latency": Row(
        "forward",
        "s",
        "<= 1.2",
        "64 conversations, w = 2, user latency 1 s instead of 0: added time, against the chain of two answers",
        "Time with the slow user less that with the prompt one (8 contexts x 2 candidates x 4 samples).",
        "The two answers that a conversation has to wait for.",
    ),
    "overlap_vs_strict": Row(
        "overlap",
        "s",
        "<= 0.67",
        "a step of training with a user of 1 s latency on loopback, two processes: rollouts and updates overlapped "
        "against strict",
        "`experiment=doc_edit algorithm=grpo rollout.max_staleness=2` on goals with short texts, 6 steps of two "
        "contexts x 4 candidates, w = 2, 16 tokens a turn, a core for each process. Time from the start of training to "
        "the end of its last step, by step: the first rollout and the last update, which nothing overlaps, count.",
        "The same with `rollout.max_staleness=0`.",
        devices=("cpu",),
    ),
    "decode_vs_continuous_batching": Row(
        "decoding",
        "tokens/s",
        ">= 1",
        f"{_DECODING}: against transformers' continuous batching",
        _ENGINE,
        "`generate_batch` on the same token ids at the same temperature, without an end token.",
        devices=("cuda",),
    ),
}
