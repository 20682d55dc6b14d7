"""Every conversation of a run and every goal, one JSON object a line; and tables of conversations for W&B."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L

from collab.callbacks.wandb_logger import log_conversations, log_trees
from collab.conversation import Conversation, Group, Score, Scored, as_record
from collab.lm.token_lengths import token_lengths
from collab.util.files import cut_torn_line, naming


class TranscriptWriter:
    """Appends to `transcripts.jsonl`; with several processes, rank n > 0 appends to `transcripts-rank{n}.jsonl`.

    The goals of the conversations go to `goals.jsonl` (`goals-rank{n}.jsonl`), each once.

    The files are open only while they are written to. A resumed run plays some conversations again. Those that have a
    line in the file of any process get no second one. A last line that a killed process left incomplete is cut off.

    Args:
        folder: Of the run; made if it is not there.
        rank: Global rank of this process.
        tokenizer: Of the policy. With it, each sampled token has its log-probability in the record.
    """

    def __init__(self, folder: Path | str, rank: int = 0, tokenizer: Any = None) -> None:
        suffix = f"-rank{rank}.jsonl" if rank else ".jsonl"
        self.path, self._goals_path = Path(folder) / f"transcripts{suffix}", Path(folder) / f"goals{suffix}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tokenizer = tokenizer
        cut_torn_line(self.path)
        cut_torn_line(self._goals_path)
        self._written = Counter(map(_place, _lines(self.path.parent, "transcripts")))  # by earlier processes
        self._goals = {(line["phase"], line["id"]) for line in _lines(self.path.parent, "goals")}

    def write(self, scored: Iterable[Scored], *, phase: str, sampled_from: int = 1, **extra: Any) -> None:
        """One line per conversation: `as_record` of it and its score, with the log-probabilities of sampled tokens.

        Args:
            scored: Conversations and their scores.
            phase: "train", "validation" or "test". A goal's id says which goal it is only within one of them.
            sampled_from: Turn from which on replies get the log-probabilities of their tokens.
            extra: Further fields of each record, such as policy and step.
        """
        lines, goals = [], []
        for conversation, score in scored:
            if (phase, conversation.goal.id) not in self._goals:
                self._goals.add((phase, conversation.goal.id))
                goals.append({"phase": phase, **asdict(conversation.goal)})
            record = as_record(conversation, score, phase=phase, **extra)
            place = _place(record)
            if self._written[place]:
                self._written[place] -= 1
            else:
                lines.append(record | self._token_logprobs(conversation, sampled_from))
        _append(self._goals_path, goals)  # before the conversations, so that none is without its goal
        _append(self.path, lines)

    def _token_logprobs(self, conversation: Conversation, sampled_from: int) -> dict[str, Any]:
        """For each reply the log-probs of its tokens and how many characters each token wrote; [] where unknown."""
        replies = [turn.reply for turn in conversation.turns]
        known = [
            token_lengths(self._tokenizer, reply) if turn >= sampled_from and reply.logprobs else []
            for turn, reply in enumerate(replies, start=1)
        ]
        if not any(known):
            return {}
        pairs = zip(known, replies, strict=True)
        logprobs = [[round(x, 2) for x in reply.logprobs] if lengths else [] for lengths, reply in pairs]
        return {"token_lengths": known, "logprobs": logprobs}


def _lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of all processes."""
    for path in filter(Path.is_file, folder.glob(f"{name}*.jsonl")):
        yield from (json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))


def _append(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where in a run a conversation was played, on any process. Several conversations about one goal may share it."""
    return tuple(record.get(name) for name in ("phase", "policy", "step", "goal", "candidate", "sample"))


class TranscriptCallback(L.Callback):
    """Writes the conversations of `fit`: `batch.groups` in training, `batch.scored` in validation.

    W&B gets the trees of the best and the worst group of each training batch (`conversations/train`), and after each
    validation a table of its best and worst conversations (`conversations/val`). `step` in a record is the number of
    finished training batches: the first rollout is step 1, a validation after eight batches is step 8.

    Args:
        writer: Of this process.
    """

    def __init__(self, writer: TranscriptWriter) -> None:
        self.writer = writer
        self._step = 0
        self._validated: list[Scored] = []  # since the start of this validation

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step = batch_idx + 1
        played = futures(batch.groups)
        learnt = _learnt(pl_module, batch.groups) if played else {}
        for (number, candidate, sample), scored in played:
            group = batch.groups[number]
            turn = group.context.turn
            where = {"group": number, "candidate": candidate, "sample": sample, "turn": turn}
            how = {"number": group.number, **learnt[number, candidate]}
            self.writer.write(
                [scored], phase="train", policy="policy", step=self._step, sampled_from=turn, **where, **how
            )
        if played:
            log_trees(trainer.loggers, self._step, batch.groups)

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
        records = [as_record(conversation, score, step=self._step) for conversation, score in self._validated]
        goals = {conversation.goal.id: asdict(conversation.goal) for conversation, _ in self._validated}
        log_conversations(trainer.loggers, "val", records, goals)


def _learnt(module: Any, groups: Sequence[Group]) -> dict[tuple[int, int], dict[str, Any]]:
    """(group, candidate) -> whether the algorithm was trained on it, and its advantage where there is one."""
    trained = {id(reply) for example in module.examples(groups) for reply in example.replies}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        advantages = module.advantages(group)
        for index, candidate in enumerate(group.candidates):
            found[number, index] = {"trained": id(candidate.reply) in trained}
            if advantages is not None:
                found[number, index]["advantage"] = advantages[index]
    return found


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
