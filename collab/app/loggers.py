"""The loggers of a training run, what W&B gets before it, and what all get after it or an evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from collab.app.resume import RESULTS, STATE, RunState
from collab.app.wandb_mode import wandb_mode
from collab.callbacks.metrics_file import metrics_logger
from collab.callbacks.wandb_logger import (
    SectionedWandbLogger,
    files_artifact,
    goals_artifact,
    log_conversations,
    policy_artifact,
    use_artifact,
)
from collab.config.schema import Config
from collab.config.tasks import further_tasks
from collab.reports.plots import read_curves
from collab.reports.results import baseline_of
from collab.util.errors import BadInput
from collab.util.processes import rank

if TYPE_CHECKING:
    from collab.datamodules.goals import GoalSplits

_NEEDED = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "alembic")}  # field of `logger` -> packages
_Estimate = tuple[str, str, float, float, float, int]  # as `_estimates` gives them


def check_loggers(config: Config) -> None:
    """Refuse loggers whose packages are not installed.

    Raises:
        BadInput: Names the extra that has them.
    """
    for name, packages in _NEEDED.items():
        lacking = [package for package in packages if find_spec(package) is None]
        if getattr(config.logger, name) and lacking:
            raise BadInput(
                f"logger.{name}=true needs the package {lacking[0]}, which is not installed. Install it by "
                f"`pip install 'collab-llm[{name}]'`, or set logger.{name}=false."
            )


def loggers(config: Config, run: str, before: int) -> list[Logger]:
    """CSV always, W&B as `wandb_mode` says, TensorBoard and MLflow where the config asks. A resumed run appends to all.

    Args:
        config: The checked config.
        run: Id of the run at W&B, and its tag `collab.run` at MLflow.
        before: Finished training batches, whose rows stay in the CSV file.
    """
    folder = Path(config.output_dir)
    made: list[Logger] = [metrics_logger(folder, before)]
    if (logger := wandb_logger(config, run, "train")) is not None:
        made.append(logger)
    if config.logger.tensorboard:
        made.append(TensorBoardLogger(folder, name="", version="tensorboard", purge_step=before or None))
    if config.logger.mlflow and rank() == 0:  # one process makes the database
        made.append(_mlflow_logger(config, run))
    return made


def wandb_logger(config: Config, run: str, job: str) -> SectionedWandbLogger | None:
    """W&B's logger; None if the run is not logged there. Runs of one experiment are one group.

    Args:
        config: The checked config.
        run: Id of the run at W&B.
        job: Its type there: "train" or "evaluate".
    """
    mode, _ = wandb_mode(config.logger.wandb)
    if mode == "disabled":
        return None
    folder = Path(config.output_dir)
    if mode == "offline":  # here W&B keeps files of tables and artifacts until `wandb sync`; else in the home folder
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.absolute() / "wandb"))
    own = {"group": ("WANDB_RUN_GROUP", config.name), "job_type": ("WANDB_JOB_TYPE", job)}
    return SectionedWandbLogger(
        config.task.metrics,
        project=config.logger.project,
        name=folder.name,
        id=run,
        save_dir=folder,
        offline=mode == "offline",
        mode=mode,  # Lightning sets WANDB_MODE alone, which W&B has read by now
        config=asdict(config),
        settings={"silent": True, "console": "off"},
        **{name: value for name, (variable, value) in own.items() if variable not in os.environ},
    )


def _mlflow_logger(config: Config, run: str) -> MLFlowLogger:
    """Logs to `MLFLOW_TRACKING_URI`, else to `mlflow.db` in the run's folder; goes on with the run of the same id."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    folder = Path(config.output_dir)
    where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    logger = MLFlowLogger(config.name, folder.name, where, tags={"collab.run": run})
    client = MlflowClient(where)
    if (experiment := client.get_experiment_by_name(config.name)) is not None:
        same = client.search_runs([experiment.experiment_id], f"tags.`collab.run` = '{run}'", max_results=1)
        if same:
            return MLFlowLogger(config.name, tracking_uri=where, run_id=same[0].info.run_id)
    logger.log_hyperparams(asdict(config))
    return logger


# --- W&B -------------------------------------------------------------------------------------------------------------


def log_inputs(config: Config, logged_to: Sequence[Logger], splits: GoalSplits) -> None:
    """Record what the run learns from: the goals, stored conversations, and the policy of an earlier run."""
    if (run := _run_with_artifacts(config, logged_to)) is None:
        return
    use_artifact(run, goals_artifact(config.task.name, {"train": splits.train, "val": splits.val, "test": splits.test}))
    for stored in (config.algorithm.data, config.sampler.contexts):
        if stored and (path := Path(stored)).exists():  # else it is on the hub
            use_artifact(run, files_artifact(f"conversations-{path.resolve().name}", "dataset", path))
    before = Path(config.model.path) if config.model.path else None
    if before is not None and (before.resolve().parent / STATE).is_file():
        use_artifact(run, policy_artifact(before, RunState.read(before.resolve().parent).id))


