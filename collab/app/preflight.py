"""Checks before any weights are read: servers, without torch; then device, classes and model files."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collab.config.endpoints import endpoints_in, engine_endpoints, has_teacher, hosted, reads_model, users
from collab.config.fields import filled_prompts
from collab.config.policies import named_policies, policy_model
from collab.config.schema import (
    AgendaUserConfig,
    Config,
    LLMJudgeConfig,
    ModelConfig,
    PairwiseConfig,
    ShardedUserConfig,
    UserLMConfig,
    VLLMEngineConfig,
)
from collab.conversation import Role, guessed_tokens
from collab.util.errors import BadInput, error_text
from collab.util.processes import layout, rank
from collab.util.targets import load_target

if TYPE_CHECKING:
    from collab.conversation import Group
    from collab.datamodules.goals import GoalSplits
    from collab.lm.chat_format import ChatFormat


def check_machine(
    config: Config,
    goals: GoalSplits,
    entry: str = "train",
    groups: Sequence[Group] = (),
    further: str = "",
    format: ChatFormat | None = None,
) -> ChatFormat | None:
    """The checks that need torch and the tokenizer; they read no weights. Prints what the chat template does, and goals
    that are too long.

    Args:
        config: The checked config.
        goals: Of the task.
        entry: "train", "evaluate" or "synthesize". Rules of the update hold for "train" only.
        groups: The stored groups of `algorithm.data`, if it is set. Responses that are too long do not count.
        further: The name of a task of `evaluation.tasks`, which its notes begin with. The models have been checked with
            the first task, and what the template does has been printed.
        format: For a further task: what the first check has returned.

    Returns:
        How the model of the config reads and writes messages, so that its tokenizer is read once for all tasks; None if
        this process reads no model.

    Raises:
        BadInput: The sandbox, device, processes, classes, metrics, stored groups, models, chat templates, goals,
            references or the server of the engine do not fit the config. The message says which and why.
    """
    from collab.app.too_long import goals_that_fit
    from collab.datamodules.goals import check_reference_lengths
    from collab.datamodules.offline import tokenise
    from collab.lm.chat_format import ChatFormat
    from collab.lm.device import resolve_attention, resolve_device, resolve_dtype
    from collab.lm.loading import load_tokenizer, num_positions
    from collab.lm.template_arguments import check_arguments
    from collab.sandbox.run import check_strict
    from collab.util.quiet import quiet

    quiet()
    if config.sandbox == "strict":
        check_strict()
    device = resolve_device(config.trainer.accelerator)
    _check_devices(config, device.type, entry)
    resolve_attention(config.model.attention, resolve_dtype(config.precision, device), device)
    for key, target in targets(config).items():
        load_target(target, key)
    _check_classes(config)
    _check_metrics(config, goals)
    _check_needs_of_users(config, goals)
    _check_shards(config, goals, entry)
    _check_aggregates(config)
    template = "" if further else _check_models(config, entry)
    _check_room(config, entry)
    if reads_model(config) and not further:
        tokenizer = load_tokenizer(config.model)
        check_arguments(tokenizer, config.model.chat_template_kwargs)
        format = ChatFormat(tokenizer)
        if groups:
            from collab.app import build

            groups = tokenise(groups, ChatFormat(build.tokenizer(config)), num_positions(config.model))
            build.module(config, config.model, tokenizer).check_data(groups)
    goals, notes = goals_that_fit(config, goals, entry)
    if entry == "train" and isinstance(config.user, AgendaUserConfig):
        notes += _told_whole(goals)
    if rank() == 0:
        for note in (*([f"chat template: {template}"] if template else []), *notes):
            print(f"{further}: {note}" if further else note, flush=True)
    _check_evaluator(config, goals)
    check_reference_lengths(
        [*goals.train, *goals.val, *goals.test],
        lambda text: guessed_tokens(text) if format is None else len(format.encode_text(text)),
        config.task.max_new_tokens,
    )
    if isinstance(config.engine, VLLMEngineConfig):
        from collab.app.server_checks import check_server

        check_server(config, config.engine, None if format is None else format.tokenizer, entry)
    return format


def _told_whole(goals: GoalSplits) -> list[str]:
    """A note about training goals whose user tells the reference itself."""
    without = [goal for goal in goals.train if not goal.notes and goal.agenda is None]
    if not without:
        return []
    return [
        f"{len(without)} of the {len(goals.train)} training goals have no notes. There the user tells the reference, "
        "sentence by sentence, and what is learned is to paste. Write notes into single_turn_metadata (docs/data.md)."
    ]


def _check_models(config: Config, entry: str) -> str:
    """The files of every model that this process loads; reads no weights. Returns what the model's template does."""
    from collab.lm.checks import check_lora, check_model

    template = check_model(config.model) if reads_model(config) else ""
    if reads_model(config) and not (entry == "train" and config.algorithm.plays_user):
        _check_speaker(config.model, f"model.path={config.model.path}", "assistant")
    _check_speakers(config)
    if entry == "train":
        check_lora(config.model)
        _check_base_for_others(config)
    if entry == "evaluate":
        for name, row in named_policies(config.policies).items():
            if not isinstance(row, Path):
                continue
            model = policy_model(config, row)
            try:
                check_model(model)
            except BadInput as error:
                raise BadInput(f"policies: {name} cannot be played. {error}") from error
            _check_speaker(model, f"policies: {name}", "assistant")
    return template


