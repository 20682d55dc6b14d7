"""From the checked config to the objects of a run. `train.py` and `evaluate.py` build the same things here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_class
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from collab.app.resume import JOURNAL
from collab.app.too_long import contexts_that_fit, goals_that_fit
from collab.callbacks.progress import Progress
from collab.chat.base import ChatModel, Sampling
from collab.chat.endpoints import Endpoints
from collab.chat.journal import Journal, Journalled
from collab.config.fields import filled_prompts
from collab.config.schema import (
    Config,
    EndpointConfig,
    EngineConfig,
    LLMJudgeConfig,
    LocalEngineConfig,
    MixUserConfig,
    ModelConfig,
    PairwiseConfig,
    SpokenUserConfig,
    VLLMEngineConfig,
)
from collab.conversation import Conversation, Goal, Group, Message, Reply
from collab.datamodules.base import GoalDataModule
from collab.datamodules.chat_logs import held_out, logs_of
from collab.datamodules.conversations import load_groups, training_groups
from collab.datamodules.goals import GoalSplits, load_splits
from collab.datamodules.offline import by_conversation, tokenise
from collab.generation.base import RolloutEngine
from collab.lm.chat_format import ChatFormat
from collab.lm.device import resolve_device, resolve_dtype
from collab.lm.loading import load_model, load_tokenizer, local_model, locate, num_positions
from collab.lm.user_template import speak_as_user
from collab.modules.base import PolicyModule
from collab.modules.sharding import CheckpointFiles, ShardedStrategy, Sharding
from collab.randomness import RngKey
from collab.rewards.judge import Judge, JudgedMetric
from collab.rewards.pairwise import PairwiseJudge
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Observer
from collab.simulation.sampler import Simulation
from collab.simulation.tools import ToolUser
from collab.util.errors import BadInput
from collab.util.processes import layout, rank
from collab.util.quiet import quiet

_TIMEOUT = timedelta(hours=12)  # a process waits this long for the others, whose rollouts may wait for a server

Speaker = Callable[[EndpointConfig], ChatModel]

_LOCAL: dict[str, ChatModel] = {}  # engines over weights other than the policy's, by all that they are made from


def start(config: Config) -> None:
    """Seed everything, set threads, quiet the libraries; call it before anything is built."""
    quiet()
    if config.threads:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)


def describe(config: Config) -> str:
    """One line: which model, in which precision, on which device, in how many processes."""
    text, processes = describe_model(config), num_processes(config)
    return text if processes == 1 else f"{text}, {processes} processes, {_strategy_name(config)}"


def describe_model(config: Config) -> str:
    """Which model, in which precision, on which device."""
    device = resolve_device(config.trainer.accelerator)
    dtype = str(resolve_dtype(config.precision, device)).removeprefix("torch.")
    return f"{config.model.path or config.model.name} in {dtype} on {device.type}"


def data(config: Config, entry: str, groups: list[Group] | None = None) -> GoalDataModule:
    """The task's goals, without those that are too long, and the stored groups to train on, if there are any."""
    goals, _ = goals_that_fit(config, load_splits(config.task), entry)
    stored: list[tuple[Group, ...]] | None = None
    if groups is not None:
        algorithm: Any = get_class(config.algorithm.target)
        whole = algorithm.whole_conversations
        stored = by_conversation(groups) if whole else [(group,) for group in groups]
    trainer = config.trainer
    return GoalDataModule(goals, trainer.goals_per_step, trainer.max_steps, config.seed, stored)


def stored_groups(config: Config) -> list[Group] | None:
    """The scored groups of `algorithm.data` with their token ids; None if it is not set."""
    if config.algorithm.data is None:
        return None
    groups = training_groups(config.algorithm, config.task.system_prompt)
    return tokenise(groups, ChatFormat(tokenizer(config)), num_positions(config.model))


