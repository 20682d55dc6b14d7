"""Every conversation of a run, one JSON object a line; and a few of them as a W&B table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from collab.conversation import Conversation, Group, Score, Scored, as_record
from collab.util.files import cut_torn_line, naming

_TABLE_ROWS = 4  # of a W&B table


class TranscriptWriter:
    """Appends to `transcripts.jsonl`; with several processes, rank n > 0 appends to `transcripts-rank{n}.jsonl`.

    The file is open only while it is written to. A resumed run plays some conversations again. Those that have a line
    in the file of any process get no second one. A last line that a killed process left incomplete is cut off.

    Args:
        folder: Of the run; made if it is not there.
        rank: Global rank of this process.
    """

    def __init__(self, folder: Path | str, rank: int = 0) -> None:
        self.path = Path(folder) / (f"transcripts-rank{rank}.jsonl" if rank else "transcripts.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(self.path)
        self._written: Counter[tuple[Any, ...]] = Counter()  # lines of earlier processes, by their place
        for path in filter(Path.is_file, self.path.parent.glob("transcripts*.jsonl")):
            lines = path.read_bytes().splitlines(keepends=True)
            self._written.update(_place(json.loads(line)) for line in lines if line.endswith(b"\n"))

    def write(self, scored: Iterable[Scored], **extra: Any) -> None:
        """One line per conversation: `as_record` of it and its score, with the fields `extra` (phase, policy, step)."""
        lines = []
        for conversation, score in scored:
            record = as_record(conversation, score, **extra)
            place = _place(record)
            if self._written[place]:
                self._written[place] -= 1
            else:
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where in a run a conversation was played, on any process. Several conversations about one goal may share it."""
    return tuple(record.get(name) for name in ("phase", "policy", "step", "goal", "candidate", "sample"))


class TranscriptCallback(L.Callback):
    """Writes the conversations of `fit`: `batch.groups` in training, `batch.scored` in validation.

    W&B gets a table of a few after each training batch (`train/conversations`) and each validation
    (`val/conversations`). `step` in a record is the number of finished training batches: the first rollout is step 1, a
    validation after eight batches is step 8.

    Args:
        writer: Of this process.
    """

    def __init__(self, writer: TranscriptWriter) -> None:
        self.writer = writer
        self._step = 0
        self._validated: list[Scored] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step = batch_idx + 1
        played = futures(batch.groups)
        for (group, candidate, sample), scored in played:
            where = {"group": group, "candidate": candidate, "sample": sample}
            self.writer.write([scored], phase="train", policy="policy", step=self._step, **where)
        # One future of each context first, then those of further candidates, so that few rows show many goals.
        played.sort(key=lambda item: (item[0][1], item[0][2], item[0][0]))
        self._table(trainer, "train/conversations", [scored for _, scored in played])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.writer.write(batch.scored, phase="validation", policy="policy", step=self._step)
        self._validated.extend(batch.scored)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._table(trainer, "val/conversations", self._validated)

    def _table(self, trainer: L.Trainer, key: str, scored: Sequence[Scored]) -> None:
        columns, rows = conversation_table(self._step, scored[:_TABLE_ROWS])
        for logger in trainer.loggers:
            if rows and isinstance(logger, WandbLogger):
                logger.log_table(key, columns=columns, data=rows, step=self._step)


def futures(groups: Sequence[Group]) -> list[tuple[tuple[int, int, int], tuple[Conversation, Score]]]:
    """((group, candidate, sample), (conversation, score)) of each forward sample, in that order.

    Candidates that were read from a file have scores but no conversations, and are left out.
    """
    return [
        ((g, c, s), scored)
        for g, group in enumerate(groups)
        for c, candidate in enumerate(group.candidates)
        for s, scored in enumerate(zip(candidate.futures, candidate.scores, strict=bool(candidate.futures)))
    ]


def conversation_table(step: int, scored: Sequence[Scored]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table: step, goal, conversation, reward, then every part of the reward."""
    parts = list(dict.fromkeys(name for _, score in scored for name in score.parts))
    rows = [
        [
            step,
            conversation.goal.id,
            "\n\n".join(f"{message.role}: {message.content}" for message in conversation.messages()),
            score.reward,
            *(score.parts.get(name) for name in parts),
        ]
        for conversation, score in scored
    ]
    return ["step", "goal", "conversation", "reward", *parts], rows
