"""From overrides to a typed config, and what is wrong with an override in words that help.

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
from omegaconf.errors import OmegaConfBaseException

from collab.config.docs import field_docs
from collab.config.register import apply_judge, register
from collab.config.schema import Config
from collab.util.errors import BadInput, error_text
from collab.util.paths import config_dir

_REFUSALS = (HydraException, OmegaConfBaseException, ValueError)  # the last where a group is given no text
# What the plugins of the extra `sweep` add to Hydra.
_LAUNCHERS = tuple(f"hydra/launcher/{name}" for name in ("joblib", "submitit_local", "submitit_slurm"))


def compose(name: str, overrides: list[str], folders: Sequence[Path]) -> DictConfig:
    """One job's config; Hydra has to be initialised.

    Raises:
        BadInput: Names each override that does not fit, why, and what would; or the extra that is not installed.
    """
    try:
        config = hydra.compose(name, overrides)
    except _REFUSALS as error:
        if isinstance(error, MissingConfigException) and error.missing_cfg_file in _LAUNCHERS:
            raise BadInput(
                f"{error.missing_cfg_file} comes with the extra `sweep`, which is not installed. Install it by "
                "`pip install -e '.[sweep]'`, or leave it out: the jobs of a sweep then run one after the other."
            ) from error
        raise BadInput(_explain(error, name, parse(overrides), options(folders))) from error
    if strangers := _strangers(config):  # Hydra lets + add them even to a schema
        refusal = HydraException(f"There is no field {', '.join(strangers)}.")
        raise BadInput(_explain(refusal, name, parse(overrides), options(folders)))
    return config


def hydra_settings(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """The node `hydra` of a config: the folder of a sweep, ...; Hydra has to be initialised.

    Raises:
        BadInput: As `compose`.
    """
    compose(name, list(overrides), folders)
    return hydra.compose(name, list(overrides), return_hydra_config=True).hydra


def load_config(entry: str, overrides: Sequence[str] = (), output_dir: str = "") -> Config:
    """The config that the command line `overrides` would give, for tests and notebooks: composed, not yet checked.

    Args:
        entry: "train" or "evaluate".
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


def _explain(error: Exception, name: str, overrides: Sequence[Override], groups: Mapping[str, Sequence[str]]) -> str:
    """Hydra's errors come in many shapes; what is wrong is found by trying the overrides one by one instead."""
    chosen = [override for override in overrides if override.key_or_group in groups]
    bad = {id(override): text for override in chosen if (text := _option_problem(override, groups))}
    good = [as_typed(override) for override in chosen if id(override) not in bad]
    ours = [o for o in overrides if o.key_or_group not in groups and not str(o.key_or_group).startswith("hydra")]
    problems = [*bad.values(), *_field_problems(name, good, ours, groups)]
    return "\n".join(problems) or f"The config cannot be composed. {error_text(error)}"


def _option_problem(override: Override, groups: Mapping[str, Sequence[str]]) -> str:
    group: str = override.key_or_group
    value: Any = override.value()
    names = groups[group]
    if value is None and group == "experiment":
        return ""
    if str(value) not in names:
        close = difflib.get_close_matches(str(value), names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{as_typed(override)}: there is no such {group}.{hint} {group} is one of: {', '.join(names)}."
    if override.is_add():
        return f"{as_typed(override)}: {group} is there already. Write {group}={value}, without the +."
    return ""


def _field_problems(
    name: str, chosen: list[str], overrides: Sequence[Override], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    try:
        config = hydra.compose(name, chosen)
    except _REFUSALS:
        return []  # not the command line: a YAML file is wrong
    known = list(_keys(config))
    problems = []
    for override in overrides:
        key = str(override.key_or_group)
        if override.is_delete():
            continue
        try:
            OmegaConf.update(config, key, override.value(), force_add=not override.is_add())
            unknown = bool(_strangers(config)) or (
                key not in known and not (override.is_add() or override.is_force_add())
            )
        except OmegaConfBaseException as error:
            unknown = key not in known
            if not unknown:
                problems.append(f"{as_typed(override)}: wrong type. {_described(config, key)}{error_text(error)}")
        if unknown:
            problems.append(_unknown(override, name, chosen, known, groups))
            config = hydra.compose(name, chosen)
    return problems


def _described(config: DictConfig, key: str) -> str:
    """Type and doc line of a field, as a sentence; "" if it belongs to no schema."""
    parent, _, name = key.rpartition(".")
    schema = OmegaConf.get_type(OmegaConf.select(config, parent)) if parent else Config
    if not (isinstance(schema, type) and is_dataclass(schema)):
        return ""
    kind = next(field.type for field in fields(schema) if field.name == name)
    return f"{key} takes {kind}{f' ({doc})' if (doc := field_docs(schema).get(name)) else ''}. "


def _strangers(node: Any, prefix: str = "") -> list[str]:
    """Dotted names of the entries that the schema of their node does not have."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return []
    schema = OmegaConf.get_type(node)
    own = {field.name for field in fields(schema)} if is_dataclass(schema) else set(node)
    found = [f"{prefix}{key}" for key in map(str, node) if key not in own]
    for key in map(str, node):
        found += _strangers(node._get_node(key), f"{prefix}{key}.")
    return found


def _unknown(
    override: Override, name: str, chosen: list[str], known: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> str:
    key = str(override.key_or_group)
    parent = key.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    beside = [name.removeprefix(prefix) for name in known if name.rpartition(".")[0] == parent]
    fields_beside = [name for name in beside if parent or name not in groups]
    misspelt = key.removeprefix(prefix).split(".")[0]
    close = difflib.get_close_matches(misspelt, [*beside, *groups] if not parent else beside, n=1, cutoff=0.7)
    # else the right field in the wrong place, or without its place: `lr` for `algorithm.lr`
    elsewhere = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    meant = [f"{prefix}{name}" for name in close] or elsewhere[:3]
    hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
    group = key.split(".")[0]
    with_it = [
        f"{group}={option}"
        for option in groups.get(group, ())
        if group != "experiment" and key in _keys(hydra.compose(name, [*chosen, f"{group}={option}"]))
    ]
    if with_it:
        hint = f" It is a field of {', '.join(with_it)}."
    if parent == "task.metrics":  # OmegaConf cannot add to a dict of schemas from the command line
        valid = f"Metrics: {', '.join(beside)}; a new one is written in a YAML file of conf/task or conf/experiment."
    elif parent and not beside:
        valid = f"{parent} has none; add it with +{as_typed(override)}."
    elif parent:
        valid = f"Fields of {parent}: {', '.join(beside)}."
    else:
        valid = f"Groups: {', '.join(groups)}. Fields: {', '.join(fields_beside)}."
    what = "group" if "/" in key else "field"
    return f"{as_typed(override)}: there is no {what} {key}.{hint} {valid} `--cfg job` prints all fields."


def quoted(text: str) -> str:
    """`text` as a value in Hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()


def as_typed(override: Override) -> str:
    """The override as it was typed."""
    return str(override.input_line)


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all nodes of a config."""
    if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
        for key in map(str, node):
            yield f"{prefix}{key}"
            yield from _keys(node._get_node(key), f"{prefix}{key}.")


def typed(composed: DictConfig, output_dir: str) -> Config:
    """The dataclasses behind a composed config, interpolations resolved.

    Args:
        composed: What Hydra composed.
        output_dir: Of the run; takes the place of the composed one.

    Raises:
        BadInput: A field has no value, or an interpolation cannot be resolved.
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
    apply_judge(config)
    return config
