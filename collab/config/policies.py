"""The rows of an evaluation's table: `base`, `proactive`, folders of policies and models at servers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from collab.util.errors import BadInput
from collab.util.paths import is_model_folder

_HOSTED_ROW = re.compile(r"(?:(?P<name>[^:@]+):)?(?P<model>[^@]+)@(?P<url>https?://.+)")


@dataclass(frozen=True)
class HostedPolicy:
    """A row of an evaluation that a server plays, `MODEL@URL`."""

    model: str
    base_url: str


def named_policies(policies: Sequence[str]) -> dict[str, Path | HostedPolicy | None]:
    """The rows of an evaluation in order: name -> folder or server of the policy, None for `base` and `proactive`.

    Without a name before it (`name:...`), a server's row is called by its model, and a folder by its run:
    `outputs/doc_edit/RUN/policy` is RUN.

    Raises:
        BadInput: No policies, a folder that holds none, or a name given twice.
    """
    rows, problems = read_policies(policies)
    if problems:
        raise BadInput("\n".join(problems))
    return rows


def read_policies(policies: Sequence[str]) -> tuple[dict[str, Path | HostedPolicy | None], list[str]]:
    """As `named_policies`, with what is wrong in messages."""
    rows: dict[str, Path | HostedPolicy | None] = {}
    problems = [] if policies else ["policies is empty: nothing to evaluate. Set 'policies=[base,proactive]'."]
    for text in policies:
        name, row = _read(text)
        problems += _row_problems(text, name, row)
        if name in rows:
            problems.append(
                f"policies: {name} is there twice, and names must differ. Write another name before the path, "
                f"as in {name}2:PATH."
            )
        rows[name] = row
    return rows, problems


def _read(text: str) -> tuple[str, Path | HostedPolicy | None]:
    """Name and policy of a row."""
    if text in ("base", "proactive"):
        return text, None
    if found := _HOSTED_ROW.fullmatch(text):
        return found["name"] or found["model"].rpartition("/")[2], HostedPolicy(found["model"], found["url"])
    name, _, path = text.rpartition(":")
    folder = Path(path).expanduser()
    resolved = folder.resolve()
    run = resolved.parent.name if resolved.name in ("policy", "policy_last") else resolved.name
    return name or run, folder


def _row_problems(text: str, name: str, row: Path | HostedPolicy | None) -> Iterator[str]:
    if row is None:
        return
    place = f"{row.model}@{row.base_url}" if isinstance(row, HostedPolicy) else text.rpartition(":")[2]
    if name in ("base", "proactive"):
        yield (
            f"policies: {text} would be called {name}, and that is the model of the config as it is. Write another "
            f"name before it, as in my_{name}:{place}."
        )
    if isinstance(row, Path) and not is_model_folder(row):
        what = "has no config.json or adapter_config.json" if row.is_dir() else "is not a folder"
        yield (
            f"policies: {text} is neither base nor proactive, and {place} {what}. Name a folder that a run exported "
            "(outputs/.../policy), as PATH or name:PATH, or a server's model, as MODEL@http://HOST:PORT/v1."
        )