def _check_room(config: Config, entry: str) -> None:
    """Whether the conversations of the task fit into the positions of every model that plays the policy."""
    if not has_teacher(config):
        _check_positions(config, config.model, "model.path")
    if entry == "evaluate":
        for row in named_policies(config.policies).values():
            if isinstance(row, Path):
                _check_positions(config, policy_model(config, row), "policies")


def _check_speaker(model: ModelConfig, what: str, speaker: Role) -> None:
    """Refuse a user model that is to speak as the assistant, and the other way round."""
    from collab.lm.chat_format import ChatFormat
    from collab.lm.loading import load_tokenizer

    if ChatFormat(load_tokenizer(model)).speaker == speaker:
        return
    if speaker == "user":
        raise BadInput(
            f"{what}: user=userlm needs a user model, whose chat template opens a message of the user, and this one's "
            "opens the assistant's. Name microsoft/UserLM-8b or a policy of experiment=user_sft, or take user=local."
        )
    raise BadInput(
        f"{what} is a user model: its chat template opens a message of the user, so it cannot speak as an assistant. "
        "Name another model; user=userlm user.endpoint.model=PATH has it play the user."
    )


def _check_speakers(config: Config) -> None:
    """The files of the local models that play users and judges, or extract."""
    from collab.lm.checks import check_model
    from collab.lm.loading import local_model

    for key, endpoint in endpoints_in(config).items():
        if endpoint.kind != "local":
            continue
        named = local_model(config.model, endpoint)
        if endpoint.model is not None:
            try:
                check_model(named)
            except BadInput as error:
                raise BadInput(f"{key}.model={endpoint.model} cannot speak. {error}") from error
        plays = isinstance(users(config).get(key.removesuffix(".endpoint")), UserLMConfig)
        _check_speaker(named, f"{key}.model={endpoint.model}", "user" if plays else "assistant")


def _check_base_for_others(config: Config) -> None:
    """Refuse to push an adapter to a base that only this machine has."""
    from collab.lm.loading import locate

    base, _ = locate(config.model)
    adapter = config.model.lora.enabled and not config.export.merge
    if config.push_to_hub is not None and adapter and Path(base).exists():
        raise BadInput(
            f"push_to_hub={config.push_to_hub}: the policy would be an adapter to {base}, which only this machine has, "
            "so that nobody else could load it. Set export.merge=true, which writes a whole model, or name the base by "
            "its Hugging Face id in model.path."
        )


