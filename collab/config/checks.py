"""Rules across fields, which neither a field's type nor its range can express.

These are the rules of all commands. `checks_training.py` has those of training and synthesis, `endpoints.py` those of
servers and the budget, `policies.py` those of the rows of an evaluation.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collab.config.checks_training import hub_problems, synthesis_problems, teacher_problems, training_problems
from collab.config.endpoints import budget_problems, endpoint_problems, users
from collab.config.fields import prompt_problems, range_problems
from collab.config.policies import named_policies, policy_problems, source_problems
from collab.config.schema import (
    Config,
    MixUserConfig,
    ModelConfig,
    PairwiseConfig,
    ScriptedUserConfig,
    ShardedUserConfig,
    UserConfig,
    VLLMEngineConfig,
)
from collab.config.tasks import further_task_problems
from collab.util.errors import BadInput
from collab.util.paths import is_gguf, is_model_folder


def check(config: Config, entry: str = "train") -> None:
    """Check a composed config against all rules. Reads no goals and no model.

    Args:
        config: What Hydra composed.
        entry: The command, such as "train". Rules of the update bind only that.

    Raises:
        BadInput: All problems in one message.
    """
    problems = [
        *range_problems(config),
        *_task_problems(config, entry),
        *_model_problems(config.model),
        *_device_problems(config),
        *_user_problems(config),
        *_tool_problems(config),
        *prompt_problems(config),
        *teacher_problems(config, entry),
        *hub_problems(config.push_to_hub, entry),
        *endpoint_problems(config, entry),
        *budget_problems(config, entry),
        *_engine_problems(config, entry),
        *_evaluator_problems(config),
        *_table_problems(config, entry),
        *further_task_problems(config, entry),
        *source_problems(config.report.stored),
    ]
    if entry == "train":
        problems += training_problems(config)
    if entry == "synthesize":
        problems += synthesis_problems(config)
    if len(problems) == 1:
        raise BadInput(problems[0])
    if problems:
        raise BadInput(f"{len(problems)} problems in the config:\n" + "\n".join(f"- {text}" for text in problems))


def _task_problems(config: Config, entry: str) -> Iterator[str]:
    task = config.task
    if task.evaluation_only and entry in ("train", "synthesize"):
        yield (
            f"task {task.name} is for evaluation only (task.evaluation_only): it has no goals to train on. Run "
            f"`python evaluate.py task={task.name}`, or choose another task."
        )
    known = config.definitions.tasks
    if known and task.name not in known:
        yield (
            f"definitions={config.definitions.name} has metrics for {', '.join(known)}, and the task is {task.name}. "
            f"Take definitions=collab, or list metrics under definitions.tasks.{task.name} in a YAML file."
        )
    elif not task.metrics:
        yield "task.metrics is empty: R* is the weighted sum of metrics. Take task=doc_edit, or list at least one."
    elif all(metric.weight == 0 for metric in task.metrics.values()):
        yield "every weight in task.metrics is 0: all rewards would be equal. Give at least one metric a weight."
    if both := sorted(task.aggregates.keys() & task.metrics.keys()):
        yield f"task.aggregates and task.metrics both have {', '.join(both)}: results.json needs different names."
    use = {
        "train": "training compares base, proactive and trained",
        "synthesize": "half of the candidates are sampled under it",
    }.get(entry, "policies has proactive" if "proactive" in config.policies else "")
    if use and not task.proactive_prompt.strip():
        other = ", or set 'policies=[base]'" if entry == "evaluate" else ""
        yield f"task.proactive_prompt is empty, and {use}. Write the instruction{other}."
    if task.data and not task.evaluation_only:
        for split, file, number in (("val", task.val_file, task.num_val), ("test", task.test_file, task.num_test)):
            if not file and number is None:
                yield (
                    f"task.data ({task.data}) is cut into splits, and task.num_{split} is not set. Set it to a number "
                    f"of goals, or set task.{split}_file."
                )


def _model_problems(model: ModelConfig) -> Iterator[str]:
    targets = model.lora.target_modules
    names = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    if not targets or not (isinstance(targets, str) or names):
        yield (
            f"model.lora.target_modules ({targets}) must be all-linear, a regular expression, or a list of module "
            "names. Set model.lora.target_modules=all-linear."
        )
    if strange := [name for name in model.chat_template_kwargs if not name.isidentifier()]:
        yield (
            f"model.chat_template_kwargs has {strange[0]!r}, which no chat template can name. Set it to names and "
            "values, e.g. +model.chat_template_kwargs.enable_thinking=false."
        )
    if model.path is None:
        return
    folder = Path(model.path).expanduser()
    hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model.path) and not model.path.startswith(".")
    if folder.is_dir() and not is_model_folder(folder):
        yield (
            f"model.path={model.path} is not a model: the folder has neither config.json nor adapter_config.json. "
            "Set it to a folder that `save_pretrained` or a run wrote (outputs/.../policy), or to a Hugging Face id."
        )
    elif folder.is_file() and not is_gguf(folder):
        yield (
            f"model.path={model.path} is a file, and a model is a folder or a .gguf file. Set it to the folder that "
            "the file is in, or to a Hugging Face id."
        )
    elif not folder.exists() and (not hub_id or ("/" in model.path and folder.parent.is_dir())):
        yield (
            f"model.path={model.path} is not there, and it cannot be a Hugging Face id (owner/name). Check the path; "
            "it is relative to the current folder."
        )


def _device_problems(config: Config) -> Iterator[str]:
    devices, strategy = config.trainer.devices, config.strategy
    good = devices == "auto" or (_is_count(devices) and devices >= 1)
    if isinstance(devices, list) and devices and all(_is_count(index) and index >= 0 for index in devices):
        good = len(set(devices)) == len(devices)
    if not good:
        yield (
            f"trainer.devices ({devices}) must be auto, a number of at least 1, or a list of different indices. "
            "Set trainer.devices=1, or 'trainer.devices=[0,1]' on GPUs."
        )
    if strategy.name != "fsdp" and strategy.sharded_checkpoints:
        yield (
            f"strategy.sharded_checkpoints=true needs strategy=fsdp, and strategy is {strategy.name}. Set "
            "strategy=fsdp, or leave it out."
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _user_problems(config: Config) -> Iterator[str]:
    for name, node in config.evaluation.users.items():
        if not re.fullmatch(r"\w[\w .-]*", str(name)) or not isinstance(node, UserConfig):
            yield (
                f"evaluation.users.{name} must be a user with a name of letters and digits. Take an option of the "
                "group user: +user@evaluation.users.NAME=agenda."
            )
    if isinstance(config.user, ShardedUserConfig) and config.user.told in config.evaluation.users:
        yield (
            f"user.told={config.user.told} and evaluation.users.{config.user.told} are one condition, and each has "
            f"one row. Leave that one out by ~evaluation.users.{config.user.told}, or set another user.told."
        )
    for key, user in users(config).items():
        if isinstance(user, MixUserConfig):
            yield from _mix_problems(key, user)
        if isinstance(user, ScriptedUserConfig):
            yield from _script_problems(key, user, config.task.max_turns)


def _tool_problems(config: Config) -> Iterator[str]:
    tools = config.task.tools
    if not tools.functions:
        return
    try:
        defined = {node.name for node in ast.parse(tools.code).body if isinstance(node, ast.FunctionDef)}
    except (SyntaxError, ValueError) as error:
        yield f"task.tools.code is not Python: {error}. Write source that compiles."
        return
    for name, entry in tools.functions.items():
        if name not in defined:
            yield (
                f"task.tools.functions has {name}, and task.tools.code defines "
                f"{', '.join(sorted(defined)) or 'nothing'}. "
                f"Write a function {name}(state, ...) there, or leave it out by ~task.tools.functions.{name}."
            )
        if not isinstance(entry, dict) or entry.keys() != {"description", "parameters"}:
            yield (
                f"task.tools.functions.{name} must have a description, and parameters, a JSON schema of its arguments. "
                "Write both."
            )


def _script_problems(key: str, user: ScriptedUserConfig, max_turns: int) -> Iterator[str]:
    if not all(line.strip() for line in (*user.before, *user.after)):
        yield f"{key}.before or {key}.after has an empty message, and a user has to say something. Fill it in."
    needed = len(user.before) + 1 + len(user.after)
    if needed > max_turns:
        yield (
            f"task.max_turns ({max_turns}) leaves {key} no time for its {needed} messages, the goal's among them. Set "
            f"task.max_turns={needed} or more, or shorten {key}.before and {key}.after."
        )


def _mix_problems(key: str, user: MixUserConfig) -> Iterator[str]:
    weights_of = {"weights": user.weights} | ({"test_weights": user.test_weights} if user.test_weights else {})
    for name, weights in weights_of.items():
        if strangers := sorted(weights.keys() - user.users.keys()):
            yield (
                f"{key}.{name} names {', '.join(strangers)}, and {key}.users has {', '.join(user.users) or 'nobody'}. "
                "Give weights to users that are there."
            )
        if not all(0 <= weight < math.inf for weight in weights.values()) or not sum(weights.values()) > 0:
            yield (
                f"{key}.{name} ({weights}) must be numbers of at least 0, one of them above 0: they are shares of the "
                f"conversations. Set {key}.{name}.NAME=1 for at least one."
            )


def _engine_problems(config: Config, entry: str) -> Iterator[str]:
    if not isinstance(config.engine, VLLMEngineConfig):
        return
    if not config.model.lora.enabled and entry != "synthesize":
        yield (
            "engine=vllm takes new weights as LoRA adapters, and model.lora.enabled=false trains every weight: a vLLM "
            "server cannot be given a whole model over HTTP. Set model.lora.enabled=true, or engine=local."
        )
    if config.export.merge and entry == "train":
        yield (
            "export.merge=true writes the trained policy as a whole model, and the server of engine=vllm evaluates the "
            "row `trained` as an adapter to the base model. Set export.merge=false, or engine=local."
        )


def _evaluator_problems(config: Config) -> Iterator[str]:
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


def _table_problems(config: Config, entry: str) -> Iterator[str]:
    yield from policy_problems(config.policies)
    if entry not in ("train", "evaluate"):
        return
    names = list(named_policies(config.policies)) if entry == "evaluate" else ["base", "proactive", "trained"]
    baseline = config.evaluation.baseline
    if baseline != "base" and baseline not in names:  # if base is no row, nothing is compared
        yield (
            f"evaluation.baseline ({baseline}) must be a row of the table: {', '.join(names)}. Set it to one of them."
        )