def chat_logs(config: Config) -> tuple[GoalDataModule, list[str]]:
    """The users' messages in `algorithm.data` as batches to learn from, and held-out ones; and notes about them."""
    groups, notes = logs_of(config.algorithm, load_splits(config.task))
    format, positions = ChatFormat(tokenizer(config)), num_positions(config.model)
    train, measured = (by_conversation(tokenise(part, format, positions)) for part in held_out(groups))
    notes.append(f"{len(train)} conversations are learned from, {len(measured)} are held out")
    trainer, nothing = config.trainer, GoalSplits([], [], [])
    return GoalDataModule(nothing, trainer.goals_per_step, trainer.max_steps, config.seed, train, measured), notes


def tokenizer(config: Config) -> Any:
    """The tokenizer of the model that is trained; that of a user model opens messages of the user."""
    made = load_tokenizer(config.model)
    if config.algorithm.plays_user:
        speak_as_user(made)
    return made


def stored_contexts(
    config: Config, goals: Sequence[Goal], tell: Callable[[str], None] = lambda text: None
) -> dict[tuple[str, int], Conversation]:
    """(Prompt of a goal, turn) -> its context in `sampler.contexts`, without those that are too long.

    Empty if nothing is rolled out.

    Args:
        config: The checked config.
        goals: To train on.
        tell: Gets a line that says how many of them have contexts.

    Raises:
        BadInput: As `load_groups`, or no goal has a context.
    """
    source = config.sampler.contexts
    if source is None or config.algorithm.data is not None:
        return {}
    groups = load_groups(source, config.task.system_prompt, "sampler.contexts")
    contexts = {(one.context.goal.prompt, one.context.turn): one.context for one in groups}
    prompts = {prompt for prompt, _ in contexts}
    count = sum(goal.prompt in prompts for goal in goals)
    if not count:
        raise BadInput(
            f"sampler.contexts={source} has contexts of none of the {len(goals)} training goals: none has the same "
            f"single_turn_prompt. Take the goals from there, too (task.train_file={source}), or leave it out."
        )
    tell(f"{count} of the {len(goals)} training goals have contexts in {source}.")
    return contexts_that_fit(config, contexts)


def endpoints(config: Config, progress: Progress) -> Endpoints:
    """The hosted models of this run: a context manager around all conversations."""
    return Endpoints(config, progress.note, rank(), num_processes(config))


def num_processes(config: Config) -> int:
    """Processes of the run, over all machines."""
    devices, nodes = _layout(config)
    return (len(devices) if isinstance(devices, list) else devices) * nodes


def _layout(config: Config) -> tuple[Any, int]:
    on_cuda = resolve_device(config.trainer.accelerator).type == "cuda"
    return layout(config.trainer.devices, config.trainer.num_nodes, torch.cuda.device_count() if on_cuda else 1)


def journal(config: Config) -> Journal:
    """The journal of replies in `config.output_dir`."""
    return Journal(Path(config.output_dir) / JOURNAL, rank())


def simulation(
    config: Config,
    endpoints: Endpoints,
    on_conversation: Callable[[], None],
    model: ModelConfig | None = None,
    journal: Journal | None = None,
    observer: Observer | None = None,
) -> Simulation:
    """Everything about conversations except the policy's weights.

    Args:
        config: The checked config.
        endpoints: The hosted models of the run.
        on_conversation: Called at the end of each conversation.
        model: The policy; None if it is no local model. Users and judges with the same base weights share its memory.
        journal: Stores the replies of users, judges and policy.
        observer: Hears what is said.
    """
    sampler, task = config.sampler, config.task
    problems: Counter[str] = Counter()
    shared = SharedWeights(locate(model)[0]) if model is not None and model.lora.enabled else None

    def make_engine(lm: Any, tokenizer: Any) -> RolloutEngine:
        engine = _engine(config, lm, tokenizer, endpoints.tell)
        if shared is not None:
            shared.engine = engine
        return engine

    def speaker(endpoint: EndpointConfig) -> ChatModel:
        chat = chat_model(config, endpoint, endpoints, shared)
        return chat if journal is None else Journalled(chat, journal)

    user = _user(config, config.user, speaker, problems)
    if task.tools.functions:
        user = ToolUser(user, task.tools, strict=config.sandbox == "strict")
    return Simulation(
        user=user,
        reward=ConversationReward(_metrics(config, speaker, problems)),
        sampling=Sampling(
            task.max_new_tokens,
            sampler.temperature,
            sampler.top_p,
            sampler.top_k,
            show_thoughts=config.model.show_thoughts,
        ),
        max_turns=task.max_turns,
        sampler=sampler,
        seed=config.seed,
        make_engine=make_engine,
        on_conversation=on_conversation,
        observer=observer or Observer(),
        journal=journal,
        problems=problems,
        max_invalid=config.trainer.max_invalid,
        decodes_here=not isinstance(config.engine, VLLMEngineConfig),
    )