def check_players(config: Config, goals: GoalSplits, policy_here: bool, entry: str = "evaluate") -> None:
    """The checks of users, judges, metrics, models and servers alone, for conversations outside of a run.

    Args:
        config: The checked config.
        goals: Of the conversations.
        policy_here: Whether `config.model` is loaded to play the policy.
        entry: The command, for the estimate of hosted calls.

    Raises:
        BadInput: As `check_machine` and `check_hosted`.
    """
    for key, target in targets(config).items():
        load_target(target, key)
    _check_classes(config)
    _check_metrics(config, goals)
    _check_needs_of_users(config, goals)
    _check_shards(config, goals, entry)
    if policy_here:
        _check_models(config, "evaluate")
        _check_room(config, "evaluate")
    else:
        _check_speakers(config)
    check_hosted(config, goals, entry)


def check_hosted(config: Config, goals: GoalSplits, entry: str) -> None:
    """Ask every server for its models, and compare the budget with an estimate; without torch.

    Args:
        config: The checked config.
        goals: Of the task.
        entry: "train", "evaluate" or "synthesize".

    Raises:
        BadInput: A server does not answer, refuses its key or lacks its model; the budget is too small for one step.
    """
    if isinstance(config.engine, VLLMEngineConfig):
        from collab.generation.vllm_server import VLLMServer

        for endpoint in engine_endpoints(config.engine):
            VLLMServer(endpoint).base()
    if not (servers := hosted(config, entry)):
        return
    from collab.app.estimate import check_budget, estimate
    from collab.chat.probe import served_model

    for key, endpoint in servers.items():
        try:
            served_model(endpoint)
        except BadInput as error:
            raise BadInput(f"{key}: {error}") from None
    check_budget(config, estimate(config, goals, entry))


def _check_devices(config: Config, kind: str, entry: str) -> None:
    import torch

    there = torch.cuda.device_count() if kind == "cuda" else 1
    goals, strategy = config.trainer.goals_per_step, config.strategy
    devices, nodes = layout(config.trainer.devices, config.trainer.num_nodes, there)
    if kind == "cpu" and isinstance(devices, list):
        raise BadInput(
            f"trainer.devices ({devices}) lists indices of devices, and the run is on the CPU. "
            f"Set trainer.devices={len(devices)}, a number of processes."
        )
    if kind == "cuda" and (devices > there if isinstance(devices, int) else max(devices) >= there):
        raise BadInput(
            f"trainer.devices ({devices}) asks for more than this machine has: {there} CUDA devices. "
            "Set trainer.devices=auto."
        )
    processes = (devices if isinstance(devices, int) else len(devices)) * nodes
    if processes > 1 or strategy.name == "fsdp":
        _check_backend(kind, f"strategy={strategy.name}, {processes} processes")
    if entry == "train" and goals % processes:
        raise BadInput(
            f"trainer.goals_per_step ({goals}) must be a multiple of the number of processes ({processes}, "
            f"{devices} on each of {nodes} machines): each takes the same number of goals. "
            f"Set trainer.goals_per_step={(goals // processes + 1) * processes}."
        )
    updates = config.algorithm.num_minibatches if entry == "train" else 1
    if goals // processes % updates:
        raise BadInput(
            f"algorithm.num_minibatches ({updates}) must divide the {goals // processes} goals that each of the "
            f"{processes} processes takes in a step, so that an update has goals of all of them. Set "
            f"trainer.goals_per_step={(goals // (processes * updates) + 1) * processes * updates}."
        )


def _check_backend(kind: str, what: str) -> None:
    """Refuse a torch whose processes cannot communicate."""
    from torch import distributed

    name = "nccl" if kind == "cuda" else "gloo"
    if not distributed.is_available() or not getattr(distributed, f"is_{name}_available")():
        raise BadInput(
            f"{what}: this torch has no {name}, which processes on {kind} devices need to exchange tensors. Install a "
            "torch that has it, or run one process with strategy=auto."
        )


