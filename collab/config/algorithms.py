"""The fields of the algorithms; `schema.py` has those of everything else and says how a field is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from collab.config.fields import number, one_of


@dataclass
class AlgorithmConfig:
    """What all algorithms share.

    Attributes:
        offline: It learns from stored conversations, not from rollouts of the policy.
        compares_candidates: It needs at least two candidates of one context.
        weights_samples: Its loss weights tokens by their importance, so that an older policy may have sampled them.
    """

    offline: ClassVar[bool] = False
    compares_candidates: ClassVar[bool] = True
    weights_samples: ClassVar[bool] = False

    @property
    def plays_user(self) -> bool:
        """Whether it makes a model that plays users, not a policy."""
        return getattr(self, "speaker", "assistant") == "user"

    name: str = MISSING  # shown in run names
    target: str = MISSING  # class of the LightningModule
    options: dict[str, Any] = field(default_factory=dict)  # further keyword arguments of the class
    # stored conversations to train on: JSONL, Parquet, a folder of data sets or of a synthesis, or a hub name. An
    # algorithm that draws its own candidates takes goals (task.train_file) and contexts (sampler.contexts) from there
    data: str | None = None
    lr: float = number(3e-4, above=0)  # peak learning rate
    weight_decay: float = number(0.0, at_least=0)  # weight decay of AdamW
    warmup_steps: int = number(2, at_least=0)  # optimizer steps of linear warm-up
    schedule: str = one_of("constant", "cosine", "linear")  # learning rate after warm-up: constant | cosine | linear
    max_grad_norm: float = number(1.0, at_least=0)  # gradients are clipped to this norm; 0 does not clip
    # an optimizer step that moves the policy further than this is shortened, in nats per token; null: none is
    target_kl: float | None = number(None, above=0)
    # apply model.lora.dropout in the update; only for stored conversations, whose replies another policy wrote
    lora_dropout: bool = False
    num_minibatches: int = number(1, at_least=1)  # optimizer steps per epoch; the groups of a rollout are split evenly
    epochs: int = number(1, at_least=1)  # passes over each rollout
    # maximum tokens of a forward and backward pass, or a single group; changes memory, not the update. A pass has one
    # group where attention is not computed in blocks (eager, capped scores, short windows on a CPU)
    tokens_per_micro_batch: int = number(2048, at_least=1)


@dataclass
class OfflineConfig:
    """Fields of one offline algorithm that an experiment sets, whichever of them is chosen."""

    best_path: bool = False  # algorithm.best_path of algorithm=sft
    minimum_gap: float = number(0.0, at_least=0)  # algorithm.minimum_gap of algorithm=dpo


@dataclass
class SFTConfig(AlgorithmConfig):
    offline: ClassVar[bool] = True

    name: str = "sft"
    target: str = "collab.modules.sft.SFT"
    # train only on groups whose best reply has at least minimum_value in this: mr or a metric of R*; null: on all
    minimum_metric: str | None = None
    # learn of each conversation the one path that the best reply of its last turn ends, as the official code does;
    # false: the best reply of each turn
    best_path: bool = False
    minimum_value: float = number(0.0)  # groups whose best reply is below this are left out and counted
    # whose messages are learned: assistant | user, which makes a user model of chat logs (user=userlm)
    speaker: str = one_of("assistant", "user")
    scrub: bool = True  # take personal data out of the logs of speaker=user, with datafog


@dataclass
class DPOConfig(AlgorithmConfig):
    offline: ClassVar[bool] = True

    name: str = "dpo"
    target: str = "collab.modules.dpo.DPO"
    beta: float = number(0.1, above=0)  # strength of the implicit KL constraint to the reference policy
    minimum_gap: float = number(0.0, at_least=0)  # pairs whose MR differs by this or less are dropped and counted


@dataclass
class OnlineDPOConfig(DPOConfig):
    offline: ClassVar[bool] = False

    name: str = "online_dpo"


@dataclass
class GRPOConfig(AlgorithmConfig):
    weights_samples: ClassVar[bool] = True

    name: str = "grpo"
    target: str = "collab.modules.grpo.GRPO"
    clip_epsilon: float = number(0.2, above=0, below=1)  # the probability ratio is clipped to 1 +- clip_epsilon
    # weight of the KL to the reference policy in the loss; at 0, train/kl is measured on one example per step
    kl_coef: float = number(0.0, at_least=0)
    scale_by_std: bool = True  # divide advantages by the standard deviation of the group's rewards
    leave_one_out: bool = False  # baseline of a candidate is the mean reward of the others, not of the whole group
    # loss of a step: tokens (mean over tokens) | sequences (mean over sequences of their token mean) | sums (mean over
    # sequences of their token sum)
    loss_aggregation: str = one_of("tokens", "sequences", "sums")
    # train on this many candidates per group, those with the largest |advantage|; 0 trains on all
    max_trained_candidates: int = number(0, at_least=0)
    # added to the standard deviation of a group's rewards, so that nearly equal rewards give small advantages
    std_eps: float = number(1.0e-6, above=0)


@dataclass
class PPOConfig(AlgorithmConfig):
    compares_candidates: ClassVar[bool] = False
    weights_samples: ClassVar[bool] = True

    name: str = "ppo"
    target: str = "collab.modules.ppo.PPO"
    epochs: int = number(4, at_least=1)
    clip_epsilon: float = number(0.2, above=0, below=1)  # the probability ratio is clipped to 1 +- clip_epsilon
    # value loss, clipped to +- value_clip around the value at sampling time; in units of MR
    value_clip: float = number(0.2, above=0)
    value_coef: float = number(0.1, at_least=0)  # weight of the value loss; its gradient reaches the policy's trunk
    kl_coef: float = number(0.05, at_least=0)  # per-token KL penalty coefficient
    gamma: float = number(1.0, above=0, at_most=1)  # discount per token
    gae_lambda: float = number(0.95, at_least=0, at_most=1)  # GAE lambda: 0 is one-step TD, 1 is Monte Carlo