def _run_with_artifacts(config: Config, logged_to: Sequence[Logger]) -> Any:
    """The run at W&B that takes artifacts, on the first process; None if there is none."""
    found = [logger for logger in logged_to if isinstance(logger, SectionedWandbLogger)]
    return found[0].experiment if found and config.logger.artifacts and rank() == 0 else None


def log_results(config: Config, run: RunState, results: Mapping[str, Any], chosen_by: str = "val/reward") -> None:
    """Log what a training or an evaluation has found, and end the run at W&B. Rank 0 alone does it.

    It comes before `results.json` is written, which ends the run: a logger that fails then costs nothing.

    All loggers get the figures of the table of results. At W&B they go into the summary, and into a table with their
    intervals; the conversations go into another one. Those of `evaluation.tasks` have the name of the task. A training
    logs its best policy too, with its final model card. The run at W&B is the one that training began; after an
    interruption it is opened again.

    Args:
        config: The checked config.
        run: Has played everything; further tasks have their `results.json`.
        results: What will be its own.
        chosen_by: The metric of a validation by which the best policy was chosen.
    """
    folder = Path(config.output_dir)
    played: dict[str, tuple[Path, list[_Estimate]]] = {}  # task, "" for the run's own -> its folder and figures
    if "policies" in results:  # else of a user model
        played[""] = folder, list(_estimates(results))
    for task, one in further_tasks(config).items():
        where = Path(one.output_dir)
        played[task] = where, list(_estimates(json.loads((where / RESULTS).read_bytes())))
    final = {
        f"{_prefix(task)}{policy}/{metric}": mean
        for task, (_, found) in played.items()
        for policy, metric, mean, *_ in found
    }
    _log_final(config, run, final)
    if (logger := wandb_logger(config, run.id, run.entry)) is None:
        return
    if wandb.run is not None:
        logger._experiment = wandb.run
    at_wandb = logger.experiment
    rows: list[list[Any]] = []
    for task, (where, found) in played.items():
        records = [line for line in _lines(where / "transcripts.jsonl") if line["phase"] == "test"]
        goals = {line["id"]: line for line in _lines(where / "goals.jsonl") if line["phase"] == "test"}
        log_conversations([logger], _prefix(task)[:-1], records, goals)
        rows += [[task or config.task.name, *row] for row in found]
    at_wandb.summary.update(final)
    if rows:
        columns: list[str | int] = ["task", "policy", "metric", "mean", "low", "high", "goals"]
        at_wandb.log({"results": wandb.Table(columns=columns, data=rows)})
    if config.logger.artifacts and run.entry == "train" and (folder / "policy").is_dir():
        chosen = _chosen(folder, chosen_by)
        base = config.model.path or config.model.name
        named = {"base": base, "algorithm": config.algorithm.name, "seed": config.seed}
        at_wandb.log_artifact(policy_artifact(folder / "policy", run.id, **named, **chosen), aliases=["best"])
    at_wandb.finish()


def _prefix(task: str) -> str:
    return f"test/{task}/" if task else "test/"


def _log_final(config: Config, run: RunState, final: Mapping[str, float]) -> None:
    """Log the final figures to TensorBoard and MLflow, in the runs that a training began there.

    MLflow takes neither "@" nor the minus sign in a name, so they are written out: `test/base_at_insistent/reward`.
    """
    made: list[Logger] = []
    if config.logger.tensorboard:
        made.append(TensorBoardLogger(config.output_dir, name="", version="tensorboard"))
    if config.logger.mlflow:
        made.append(_mlflow_logger(config, run.id))
    named = {name.replace("@", "_at_").replace(" − ", "_minus_"): mean for name, mean in final.items()}
    for logger in made:
        logger.log_metrics(named, step=config.trainer.max_steps if run.entry == "train" else 0)
        logger.finalize("success")


def _estimates(results: Mapping[str, Any]) -> Iterator[_Estimate]:
    """Policy, metric, mean, its interval and number of goals; then those of the differences to its baseline."""
    differences = {
        f"{policy} − {baseline_of(results, policy)}": found for policy, found in results["difference"].items()
    }
    for policy, metrics in (results["policies"] | differences).items():
        for metric, one in metrics.items():
            if one["mean"] is not None:
                yield policy, metric, one["mean"], *one["ci95"], one["n"]


def _chosen(folder: Path, metric: str) -> dict[str, float | None]:
    """The best value of a metric of validations and the number of steps before it; None without validations."""
    split, _, name = metric.partition("/")
    points = read_curves(folder / "csv" / "metrics.csv").get((split, name), {})
    step = max(points, key=lambda step: (points[step], -step), default=None)  # the first of equal ones
    return {metric: None if step is None else points[step], "step": None if step is None else step + 1}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
