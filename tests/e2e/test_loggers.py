"""One small training with all loggers: what is in the file of the W&B run, and the same figures at the others."""

from __future__ import annotations

import csv
import hashlib
import json
from base64 import b64encode
from html import unescape
from typing import Any

import pytest
from commands import finished
from conftest import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_file import OfflineRun, read

from collab.reports.sections import PLOTS, SECTIONS, sectioned

pytestmark = pytest.mark.timeout(600)

METRICS = {  # some of each section
    **dict.fromkeys(("train/mr", "val/reward", "train/bleu", "train/bleu_spread"), "reward"),
    **dict.fromkeys(("train/loss", "train/lr"), "optimiser"),
    **{"train/turns": "user", "train/invalid": "rollout", "train/rollout_seconds": "engine"},
}


@pytest.fixture(scope="module")
def logged(letters: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four steps of the random model that says letters, with two validations."""
    folder = tmp_path_factory.mktemp("logged") / "run"
    everywhere = ("logger=wandb", "logger.tensorboard=true", "logger.mlflow=true")
    done = finished("train", *letters, *everywhere, f"output_dir={folder}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Run(folder, done.stdout)


@pytest.fixture(scope="module")
def rows(logged: Run) -> dict[str, list[tuple[int, Any]]]:
    """Metric -> (step, value) of each row of the metrics file that has it."""
    with (logged.folder / "csv" / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    return {
        name: [(int(row["step"]), pytest.approx(float(row[name]), nan_ok=True)) for row in lines if row[name]]
        for name in lines[0]
        if name != "step"
    }


@pytest.fixture(scope="module")
def at_wandb(logged: Run) -> OfflineRun:
    return read(logged.folder)


def test_wandb_has_every_metric_in_one_section_and_at_the_steps_of_the_file(
    at_wandb: OfflineRun, rows: dict[str, list[tuple[int, Any]]]
) -> None:
    for metric, section in METRICS.items():
        assert at_wandb.series(f"{section}/{metric}") == rows[metric] and len(rows[metric]) in (2, 4), metric
    found = {name for row in at_wandb.history for name in row if "/" in name and not name.startswith("trainer/")}
    assert {name.partition("/")[0] for name in found} <= {*SECTIONS, "conversations"}
    assert rows.keys() <= {name.partition("/")[2] for name in found}
    plotted = {sectioned(metric, ()) for plots in PLOTS.values() for metrics in plots for metric in metrics}
    assert {name for name in plotted if "spend/" not in name} <= found  # the workspace has no empty plot
    assert at_wandb.stats  # processor and memory, by W&B itself


def test_wandb_knows_the_axis_and_keeps_the_best_and_the_results(logged: Run, at_wandb: OfflineRun) -> None:
    assert at_wandb.metrics["*"].step_metric == "trainer/global_step"
    defined = at_wandb.metrics["reward/val/reward"]
    assert defined.summary.max and defined.summary.last and defined.step_metric == "trainer/global_step"
    for policy in ("base", "proactive", "trained"):
        mean = logged.results["policies"][policy]["reward"]["mean"]
        assert at_wandb.summary[f"test/{policy}/reward"] == pytest.approx(mean)


def test_wandb_has_the_trees_of_the_best_and_the_worst_group_of_a_step(logged: Run, at_wandb: OfflineRun) -> None:
    trees = at_wandb.table("conversations/train")
    assert [row[:2] for row in trees] == [[step, which] for step in (1, 2, 3, 4) for which in ("best", "worst")]
    for row in trees:
        html = row[3]
        played = [r for r in logged.transcripts if (r["phase"], r.get("step"), r["goal"]) == ("train", row[0], row[2])]
        assert html.count("<summary>candidate: MR") == len({(r["group"], r["candidate"]) for r in played})
        assert "default-src 'none'" in html


def test_wandb_has_tables_of_each_validation_and_of_the_test(logged: Run, at_wandb: OfflineRun) -> None:
    validations, tests = at_wandb.table("conversations/val"), at_wandb.table("conversations/test")
    assert [row[0] for row in validations] == [2, 2, 4, 4]
    assert [row[0] for row in tests] == [name for name in ("base", "proactive", "trained") for _ in range(2)]
    records = {(r.get("step"), r["policy"], r["goal"]): r for r in logged.transcripts if r["phase"] != "train"}
    for row, where in [
        *((row, (row[0], "policy", row[2])) for row in validations),
        *((row, (None, row[0], row[2])) for row in tests),
    ]:
        record, html = records[where], unescape(row[3])
        assert row[4] == pytest.approx(record["reward"])
        assert all(message["content"] in html for message in record["messages"])


def test_wandb_has_the_config_and_the_lineage(logged: Run, at_wandb: OfflineRun) -> None:
    assert at_wandb.config["algorithm"]["lr"] == 0.05 and at_wandb.config["model"]["lora"]["r"] == 4
    assert at_wandb.config["task"]["metrics"]["bleu"]["target"] == "commands.Early"
    assert (at_wandb.record.run_group, at_wandb.record.job_type) == (logged.results["config"]["name"], "train")
    goals, policy = [artifact for artifact in at_wandb.artifacts if artifact.type != "run_table"]
    assert (goals.name, goals.type, goals.use_after_commit) == ("goals-doc_edit", "dataset", True)
    assert {entry.path for entry in goals.manifest.contents} == {"train.jsonl", "val.jsonl", "test.jsonl"}
    assert (policy.name, policy.type) == (f"policy-{at_wandb.record.run_id}", "model")
    assert not policy.use_after_commit and "best" in policy.aliases
    files = {entry.path: entry.digest for entry in policy.manifest.contents}
    card = (logged.folder / "policy" / "README.md").read_bytes()
    assert "adapter_model.safetensors" in files and b"proactive" in card  # the results of the test are in it
    assert files["README.md"] == b64encode(hashlib.md5(card).digest()).decode()
    chosen, values = json.loads(policy.metadata), dict(at_wandb.series("reward/val/reward"))
    assert chosen["val/reward"] == pytest.approx(max(values.values())) == values[chosen["step"] - 1]


def final(logged: Run) -> dict[str, float]:
    """The means of the table of results by the names that TensorBoard and MLflow have."""
    found = {
        f"test/{policy}{end}/{metric}": one["mean"]
        for kind, end in (("policies", ""), ("difference", "_minus_base"))
        for policy, metrics in logged.results[kind].items()
        for metric, one in metrics.items()
        if one["mean"] is not None
    }
    assert "test/trained/reward" in found and "test/trained_minus_base/reward" in found
    return found


def test_tensorboard_has_the_same_figures(logged: Run, rows: dict[str, list[tuple[int, Any]]]) -> None:
    events = EventAccumulator(str(logged.folder / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {tag for tag in tags if not tag.startswith("test/")} == rows.keys()
    assert {tag: events.Scalars(tag)[0].value for tag in tags - rows.keys()} == pytest.approx(final(logged))
    for metric in METRICS:
        assert [(event.step, pytest.approx(event.value)) for event in events.Scalars(metric)] == [
            (step, value.expected) for step, value in rows[metric]
        ]


def test_mlflow_has_the_same_figures_and_the_config(logged: Run, rows: dict[str, list[tuple[int, Any]]]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{logged.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(logged.results["config"]["name"])
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["algorithm/lr"] == "0.05"
    for metric in METRICS:
        history = client.get_metric_history(run.info.run_id, metric)
        assert [(one.step, one.value) for one in history] == rows[metric]
    assert {name: run.data.metrics[name] for name in run.data.metrics if name.startswith("test/")} == final(logged)