def _user(config: Config, user: Any, speaker: Speaker, problems: Counter[str]) -> Any:
    target: Any = get_class(user.target)
    if isinstance(user, MixUserConfig):
        users = {name: _user(config, one, speaker, problems) for name, one in user.users.items()}
        return target(user, users, **user.options)
    if isinstance(user, SpokenUserConfig):
        return target(user, config.task.max_turns, speaker(user.endpoint), problems, **user.options)
    return target(user, config.task.max_turns, **user.options)


def _metrics(config: Config, speaker: Speaker, problems: Counter[str]) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        name: (metric.weight, get_class(metric.target)(**metric.options))
        for name, metric in config.task.metrics.items()
    }
    judge = config.judge
    if not isinstance(judge, LLMJudgeConfig):
        return metrics
    model = speaker(judge.endpoint)
    rater, extractor = make_judge(judge, model, config.seed, problems), None
    if judge.extract or any(getattr(metric, "whole_chat", False) for _, metric in metrics.values()):
        if judge.extractor is not None:
            model = speaker(judge.extractor)
        sampling = Sampling(judge.max_extracted_tokens, judge.temperature, adapter=False)
        extractor = Judge(model, sampling, judge.retries, config.seed, problems, "extractor", filled_prompts(judge))
    for _, metric in metrics.values():
        if isinstance(metric, JudgedMetric):
            metric.judge = rater
        if hasattr(metric, "extractor"):
            metric.extractor = extractor
    return metrics


def make_judge(judge: LLMJudgeConfig, model: ChatModel, seed: int, problems: Counter[str]) -> Judge:
    """The judge that rates.

    Args:
        judge: Of the config.
        model: Behind its endpoint.
        seed: Of the run.
        problems: Counts what could not be read.
    """
    sampling = Sampling(judge.max_new_tokens, judge.temperature, adapter=False)
    prompts, rubrics = filled_prompts(judge), judge.rubrics
    return Judge(model, sampling, judge.retries, seed, problems, prompts=prompts, rubrics=rubrics)


def _engine(config: Config, lm: Any, tokenizer: Any, tell: Callable[[str], None]) -> RolloutEngine:
    engine = config.engine
    if not isinstance(engine, VLLMEngineConfig):
        return _local_engine(engine, lm, tokenizer)
    target: Any = get_class(engine.target)
    return target(lm, tokenizer, engine, Path(config.output_dir), config.sampler.temperature, tell, **engine.options)


def _local_engine(engine: EngineConfig, lm: Any, tokenizer: Any) -> RolloutEngine:
    target: Any = get_class(engine.target)
    options = dict(engine.options)
    if isinstance(engine, LocalEngineConfig):
        options |= {"cache_bytes": int(engine.cache_gib * 2**30), "deterministic": engine.deterministic}
    return target(lm, tokenizer, max_batch=engine.max_batch, **options)


class SharedWeights:
    """The policy's base weights as a `ChatModel`: the engine of the rollout with the adapter off.

    Attributes:
        engine: Of the rollout, set when it is made.
        base: Folder or hub id of the base weights.
    """

    def __init__(self, base: str) -> None:
        self.engine: ChatModel | None = None
        self.base = base

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        assert self.engine is not None, "the rollout makes its engine before the first reply"
        return await self.engine.complete(messages, replace(sampling, adapter=False), key)


class OwnAdapter:
    """Weights of a user or a judge with an adapter of their own: it is on, whoever asks for the policy's to be off."""

    def __init__(self, engine: ChatModel) -> None:
        self.engine = engine

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        return await self.engine.complete(messages, replace(sampling, adapter=True), key)


