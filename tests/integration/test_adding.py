"""Adding a task, a user, an engine or an algorithm: the pages' files are written as they stand, their commands run."""

from __future__ import annotations

import asyncio
import csv
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import ScriptedModel, says

from collab.app.cli import main
from collab.chat.base import Sampling
from collab.config.algorithms import AlgorithmConfig
from collab.config.schema import AgendaUserConfig, ModelConfig
from collab.conversation import Candidate, Conversation, Goal, Group, Message, Reply
from collab.generation.engine import LocalEngine
from collab.lm.loading import load_model, load_tokenizer
from collab.modules.packing import pack
from collab.modules.policy import PolicyOutput
from collab.randomness import RngKey
from collab.simulation.conversation_loop import Players, play

DOCS = Path(__file__).parents[2] / "docs"
SMALL = (
    *("trainer.accelerator=cpu", "precision=fp32", "callbacks=quiet", "logger=csv", "output_dir=run"),
    *("trainer.max_steps=1", "trainer.goals_per_step=2", "trainer.val_every=0", "sampler.group_size=2"),
    *("task.num_test=1", "evaluation.num_conversations=1", "algorithm.warmup_steps=0"),
)
# Short replies of a random model, with a metric that they differ in.
MATH = ("task=math", "task.metrics.accuracy.target=commands.Early", "task.max_turns=2", "task.max_new_tokens=8")


