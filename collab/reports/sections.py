"""Sections of the W&B workspace. W&B groups panels by what is before the first slash of a metric's name.

A metric keeps its name everywhere else (`train/mr` in `csv/metrics.csv`, TensorBoard and MLflow). At W&B its section
stands before it: `reward/train/mr`.
"""

from __future__ import annotations

from collections.abc import Collection

STEP = "trainer/global_step"  # Lightning's name of the step, the x axis of every panel
SECTIONS = {  # section -> what is in it
    "reward": "MR, R* and the parts of the reward, with their spread within a group",
    "rollout": "lengths of replies and contexts, lost conversations, signs of collapse",
    "user": "what the simulated user did: turns, early ends, unusable replies, calls",
    "judge": "unusable verdicts and calls of the judge and the extractor",
    "engine": "speed of decoding, and how far its log-probabilities are from the trainer's",
    "optimiser": "loss, KL, entropy, gradient norm, learning rate, and what else the algorithm logs",
    "system": "dollars and tokens of all hosted models; W&B adds processor, memory and GPU itself",
}
PLOTS = {  # section -> the metrics of each plot in the workspace that `collab workspace` saves
    "reward": (("train/mr", "val/reward"), ("train/mr_spread",)),
    "rollout": (
        *(("train/reply_tokens", "train/assistant_tokens"), ("train/sampled_entropy",)),
        *(("train/cut_replies",), ("train/invalid", "train/unscored"), ("train/collapse",)),
    ),
    "user": (("train/turns", "val/turns"), ("train/earlier_contexts",), ("spend/user_usd",)),
    "judge": (("spend/judge_usd",),),
    "engine": (("train/rollout_tokens_per_s",), ("train/rollout_seconds",), ("train/logprob_gap",)),
    "optimiser": (("train/loss",), ("train/kl",), ("train/entropy",), ("train/grad_norm",), ("train/lr",)),
    "system": (("spend/usd",), ("spend/tokens",)),
}
TABLES = "conversations"  # section of the tables
SUMMARIES = {  # metric -> what W&B's summary keeps of it beside the last value
    "train/mr": "max",
    "val/reward": "max",
    "val/log_likelihood": "max",
    "val/perplexity": "min",
}
_REWARD = ("mr", "reward", "token_penalty_saturated", "log_likelihood", "perplexity")
_ROLLOUT = (
    *("assistant_tokens", "reply_tokens", "cut_replies", "sampled_entropy", "context_turn", "distinct_questions"),
    *("candidates", "futures", "invalid", "unscored", "context_full", "lost_groups", "collapse"),
)
_NAMES = {
    **dict.fromkeys(_REWARD, "reward"),
    **dict.fromkeys(_ROLLOUT, "rollout"),
    **dict.fromkeys(("turns", "earlier_contexts"), "user"),
    **dict.fromkeys(("rollout_seconds", "rollout_tokens_per_s", "rollout_wait_seconds"), "engine"),
    "update_seconds": "optimiser",
    **dict.fromkeys(("logprob_gap", "staleness"), "engine"),
}
# what stands before "_": "user_leak", "judge_usd", "server_1_share"
_ROLES = {"user": "user", "judge": "judge", "extractor": "judge", "policy": "engine", "server": "engine"}


def section_of(metric: str, parts: Collection[str]) -> str:
    """The section of a metric, a key of `SECTIONS`.

    Args:
        metric: As it is logged, such as "train/mr", "spend/judge_usd" or "epoch".
        parts: Names of the parts of the reward (`task.metrics`).
    """
    kind, _, name = metric.partition("/")
    whole = name.removesuffix("_spread")
    if whole in parts:
        return "reward"
    if found := _NAMES.get(whole):
        return found
    if found := _ROLES.get(name.partition("_")[0]):
        return found
    return "optimiser" if kind in ("train", "val") else "system"


def sectioned(metric: str, parts: Collection[str]) -> str:
    """The metric's name at W&B: "reward/train/mr" of "train/mr"."""
    return f"{section_of(metric, parts)}/{metric}"
