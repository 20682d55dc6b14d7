"""Reads the file of a W&B run that was logged offline: a log of protobuf records in blocks, as LevelDB writes logs."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK = 32768
_FULL, _LAST = 1, 4  # kinds of a piece: a whole record, the last piece of one


@dataclass
class OfflineRun:
    """What a run file says.

    Attributes:
        config: Key -> value, nested.
        history: The logged rows, with nested keys joined by ".".
        summary: Key -> value.
        metrics: Name or glob -> the record of `define_metric`.
        alerts: (title, text).
        artifacts: Their records; those of tables have the type "run_table".
        record: The record of the run itself: group, job type, project.
        stats: How many records of system metrics there are.
        ended: Whether the record of the end is there.
    """

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    record: Any = None
    stats: int = 0
    ended: bool = False

    def table(self, name: str) -> list[list[Any]]:
        """The rows of all tables of a name, in order, with the text of HTML media in place of its entry."""
        rows = []
        for artifact in self.artifacts:
            files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
            if f"{name}.table.json" in files:
                for row in json.loads(files[f"{name}.table.json"].read_text())["data"]:
                    rows.append([files[cell["path"]].read_text() if isinstance(cell, dict) else cell for cell in row])
        return rows

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of each row that has this metric."""
        return [(row["trainer/global_step"], row[name]) for row in self.history if name in row]


def read(folder: Path) -> OfflineRun:
    """The finished run in the folder of a run, `wandb/offline-run-*/run-*.wandb`.

    W&B's own process writes the file, and may still do so when the run has ended: waits for the record of the end.
    """
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    latest = time.monotonic() + 60
    while not (run := _parsed(path)).ended:
        assert time.monotonic() < latest, f"{path} has no end"
        time.sleep(0.1)
    return run


def _parsed(path: Path) -> OfflineRun:
    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.record = record.run
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "alert":
            run.alerts.append((record.alert.title, record.alert.text))
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        run.stats += kind == "stats"
        run.ended |= kind == "exit"
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B", "no file of W&B"
    place, whole = 7, b""
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:  # no header fits into the rest of a block
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        piece = data[place + 7 : place + 7 + length]
        if len(piece) < length:
            return  # it is being written
        assert int.from_bytes(data[place : place + 4], "little") == zlib.crc32(bytes([kind]) + piece), "damaged"
        whole, place = whole + piece, place + 7 + length
        if kind in (_FULL, _LAST):
            yield whole
            whole = b""
