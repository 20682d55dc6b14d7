"""The folder of a run without a model: every file that `collab report` reads, written by what writes it in a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from composing import load_config
from omegaconf import OmegaConf

from collab.app.evaluate import policy_scores
from collab.app.resume import RunState
from collab.callbacks.transcripts import TranscriptCallback, TranscriptWriter
from collab.config.policies import row_name
from collab.config.schema import Config
from collab.conversation import Candidate, Conversation, Goal, Group, Refusal, Reply, Score, Scored, Turn
from collab.datamodules.base import GoalBatch
from collab.datamodules.goals import load_splits
from collab.modules.grpo import GRPO
from collab.reports.results import summarise_rows
from collab.util.files import write_json

PARTS = ("coverage", "bleu", "token_penalty", "interactivity")
Say = Callable[[str, np.random.Generator], str]


def spoken(who: str, draws: np.random.Generator) -> str:
    """About the length of a message of the showcase."""
    words = ("kiln", "notice", "Tuesday", "shelf", "please", "what", "should", "the", "members", "know", "about", "it")
    return f"{who} says " + " ".join(words[i] for i in draws.integers(len(words), size=22)) + "."


class _Writer(TranscriptWriter):
    """Has the log-probs of words without a tokenizer."""

    def _token_logprobs(self, conversation: Conversation, sampled_from: int) -> dict[str, Any]:
        lengths, logprobs = [], []
        for turn, one in enumerate(conversation.turns, start=1):
            pieces = [len(piece) + 1 for piece in one.reply.text.split(" ")] if turn >= sampled_from else []
            lengths.append([*pieces[:-1], pieces[-1] - 1] if pieces else [])
            logprobs.append([round(x, 2) for x in one.reply.logprobs[: len(pieces)]] if pieces else [])
        return {"token_lengths": lengths, "logprobs": logprobs}


class RunFolder:
    """Writes a run of GRPO.

    Args:
        folder: Of the run.
        seed: Its seed.
        goals: Test goals, training goals of a step and validation goals.
        steps: Of the training.
        candidates: Of a context.
        samples: Futures of a candidate.
        say: (who, draws) -> a message.
        finished: Whether it has its results.
        overrides: Further ones of its config.
        users: Names of `evaluation.users`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 1,
        goals: int = 3,
        steps: int = 2,
        candidates: int = 3,
        samples: int = 2,
        say: Say = spoken,
        finished: bool = True,
        overrides: Sequence[str] = (),
        users: Sequence[str] = (),
    ) -> None:
        self.folder, self.say, self.candidates, self.samples = folder, say, candidates, samples
        self.draws = np.random.default_rng(seed)
        overrides = [
            *(f"seed={seed}", f"sampler.group_size={candidates}", f"sampler.num_samples={samples}"),
            *overrides,
        ]
        self.config: Config = load_config("train", ["experiment=doc_edit", *overrides], str(folder))
        self.splits = load_splits(self.config.task)
        folder.mkdir(parents=True)
        OmegaConf.save(OmegaConf.structured(self.config), folder / "config.yaml")
        state = RunState(folder, "train")
        self.writer = _Writer(folder)
        for policy, bonus in (("base", 0.0), ("trained", 1.0)):
            for row in (row_name(policy, user) for user in ("", *users)):
                scored = [self.scored(goal, bonus) for goal in self.splits.test[:goals]]
                self.writer.write(scored, phase="test", policy=row)
                if finished or policy == "base":
                    state.finish(row, 1.0, policy_scores(scored))
        self.train(goals, steps)
        if finished:
            results = summarise_rows(state.scores, baseline="base", seed=seed, aggregates={})
            config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
            write_json(folder / "results.json", {**results, "config": config, "seconds": state.seconds})

    def train(self, goals: int, steps: int) -> None:
        callback, module = TranscriptCallback(self.writer), self.algorithm()
        trainer: Any = type("Trainer", (), {"loggers": []})()
        rows: list[dict[str, Any]] = []
        for step in range(steps):
            chosen = self.splits.train[step * goals : (step + 1) * goals]
            batch = GoalBatch(chosen, [self.group(goal, step * goals + i) for i, goal in enumerate(chosen)])
            callback.on_train_batch_end(trainer, module, None, batch, step)
            batch = GoalBatch(self.splits.val[:goals])
            batch.scored = [self.scored(goal) for goal in batch.goals]
            callback.on_validation_start(trainer, module)
            callback.on_validation_batch_end(trainer, module, None, batch, 0)
            rows += [{"step": step, "train/mr": 0.5 + step, "train/loss": 0.1}, {"step": step, "val/reward": 1 + step}]
        (self.folder / "csv").mkdir()
        with (self.folder / "csv" / "metrics.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["step", "train/mr", "train/loss", "val/reward"])
            table.writeheader()
            table.writerows(rows)

    def algorithm(self) -> GRPO:
        return GRPO(self.config.algorithm, lambda: None, None, 1.0, 1)

    def reply(self) -> Reply:
        text = self.say("policy", self.draws)
        count = text.count(" ") + 1
        return Reply(text, tuple(range(count)), tuple((-self.draws.exponential(0.7, count)).tolist()))

    def conversation(self, start: Conversation, turns: int) -> Conversation:
        for _ in range(turns):
            if start.pending is None:
                start = start.with_user(self.say("user", self.draws))
            start = start.with_reply(self.reply())
        return start.with_end("max_turns")

    def score(self, bonus: float = 0.0) -> Score:
        values = {name: float(self.draws.random()) for name in PARTS}
        values["coverage"] = min(1.0, values["coverage"] / 2 + bonus / 2)
        weights = {name: entry.weight for name, entry in self.config.task.metrics.items()}
        return Score(sum(weights[name] * value for name, value in values.items()), values)

    def scored(self, goal: Goal, bonus: float = 0.0) -> Scored:
        return self.conversation(Conversation(goal, self.config.task.system_prompt), 4), self.score(bonus)

    def group(self, goal: Goal, number: int) -> Group:
        context = self.conversation(Conversation(goal, self.config.task.system_prompt), 1)
        context = context.with_user(self.say("user", self.draws))
        found = []
        for _ in range(self.candidates):
            reply = self.reply()
            futures = tuple(self.conversation(context.with_reply(reply), 1) for _ in range(self.samples))
            scores = tuple(self.score() for _ in futures)
            mr = sum(score.reward or 0.0 for score in scores) / len(scores)
            found.append(Candidate(reply, futures, scores, mr))
        return Group(context, tuple(found), number)

    def spoil(self) -> None:
        """Add a validation with each kind of failure."""
        goal = self.splits.val[-1]
        start = Conversation(goal, self.config.task.system_prompt).with_user("hi")
        cut = start.with_reply(Reply("cut off in the", (1, 2, 3), finish_reason="length"))
        refused = (Refusal(1, "leak", '{"message": "all that I want"}'), Refusal(2, "stop", "[[SATISFIED]]"))
        lost = Score(None, {})
        cases: Sequence[Scored] = [
            (cut.with_end("max_turns"), self.score()),
            (cut.with_end("patience"), self.score()),
            (cut.with_end("max_turns"), Score(None, {"coverage": None}, {"interactivity": ("no JSON",)})),
            (replace(cut, turns=(Turn("hi", Reply("Hello!", (1,))),), refused=refused).with_end("invalid: stop"), lost),
        ]
        self.writer.write(cases, phase="validation", policy="policy", step=9)


def data_of(page: Path) -> dict[str, Any]:
    """The data in a page."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
