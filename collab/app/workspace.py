"""`collab workspace ENTITY/PROJECT`: saves a workspace at W&B in which each section of metrics has its plots.

W&B makes panels for all other metrics itself, in the same sections (`collab.reports.sections`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from collab.reports.sections import PLOTS, STEP, TABLES, sectioned
from collab.util.errors import BadInput, first_line

NAME = "collab"  # of the workspace


def workspace(entity: str, project: str) -> Any:
    """The workspace, a `wandb_workspaces.workspaces.Workspace` that is not saved yet.

    Args:
        entity: User or team at W&B.
        project: Its project, as of `logger.project`.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=section,
            panels=[wr.LinePlot(x=STEP, y=[sectioned(metric, ()) for metric in metrics]) for metrics in plots],
            is_open=section == "reward",
        )
        for section, plots in PLOTS.items()
    ]
    tables: list[Any] = [
        wr.WeavePanelSummaryTable(table_name=f"{TABLES}/{split}") for split in ("val", "test", "train")
    ]
    sections.insert(1, ws.Section(name=TABLES, panels=tables, is_open=True))
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections, auto_generate_panels=True)


def save(entity: str, project: str) -> str:
    """Save the workspace and return its address.

    Raises:
        BadInput: wandb-workspaces is not installed, there is no key, or the server cannot be reached or refuses.
    """
    if find_spec("wandb_workspaces") is None:
        raise BadInput(
            "collab workspace needs the package wandb-workspaces, which is not installed. Install it by "
            "`pip install 'collab-llm[wandb]'`."
        )
    from collab.app.wandb_mode import wandb_mode

    mode, why = wandb_mode("online")
    if mode != "online":
        raise BadInput(
            f"A workspace is saved at W&B's server: {why or f'W&B is {mode}, by WANDB_MODE or its settings'}. "
            "Connect to it and try again."
        )
    made = workspace(entity, project)
    try:
        return made.save().url
    except Exception as error:  # of HTTP, GraphQL or wandb, which have no common class
        raise BadInput(
            f"W&B does not save a workspace in {entity}/{project}: {first_line(error)}. Name a project that you may "
            "write to, ENTITY/PROJECT."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="collab workspace",
        description="Save a workspace at W&B: a section for each kind of metric, and the tables of conversations.",
        epilog="example: collab workspace my-team/collab",
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="user or team at W&B, and its project")
    given = parser.parse_args(argv).project
    entity, _, project = given.partition("/")
    try:
        if not entity or not project or "/" in project:
            raise BadInput(f"{given} must be ENTITY/PROJECT, with one slash, as in my-team/collab.")
        address = save(entity, project)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"workspace: {address}")
    return 0