_METHODS = {  # methods that a run calls, and that a user's own class must have
    "user": ("respond",),
    "engine": ("complete", "clear_cache"),
    "algorithm": ("examples", "units", "loss"),
}


def _check_classes(config: Config) -> None:
    """Whether the classes of user, engine and algorithm have the methods of their kind, and take their options."""
    parts: dict[str, Any] = {**users(config), "engine": config.engine, "algorithm": config.algorithm}
    for key, part in parts.items():
        kind = key if key in _METHODS else "user"
        cls = load_target(part.target, f"{key}.target")
        found = {name: getattr(cls, name, None) for name in _METHODS[kind]}
        missing = [name for name, method in found.items() if getattr(method, "__isabstractmethod__", method is None)]
        if missing:
            raise BadInput(
                f"{key}.target={part.target} has no method {' and no '.join(missing)}, and a run calls it. Write it, "
                f"as docs/new-{kind}.md shows, or name another class."
            )
        try:
            inspect.signature(cls).bind_partial(**part.options)
        except TypeError as error:
            raise BadInput(
                f"{key}.options ({part.options}) do not fit {part.target}: {error}. Set {key}.options to what the "
                "class takes."
            ) from error


def check_judge(config: Config) -> None:
    """Refuse metrics that a judge measures where there is none.

    Raises:
        BadInput: Names the first such metric and the way out.
    """
    from collab.rewards.judge import JudgedMetric

    official = bool(config.definitions.tasks)
    for name, metric in config.task.metrics.items():
        cls = load_target(metric.target, f"task.metrics.{name}.target")
        judged = issubclass(cls, JudgedMetric) or getattr(cls, "whole_chat", False)
        if judged and not isinstance(config.judge, LLMJudgeConfig):
            raise BadInput(
                f"task.metrics.{name} ({metric.target}) is measured by a judge, and judge={config.judge.name} is none. "
                f"Set judge=llm or judge=local, or take {'definitions=collab' if official else 'another metric'}."
            )


def _check_metrics(config: Config, goals: GoalSplits) -> None:
    from collab.rewards.metrics import applies

    check_judge(config)
    asked: set[str] = set()  # prompts of the judge
    for name, metric in config.task.metrics.items():
        try:
            made = load_target(metric.target, f"task.metrics.{name}.target")(**metric.options)
        except (TypeError, BadInput) as error:
            if isinstance(error, BadInput) and not metric.options:
                raise BadInput(f"task.metrics.{name}: {error}") from error
            raise BadInput(
                f"task.metrics.{name}.options ({metric.options}) do not fit {metric.target}: {error_text(error)} "
                f"Set task.metrics.{name}.options to what the class takes."
            ) from error
        asked |= {"extract"} if getattr(made, "whole_chat", False) else {getattr(made, "what", "")}
        for goal in (*goals.train, *goals.val, *goals.test):
            missing = sorted(set(getattr(made, "needs", ())) - goal.metadata.keys()) if applies(made, goal) else []
            if missing:
                raise BadInput(
                    f"task.metrics.{name} ({metric.target}) needs {' and '.join(missing)} in a goal's metadata, and "
                    f"goal {goal.id} of task {config.task.name} has {', '.join(goal.metadata) or 'none'}. Take "
                    "a metric that fits the task, or goals that have it."
                )
    prompted = {name for name, prompt in filled_prompts(config.judge).items() if prompt}
    for name in getattr(config.judge, "rubrics", {}):
        if name not in (rated := asked - prompted - {"", "extract"}):
            raise BadInput(
                f"judge.rubrics has {name}. With task={config.task.name} and judge={config.judge.name}, what is rated "
                f"by a rubric is {', '.join(sorted(rated)) or 'nothing'}. Leave it out, or name one of these."
            )
    for name, prompt in filled_prompts(config.judge).items():
        if prompt and name not in asked:
            raise BadInput(
                f"judge.{name}_prompt is set, and no metric of task={config.task.name} with "
                f"definitions={config.definitions.name} asks it. Leave it out, or take definitions=official and a task "
                "that is measured so."
            )


