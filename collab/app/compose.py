"""From overrides to a typed config, and messages for overrides that do not fit.

Imports neither torch nor anything that does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from collab.app.ray_launcher import register_launcher
from collab.config.docs import field_docs
from collab.config.endpoints import users
from collab.config.register import apply_metrics, register
from collab.config.schema import Config
from collab.parsing.tool_calls import told
from collab.util.errors import BadInput, error_text
from collab.util.paths import config_dir
from collab.util.prompts import prompt_text

# Launcher of Hydra -> the extra that it comes with.
_LAUNCHERS = {
    **dict.fromkeys((f"hydra/launcher/{name}" for name in ("joblib", "submitit_local", "submitit_slurm")), "sweep"),
    "hydra/launcher/ray": "ray",
}


def compose(name: str, overrides: list[str], folders: Sequence[Path], *, with_hydra: bool = False) -> DictConfig:
    """The config of one job. Hydra has to be initialised.

    Args:
        name: Of the primary config.
        overrides: As typed.
        folders: Where the options of the groups are, for messages.
        with_hydra: Keep the node `hydra`: the folder of a sweep, for example.

    Raises:
        BadInput: An override does not fit, or needs an extra that is not installed.
    """
    register_launcher()
    try:
        config = hydra.compose(name, overrides, return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last: a group is given no text
        if isinstance(error, MissingConfigException) and error.missing_cfg_file in _LAUNCHERS:
            extra = _LAUNCHERS[error.missing_cfg_file]
            raise BadInput(
                f"{error.missing_cfg_file} comes with the extra `{extra}`, which is not installed. Install it by "
                f"`pip install 'collab-llm[{extra}]'`, or leave it out: the jobs of a sweep then run one after the "
                "other."
            ) from error
        raise BadInput(_explain(error, parse(overrides), options(folders))) from error
    strangers = [key for key, parent in _entries(config) if _is_stranger(key, parent)]
    if strangers and not with_hydra:
        raise BadInput(_no_field(strangers[0], config, options(folders)))
    for override in parse(overrides):
        _check_read(override, config)
    return config


def _check_read(override: Override, config: DictConfig) -> None:
    """Refuse a metric of the task that is typed where the definitions bring the metrics."""
    place, definitions, task = "task.metrics", config.definitions, OmegaConf.select(config, "task.name")
    typed_there = f"{override.key_or_group}.".startswith(f"{place}.")
    if typed_there and task in definitions.tasks:
        metrics = definitions.tasks[task].metrics
        raise BadInput(
            f"{override.input_line}: definitions={definitions.name} has metrics of its own in place of {place}, which "
            f"is not read: {', '.join(map(str, metrics))}. Set definitions.tasks.{task}.metrics.{next(iter(metrics))} "
            "and so on, or take definitions=collab."
        )


def load_config(entry: str, overrides: Sequence[str] = (), output_dir: str = "") -> Config:
    """The config that a command line would give, for tests and notebooks: composed, not yet checked.

    Args:
        entry: "train", "evaluate" or "synthesize".
        overrides: As typed, e.g. `["experiment=doc_edit", "seed=2"]`.
        output_dir: Of the run; no folder is made.

    Raises:
        BadInput: As `compose` and `typed`.
    """
    register()
    folder = config_dir()
    with hydra.initialize_config_dir(str(folder), job_name=entry, version_base=None):
        return typed(compose(entry, list(overrides), [folder]), output_dir)


def parse(overrides: Sequence[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise BadInput(
            f"{error.override} is not an override. Write key=value without spaces around =, and quotes around a value "
            "that has =, commas or brackets of its own: 'policies=[base,\"mine:runs/lr=1/policy\"]'."
        ) from error


def options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Group -> its options by the names that one types, nested ones in full (`paper/doc_edit`)."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group, *rest = path.relative_to(folder).with_suffix("").parts
            if rest and group != "hydra":
                found.setdefault(group, set()).add("/".join(rest))
    return {group: sorted(names) for group, names in sorted(found.items())}


def _explain(error: Exception, overrides: Sequence[Override], groups: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with the overrides that Hydra refused."""
    for override in overrides:
        group, value = str(override.key_or_group), override.value()
        names = () if override.is_delete() else groups.get(group, ())
        if names and str(value) not in names:
            close = difflib.get_close_matches(str(value), names, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            typed = str(override.input_line).partition("=")[2]
            return f"{override.input_line}: {group} has no option {typed}.{hint} There are: {', '.join(names)}."
        if names and override.is_add() and str(error).startswith("Multiple values"):
            return f"{override.input_line}: {group} is there already. Write it without the +."
        if group == "endpoint" and str(error).startswith("Could not override 'endpoint"):
            return (
                f"{override.input_line}: nothing in this config takes it. Write endpoint@user.endpoint={value} with "
                "user=llm, endpoint@judge.endpoint with judge=llm, endpoint@evaluator.endpoint with evaluator=pairwise."
            )
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        return _no_field(str(cause.full_key), cause.parent_node._get_root(), groups)
    text = error_text(error)
    if not any(str(override.key_or_group) in text for override in overrides):
        text = f"{' '.join(str(override.input_line) for override in overrides)}: {text}"
    if isinstance(cause, ValidationError) and is_dataclass(schema := cause.object_type):
        kind = next(field.type for field in fields(schema) if field.name == cause.key)
        text += f" {cause.full_key} takes {kind} ({field_docs(schema).get(cause.key, '')})."
    return text


def _no_field(key: str, config: Any, groups: Mapping[str, Sequence[str]]) -> str:
    """That there is no field `key`, which was meant, and which there are beside it."""
    place, _, name = key.rpartition(".")
    known = [*groups, *(other for other, _ in _entries(config) if other != key)]  # + has added it
    meant = [other for other in known if other.rpartition(".")[2] == name][:3]  # the right field in the wrong place
    meant = meant or difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
    parent = OmegaConf.select(config, place) if place else config
    beside = [str(other) for other in parent if other != name]
    if place == "task.metrics":  # OmegaConf cannot add to a dict of schemas from the command line
        valid = "A new metric is written in a YAML file of conf/task or conf/experiment."
    elif not is_dataclass(OmegaConf.get_type(parent)):
        valid = f"To add it, write +{key}=VALUE."
    elif place:
        valid = f"Fields of {place}: {', '.join(beside)}."
    else:
        valid = f"Groups: {', '.join(groups)}. Fields: {', '.join(other for other in beside if other not in groups)}."
    return f"There is no field {key}.{hint} {valid} `--cfg job` prints all fields."


def _entries(node: Any, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Dotted names of all nodes of a config, each with the node that it is in."""
    if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
        for key in map(str, node):
            yield f"{prefix}{key}", node
            yield from _entries(node._get_node(key), f"{prefix}{key}.")


def _is_stranger(key: str, parent: DictConfig) -> bool:
    """Whether the schema of `parent` lacks the field: Hydra lets + add one all the same."""
    schema = OmegaConf.get_type(parent)
    return is_dataclass(schema) and key.rpartition(".")[2] not in {field.name for field in fields(schema)}


def quoted(text: str) -> str:
    """`text` as a value in Hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()


def typed(composed: DictConfig, output_dir: str) -> Config:
    """The dataclasses behind a composed config, interpolations resolved.

    Args:
        composed: What Hydra composed.
        output_dir: Of the run; takes the place of the composed one.

    Raises:
        BadInput: A field has no value, an interpolation cannot be resolved, or a prompt's file is not there.
    """
    OmegaConf.update(composed, "output_dir", output_dir)
    try:
        if missing := sorted(OmegaConf.missing_keys(composed)):
            raise BadInput(f"{', '.join(missing)}: no value, and one is needed. Set {missing[0]}=... .")
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise BadInput(
            f"The config cannot be resolved: {error_text(error)} Check what is written in ${{...}}."
        ) from error
    assert isinstance(config, Config), "the primary config starts from the schema"
    apply_metrics(config)
    judges = {f"report.judges.{name}": judge for name, judge in config.report.judges.items()}
    tasks = {f"evaluation.tasks.{name}": task for name, task in config.evaluation.tasks.items()}
    parts: dict[str, Any] = {"task": config.task, **tasks, "judge": config.judge, **judges, **users(config)}
    for key, part in parts.items():
        for field in fields(part) if is_dataclass(part) else ():
            value = getattr(part, field.name)
            if field.name.endswith("prompt") and value:
                setattr(part, field.name, prompt_text(value, f"{key}.{field.name}"))
        for name, rubric in (rubrics := getattr(part, "rubrics", {})).items():
            rubrics[name] = prompt_text(rubric, f"{key}.rubrics.{name}")
    _apply_tools(config)
    return config


def _apply_tools(config: Config) -> None:
    """Read the code of each task's tools, and list the tools at the end of the task's system prompts."""
    tasks = {"task": config.task} | {f"evaluation.tasks.{name}": task for name, task in config.evaluation.tasks.items()}
    for key, task in tasks.items():
        if not task.tools.functions or not all(isinstance(entry, Mapping) for entry in task.tools.functions.values()):
            continue  # without any, or refused by `check`
        task.tools.code = prompt_text(task.tools.code, f"{key}.tools.code")
        for name in ("system_prompt", "base_prompt", "proactive_prompt"):
            prompt = getattr(task, name)
            if prompt is not None and (prompt.strip() or name != "proactive_prompt"):  # an empty one is refused
                setattr(task, name, f"{prompt}\n\n{told(task.tools.functions)}".strip())
