"""The rows of an evaluation's table: `base`, `proactive`, folders of policies and models at servers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from collab.config.schema import Config, ModelConfig, TaskConfig
from collab.util.paths import is_model_folder

_HUB_ROW = re.compile(r"(?:(?P<name>[^:@]+):)?hub:(?P<id>[\w.-]+/[\w.-]+)")
_HOSTED_ROW = re.compile(r"(?:(?P<name>[^:@]+):)?(?P<model>[^@]+)@(?P<url>https?://.+)")


@dataclass(frozen=True)
class HostedPolicy:
    """A row of an evaluation that a server plays, `MODEL@URL`."""

    model: str
    base_url: str


def named_policies(policies: Sequence[str]) -> dict[str, Path | HostedPolicy | None]:
    """The rows of an evaluation: name -> folder, hub id or server of the policy, None for `base` and `proactive`.

    Without a name before it (`name:...`), a row of a server or of the hub has the name of its model, and a folder has
    that of its run: `outputs/doc_edit/RUN/policy` is RUN.
    """
    return dict(map(_read, policies))


def row_name(policy: str, user: str) -> str:
    """The row of the table in which a policy meets a user of `evaluation.users`; "" is the config's own user."""
    return f"{policy}@{user}" if user else policy


def policy_model(config: Config, row: Path | None) -> ModelConfig:
    """The model of a row: that of the folder or hub id, or the config's for None; with the config's other settings."""
    return config.model if row is None else replace(config.model, path=str(row))


def system_prompt(task: TaskConfig, name: str) -> str:
    """The instruction under which a row of the table speaks."""
    if name == "base" and task.base_prompt is not None:
        return task.base_prompt
    return task.proactive_prompt if name == "proactive" else task.system_prompt


def policy_problems(policies: Sequence[str]) -> Iterator[str]:
    """What is wrong with the rows: none at all, a folder without a model, a name that is used twice or reserved."""
    if not policies:
        yield "policies is empty: nothing to evaluate. Set 'policies=[base,proactive]'."
    names = set()
    for text in policies:
        name, row = _read(text)
        if name in names:
            yield (
                f"policies: {name} is there twice, and names must differ. Write another name before the path, as in "
                f"{name}2:PATH."
            )
        names.add(name)
        if "@" in name:
            yield (
                f"policies: {text} would be called {name}, and @ stands between a policy and the user that it meets. "
                "Write another name before the path, as in mine:PATH."
            )
        if row is None:
            continue
        place = f"{row.model}@{row.base_url}" if isinstance(row, HostedPolicy) else text.rpartition(":")[2]
        if name in ("base", "proactive"):
            yield (
                f"policies: {text} would be called {name}, which is the config's own model. Write another name before "
                f"it, as in my_{name}:{place}."
            )
        if isinstance(row, Path) and not _HUB_ROW.fullmatch(text) and not is_model_folder(row):
            what = "has no config.json or adapter_config.json" if row.is_dir() else "is not a folder"
            yield (
                f"policies: {text} is neither base nor proactive, and {place} {what}. Name a folder that a run "
                "exported (outputs/.../policy), as PATH or name:PATH; a policy on the hub, as hub:OWNER/NAME; or a "
                "server's model, as MODEL@http://HOST:PORT/v1."
            )


def _read(text: str) -> tuple[str, Path | HostedPolicy | None]:
    """Name and policy of a row."""
    if text in ("base", "proactive"):
        return text, None
    if found := _HOSTED_ROW.fullmatch(text):
        return found["name"] or found["model"].rpartition("/")[2], HostedPolicy(found["model"], found["url"])
    if found := _HUB_ROW.fullmatch(text):
        return found["name"] or found["id"].rpartition("/")[2], Path(found["id"])
    name, _, path = text.rpartition(":")
    folder = Path(path).expanduser()
    run = folder.resolve()
    if run.name in ("policy", "policy_last"):
        run = run.parent
    return name or run.name, folder


def named_sources(texts: Sequence[str]) -> dict[str, str]:
    """Rows of stored conversations, `NAME:PATH` or `PATH`: name -> path. A path alone is named by its last part."""
    return dict(_named_source(text) for text in texts)


def source_problems(texts: Sequence[str]) -> Iterator[str]:
    """A name that two rows of stored conversations share."""
    names = [_named_source(text)[0] for text in texts]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield (
            f"report.stored: {name} is there twice, and names must differ. Write another name before the path, as in "
            f"{name}2:PATH."
        )


def _named_source(text: str) -> tuple[str, str]:
    if found := re.fullmatch(r"(?P<name>[^:/@]+):(?P<path>.+)", text):
        return found["name"], found["path"]
    path = Path(text).expanduser()
    return (path.stem if path.suffix else path.resolve().name), text