def _check_aggregates(config: Config) -> None:
    import numpy as np

    values = {name: np.zeros(2) for name in ("reward", *config.task.metrics, "assistant_tokens", "turns")}
    for name, target in config.task.aggregates.items():
        aggregate = load_target(target, f"task.aggregates.{name}", function=True)
        try:
            aggregate(values)
        except KeyError as error:
            raise BadInput(
                f"task.aggregates.{name}={target} needs the metric {error}, and there are {', '.join(values)}. Add it "
                "to task.metrics."
            ) from error


def _check_needs_of_users(config: Config, goals: GoalSplits) -> None:
    """Refuse goals whose metadata lack what a class of user says that it needs (`needs`), or what tools need."""
    found = {
        f"{key} ({user.target})": set(getattr(load_target(user.target, f"{key}.target"), "needs", ()))
        for key, user in users(config).items()
    }
    if config.task.tools.functions:
        found["task.tools"] = {"state", "wanted"}
    for who, needs in found.items():
        for goal in (*goals.train, *goals.val, *goals.test):
            if missing := sorted(needs - goal.metadata.keys()):
                raise BadInput(
                    f"{who} needs {' and '.join(missing)} in a goal's metadata, and goal {goal.id} of "
                    f"task {config.task.name} has {', '.join(goal.metadata) or 'none'}. Take a task that has "
                    "it, or do without what needs it."
                )


def _check_shards(config: Config, goals: GoalSplits, entry: str) -> None:
    """Refuse a user that tells one shard in each turn if there are too few turns for the goals that are played."""
    from collab.parsing.agenda_items import shards_of

    played = goals.test if entry == "evaluate" else [*goals.train, *goals.val, *goals.test]
    for key, user in users(config).items():
        if not isinstance(user, ShardedUserConfig):
            continue
        most, name = max((len(shards_of(goal)) if user.told == "sharded" else 1, goal.id) for goal in played)
        if most >= config.task.max_turns:
            raise BadInput(
                f"{key} tells goal '{name}' in {most} {'turns' if most > 1 else 'turn'}; task.max_turns "
                f"({config.task.max_turns}) must be larger, for the user's last request. Set task.max_turns={most + 1}."
            )


def _check_evaluator(config: Config, goals: GoalSplits) -> None:
    from collab.parsing.agenda_items import makes

    if isinstance(config.evaluator, PairwiseConfig) and any(makes(goal) != "text" for goal in goals.test):
        raise BadInput(
            f"evaluator={config.evaluator.name} compares texts, and goals of task={config.task.name} ask for something "
            "else. Set evaluator=none."
        )


def _check_positions(config: Config, model: ModelConfig, key: str) -> None:
    from collab.lm.loading import num_positions

    task, positions = config.task, num_positions(model)
    if positions is not None and task.max_turns * task.max_new_tokens > positions:
        raise BadInput(
            f"task.max_turns ({task.max_turns}) times task.max_new_tokens ({task.max_new_tokens}) is "
            f"{task.max_turns * task.max_new_tokens} tokens for the assistant alone, and {key} "
            f"({model.path or model.name}) has {positions} positions for the whole conversation. "
            f"Set task.max_new_tokens={positions // (2 * task.max_turns)} or less, or fewer turns."
        )


def targets(config: Config) -> dict[str, str]:
    """Dotted key -> the class that it names."""
    return {
        "task.target": config.task.target,
        "algorithm.target": config.algorithm.target,
        **{f"{key}.target": user.target for key, user in users(config).items()},
        "engine.target": config.engine.target,
        **{f"task.metrics.{name}.target": metric.target for name, metric in config.task.metrics.items()},
    }
