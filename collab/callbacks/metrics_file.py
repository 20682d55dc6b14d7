"""`csv/metrics.csv`, to which a resumed run appends."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from collab.util.files import cut_torn_line, naming
from collab.util.processes import rank


def metrics_logger(folder: Path | str, before: int = 0) -> CSVLogger:
    """Lightning's CSV logger for `<folder>/csv/metrics.csv`. It writes each row at once.

    Args:
        folder: Of the run.
        before: Rows that an earlier process logged for this and later steps, counted from 0, are dropped.
    """
    logger = CSVLogger(folder, name="", version="csv", flush_logs_every_n_steps=1)
    if rank() == 0:
        logger._experiment = MetricsFile(logger.log_dir, before)
    return logger


def write_row(trainer: L.Trainer) -> None:
    """Write the row of this batch now. Lightning logs the same row later, and `MetricsFile` leaves that one out."""
    row: dict[str, Any] = {**trainer._logger_connector.metrics["log"], "epoch": trainer.current_epoch}
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.log_metrics(row, trainer.fit_loop.epoch_loop._batches_that_stepped)
            logger.save()


class MetricsFile(ExperimentWriter):
    """Keeps earlier rows, which Lightning deletes, and replaces the file in one move when a metric is new.

    A row that is logged a second time, with the same step and metrics, is left out.

    Args:
        log_dir: Folder of `metrics.csv`.
        before: Earlier rows of this and later steps, counted from 0, are dropped.
    """

    def __init__(self, log_dir: str, before: int) -> None:
        super().__init__(log_dir)
        self._latest: tuple[int | None, frozenset[str]] | None = None  # step and metrics of the latest row
        path = Path(self.metrics_file_path)
        if path.is_file():
            cut_torn_line(path)
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if (row.get("step") or "").isdecimal() and int(row["step"]) < before]
                self.metrics_keys = list(reader.fieldnames or []) if rows else []
            self._replace(rows)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        latest = step, frozenset(metrics_dict)
        if latest != self._latest:
            super().log_metrics(metrics_dict, step)
        self._latest = latest

    def _check_log_dir_exists(self) -> None:
        pass

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as file:
            self._replace(list(csv.DictReader(file)))

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the file by these rows, with the columns `metrics_keys`, in one move."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        if self.metrics_keys:
            writer.writeheader()
        writer.writerows(rows)
        partial = Path(f"{self.metrics_file_path}.part")
        with naming(partial):
            partial.write_text(text.getvalue(), newline="")
        os.replace(partial, self.metrics_file_path)