def chat_model(
    config: Config, endpoint: EndpointConfig, endpoints: Endpoints, shared: SharedWeights | None = None
) -> ChatModel:
    """The model behind an endpoint: a server, or weights in this process.

    A process reads local weights once, and not at all if they are `shared` with the policy.
    """
    if endpoint.kind == "http":
        return endpoints.model(endpoint)
    named = local_model(config.model, endpoint)
    base, adapter = locate(named)
    if shared is not None and adapter is None and base == shared.base:
        return shared
    # If the policy speaks from a server, local users and judges get an engine with default settings.
    engine = config.engine if isinstance(config.engine, LocalEngineConfig) else LocalEngineConfig()
    # Base and adapter stand for the path, which may be spelt in several ways.
    how = replace(named, name="", path=None)
    key = repr((base, adapter, how, engine, config.precision, config.trainer.accelerator))
    if key not in _LOCAL:
        device = resolve_device(config.trainer.accelerator)
        lm = load_model(named, resolve_dtype(config.precision, device), device, adapter=False)
        made = _local_engine(engine, lm, load_tokenizer(named))
        _LOCAL[key] = made if adapter is None else OwnAdapter(made)
    return _LOCAL[key]


def evaluator(config: Config, endpoints: Endpoints) -> PairwiseJudge | None:
    """The judge that compares the policies' conversations at the end; None for `evaluator=none`."""
    if not isinstance(config.evaluator, PairwiseConfig):
        return None
    return PairwiseJudge(chat_model(config, config.evaluator.endpoint, endpoints), config.seed)


def module(config: Config, model: ModelConfig, tokenizer: Any, *, adapter: bool = True) -> PolicyModule:
    """The algorithm's module around `model`; `adapter=False` adds no fresh LoRA (a policy that is only evaluated)."""
    target: Any = get_class(config.algorithm.target)
    device = resolve_device(config.trainer.accelerator)
    dtype = resolve_dtype(config.precision, device)
    sharding = None
    if config.strategy.name == "fsdp":
        # If all weights are trained, the shards are fp32, and the computation is in `dtype`.
        compute, dtype = (None, dtype) if model.lora.enabled or not adapter else (dtype, torch.float32)
        load = partial(load_model, model, dtype, device, adapter, computed_in=compute)
        sharding = Sharding(partial(load, place=torch.device("meta")), compute)
        load = partial(load, place=torch.device("cpu"))  # the whole model may be too large for one GPU
    else:
        load = partial(load_model, model, dtype, device, adapter)
    algorithm, max_steps = config.algorithm, config.trainer.max_steps
    given = (load, tokenizer, config.sampler.temperature, max_steps, sharding, config.rollout.max_staleness)
    return target(algorithm, *given, **algorithm.options)


def trainer(config: Config, loggers: list[Logger], callbacks: list[L.Callback]) -> L.Trainer:
    devices, nodes = _layout(config)
    return L.Trainer(
        accelerator=resolve_device(config.trainer.accelerator).type,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(config),
        max_epochs=1,  # the run is one pass over its schedule of goals: `max_steps` batches
        val_check_interval=min(config.trainer.val_every, config.trainer.max_steps) or None,
        limit_val_batches=1.0 if config.trainer.val_every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        deterministic="warn" if config.trainer.deterministic else False,
        default_root_dir=config.output_dir,
        plugins=[CheckpointFiles(), *slurm_environment()],
    )


def slurm_environment() -> list[SLURMEnvironment]:
    """Without this, Lightning answers SLURM's signals with checkpoints of its own, and loads them at the next start.

    Empty if torchrun started the processes, which may be in a job of SLURM too.
    """
    by_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if by_slurm else []


def _strategy_name(config: Config) -> str:
    several = num_processes(config) > 1
    return "ddp" if config.strategy.name == "auto" and several else config.strategy.name


def _strategy(config: Config) -> Strategy | str:
    name = _strategy_name(config)
    if name == "fsdp":
        return ShardedStrategy(num_processes(config), config.strategy.sharded_checkpoints, _TIMEOUT)
    return DDPStrategy(timeout=_TIMEOUT) if name == "ddp" else "auto"