class Page:
    """A page of docs/, with its files in the current folder.

    Attributes:
        files: Their names.
        commands: What stands after `PYTHONPATH=. python`.
    """

    def __init__(self, name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = (DOCS / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 120
        files = dict(re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
        for file, content in files.items():
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(content, encoding="utf-8")
        self.files, self.commands = list(files), re.findall(r"^PYTHONPATH=\. python (.*)$", text, re.MULTILINE)
        self.model, self.monkeypatch = model, monkeypatch

    def run(self, command: str, *more: str) -> None:
        """Run a command of the page with the tiny model and further overrides; results are in the folder `run`."""
        _, _, entry, *given = shlex.split(command)  # -m collab ENTRY ...
        self.monkeypatch.setattr(sys, "argv", ["collab", *given, *SMALL, f"model.path={self.model}", *more])
        main(entry)

    def composed(self, command: str, capsys: pytest.CaptureFixture[str]) -> str:
        """The config of a command that is not run."""
        capsys.readouterr()
        self.run(command, "--cfg", "job")
        return capsys.readouterr().out


@pytest.fixture
def page(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: Page(name, tiny_model, monkeypatch)


def transcripts() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run/transcripts.jsonl").read_text().splitlines()]


def logged() -> dict[str, str]:
    """What the one step of a training has logged."""
    (row,) = csv.DictReader(Path("run/csv/metrics.csv").read_text().splitlines())
    return row


def test_a_new_task(page, capsys):
    shown = page("new-task.md")
    assert shown.files == ["packing.py", "conf_of_mine/task/packing.yaml"]
    evaluation, training = shown.commands
    assert training == evaluation.replace("evaluate", "train")
    shown.run(evaluation, "task.max_new_tokens=24")
    policies = json.loads(Path("run/results.json").read_text())["policies"]
    assert list(policies) == ["base", "proactive"]
    assert {"reward", "packed", "interactivity"} <= policies["base"].keys() and policies["base"]["packed"]["n"] == 1
    assert "a walk across the moor" in transcripts()[0]["messages"][1]["content"]
    assert "target: packing.PackingGoals" in shown.composed(training, capsys)


def test_a_new_user(page, capsys):
    shown = page("new-user.md")
    assert shown.files == ["hurried.py", "conf_of_mine/user/hurried.yaml"]
    evaluation, training = shown.commands
    shown.run(evaluation, *MATH, "task.max_turns=4", "policies=[base]")
    hurried = importlib.import_module("hurried")
    (played,) = transcripts()
    assert played["ended_by"] == "patience" and [m["role"] for m in played["messages"]].count("user") == 2
    assert played["messages"][-2]["content"] in hurried.SIGHS
    composed = shown.composed(training, capsys)
    assert "target: hurried.HurriedUser" in composed and "longest: 60" in composed

    def talk(*replies: str) -> Conversation:
        """What the user says to these replies, two items of whose agenda are asked for."""
        user = hurried.HurriedUser(AgendaUserConfig(items_per_answer=1, patience=2), max_turns=3, longest=40)
        goal = Goal(
            "mill",
            "",
            "We meet by the mill.",
            {"title": "the walk", "preferences": {"tone": "warm", "audience": "hikers"}},
        )
        players = Players(ScriptedModel(says(*replies)), user, Sampling(48), max_turns=3)
        return asyncio.run(play(players, Conversation(goal), RngKey(1)))

    asked = talk("Which tone do you want? Who is the audience?", "Who is the audience?")
    assert [turn.user for turn in asked.turns[1:]] == ["warm.", "hikers. Write it now."]
    assert asked.ended_by == "max_turns"
    assert talk("word " * 41 + "Which tone do you want?").ended_by == "patience"
    assert len(talk("word " * 30 + "Which tone do you want?").turns) > 1


def test_a_new_engine(page, tiny_model, capsys):
    shown = page("new-engine.md")
    assert shown.files == ["plain.py", "conf_of_mine/engine/plain.yaml"]
    evaluation, training = shown.commands
    assert training == evaluation.replace("evaluate", "train")
    shown.run(training, *MATH)
    assert float(logged()["train/logprob_gap"]) < 1e-4  # the update finds the log-probs that the engine has reported
    assert {record["policy"] for record in transcripts()} == {"base", "proactive", "policy", "trained"}
    assert "target: plain.GenerateEngine" in shown.composed(evaluation, capsys)
    config = ModelConfig(name="tiny", path=str(tiny_model))
    tokenizer, lm = load_tokenizer(config), load_model(config, torch.float32, torch.device("cpu"), adapter=True)
    ours, other = LocalEngine(lm, tokenizer), importlib.import_module("plain").GenerateEngine(lm, tokenizer, 64)
    for name, weight in lm.named_parameters():
        if "lora_B" in name:
            weight.data = torch.arange(weight.numel()).sin().view_as(weight)

    def greedy(engine: Any, adapter: bool) -> Reply:
        messages = [Message("system", "Be brief."), Message("user", "Where do we meet?")]
        return asyncio.run(engine.complete(messages, Sampling(12, temperature=0, adapter=adapter), RngKey(1)))

    for adapter in (True, False):
        assert greedy(other, adapter).token_ids == greedy(ours, adapter).token_ids
    assert greedy(other, True).token_ids != greedy(other, False).token_ids


def test_a_new_algorithm(page, capsys):
    shown = page("new-algorithm.md")
    assert shown.files == ["reinforce.py", "conf_of_mine/algorithm/reinforce.yaml"]
    training, other = shown.commands
    shown.run(training, *MATH)
    row = logged()
    assert float(row["train/grad_norm"]) > 0 and float(row["train/flat_groups"]) == 0 and row["train/loss"]
    composed = shown.composed(other, capsys)
    assert "target: reinforce.Reinforce" in composed and "min_spread: 0.05" in composed

    def group(*rewards: float) -> Group:
        """Candidates of 1, 2, ... tokens."""
        replies = [Reply("", (7,) * size, (-1.0,) * size, prompt_ids=(1, 2)) for size in range(1, len(rewards) + 1)]
        candidates = (Candidate(reply, mr=reward) for reply, reward in zip(replies, rewards, strict=True))
        return Group(Conversation(Goal("g", "", "")), tuple(candidates))

    config = AlgorithmConfig(name="reinforce", target="reinforce.Reinforce")
    cls = importlib.import_module("reinforce").Reinforce
    module = cls(config, None, None, 1.0, 1, None, min_spread=0.1)
    groups = [group(1.0, 0.0), group(0.5, 0.45)]
    (example,) = module.examples(groups)
    assert example.weights == (0.5, -0.5) and module.units(example) == 2
    assert module.left_out(groups) == {"flat_groups": 1}
    logprobs = torch.tensor([-2.0, -3.0, -4.0], requires_grad=True)
    loss = module.loss([example], pack([example.replies], 1.0), PolicyOutput(logprobs, -logprobs.detach()), None)
    loss.backward()
    assert loss.item() == -(0.5 * -2 - 0.5 * (-3 - 4)) and logprobs.grad.tolist() == [-0.5, 0.5, 0.5]
