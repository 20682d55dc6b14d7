"""What W&B gets beyond Lightning's logger: sections, summaries, tables of conversations, alerts, artifacts."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from collab.conversation import Goal, Group
from collab.reports.sections import STEP, SUMMARIES, TABLES, sectioned
from collab.reports.tree import best_and_worst, conversation_html, ends, group_html, mean_mr
from collab.util.processes import rank

if TYPE_CHECKING:
    import wandb  # takes a second to import, and only training needs it

_ENDS = 2  # best conversations of a table, and worst ones


class SectionedWandbLogger(WandbLogger):
    """Lightning's logger, with each metric in its section (`collab.reports.sections`) and summaries of the best value.

    A metric of `SUMMARIES` has its best and its last value in the summary, as `reward/val/reward.max` and `.last`.
    Every other metric has its last value.

    Args:
        parts: Names of the parts of the reward.
        kwargs: As of `WandbLogger`.
    """

    def __init__(self, parts: Collection[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts
        # Lightning passes anonymous=None, and W&B warns of that argument whatever its value.
        self._wandb_init.pop("anonymous", None)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run at W&B, begun at the first call."""
        begun = self._experiment is not None
        run = super().experiment  # defines STEP as the x axis of all metrics
        if not begun:
            for metric, summary in SUMMARIES.items():
                name = sectioned(metric, self.parts)
                run.define_metric(name, step_metric=STEP, step_sync=True, summary=f"{summary},last")
        return run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({self._named(metric): value for metric, value in metrics.items()}, step)

    def _named(self, metric: str) -> str:
        return metric if metric.startswith(f"{TABLES}/") else sectioned(metric, self.parts)


def _of_wandb(loggers: Iterable[Logger]) -> list[WandbLogger]:
    """The W&B loggers of the first process; the others log nothing."""
    return [logger for logger in loggers if isinstance(logger, WandbLogger)] if rank() == 0 else []


# --- conversations ---------------------------------------------------------------------------------------------------


def log_trees(loggers: Iterable[Logger], step: int, groups: Sequence[Group]) -> None:
    """Log the trees of the best and the worst group of a rollout as `conversations/train`."""
    if not (ours := _of_wandb(loggers)):
        return
    import wandb

    rows = [
        [step, which, group.context.goal.id, wandb.Html(group_html(group), inject=False), mean_mr(group)]
        for which, group in best_and_worst(groups)
    ]
    for logger in ours:
        logger.log_table(f"{TABLES}/train", ["step", "which", "goal", "tree", "mr"], rows, step=step)


def log_conversations(
    loggers: Iterable[Logger],
    split: str,
    records: Sequence[Mapping[str, Any]],
    goals: Mapping[str, Mapping[str, Any]],
) -> None:
    """Log the best and the worst conversations of each policy as `conversations/<split>`.

    Args:
        loggers: Those that are no W&B loggers get nothing.
        split: "val" or "test".
        records: Lines of `transcripts.jsonl`, with `step` for a validation and `policy` for a test.
        goals: Id -> line of `goals.jsonl`.
    """
    if not (ours := _of_wandb(loggers)) or not records:
        return
    import wandb

    where = "step" if split == "val" else "policy"
    rows: list[list[Any]] = []
    parts = list(dict.fromkeys(name for record in records for name in record["parts"]))
    for place in dict.fromkeys(record[where] for record in records):
        for which, record in ends([one for one in records if one[where] == place], _ENDS):
            html = wandb.Html(conversation_html(record, goals[record["goal"]]), inject=False)
            values = [record["parts"].get(name) for name in parts]
            rows.append([place, which, record["goal"], html, record["reward"], *values])
    step = records[0]["step"] if split == "val" else None
    columns = [where, "which", "goal", "conversation", "reward", *parts]
    for logger in ours:
        logger.log_table(f"{TABLES}/{split}", columns, rows, step=step)


# --- alerts ----------------------------------------------------------------------------------------------------------


def alert(loggers: Iterable[Logger], title: str, text: str) -> None:
    """Send an alert, which W&B brings by mail or Slack as the user has set; offline it is sent by `wandb sync`."""
    for logger in _of_wandb(loggers):
        logger.experiment.alert(title, text, "WARN")


# --- artifacts -------------------------------------------------------------------------------------------------------


def goals_artifact(name: str, splits: Mapping[str, Sequence[Goal]]) -> wandb.Artifact:
    """The goals of a task as `goals-<task>`, a file for each split. Equal goals are the same version at W&B."""
    import wandb

    artifact = wandb.Artifact(
        _allowed(f"goals-{name}"), "dataset", metadata={split: len(g) for split, g in splits.items()}
    )
    for split, goals in splits.items():
        with artifact.new_file(f"{split}.jsonl", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(goal), ensure_ascii=False) + "\n" for goal in goals)
    return artifact


def policy_artifact(folder: Path, run: str, **metadata: Any) -> wandb.Artifact:
    """The policy of a run as `policy-<run id>`.

    Args:
        folder: Of the exported policy.
        run: Id of the run that trained it.
        metadata: Shown beside it.
    """
    return files_artifact(f"policy-{run}", "model", folder, **metadata)


def files_artifact(name: str, kind: str, path: Path, **metadata: Any) -> wandb.Artifact:
    """A file, or all files of a folder, as an artifact. They are not copied, so they have to stay until the upload."""
    import wandb

    artifact = wandb.Artifact(_allowed(name), kind, metadata=metadata)
    for file in [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob("*"))):
        where = file.name if path.is_file() else str(file.relative_to(path))
        artifact.add_file(str(file), where, policy="immutable", skip_cache=True)
    return artifact


def _allowed(name: str) -> str:
    """The name with what W&B refuses in names of artifacts replaced."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:128]


def use_artifact(run: Any, artifact: wandb.Artifact) -> None:
    """Record that a run has used an artifact; W&B gets its files if it does not have them.

    `run.use_artifact` refuses offline runs and waits for the upload, and `run.log_artifact` makes an output of it. This
    makes the record of an input, so that offline runs keep their lineage. No public function of wandb 0.31 does; a test
    reads the record back.
    """
    run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)
