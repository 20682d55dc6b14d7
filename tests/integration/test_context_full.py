"""A conversation that is too long for a model ends there and is counted; the run goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fault_server import FaultServer
from scripted import ScriptedModel, ScriptedUser, spoken
from test_http import ask, endpoint, quickly  # noqa: F401  the last is a fixture
from transformers import AutoModelForCausalLM, AutoTokenizer

from collab.app.cli import main
from collab.chat.base import ContextFull, Sampling
from collab.chat.http import HttpChatModel
from collab.config.schema import LLMUserConfig, SamplerConfig
from collab.conversation import Conversation, Goal, Message, Score
from collab.generation.engine import LocalEngine
from collab.randomness import RngKey
from collab.rewards.judge import Interactivity, Judge
from collab.rewards.pairwise import Chat, PairwiseJudge
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play, sample_candidates
from collab.simulation.llm import LLMUser
from collab.simulation.sampler import LostCounts, Simulation
from collab.simulation.synthesis import synthesise

GOAL = Goal("a", "A text.", "A text.", {"title": "a"})
KEY = RngKey(1, goal="a")
FULL = "invalid: context_full"


class Narrow(ScriptedModel):
    """A model that reads `words` words at most."""

    def __init__(self, words: int, says: str = "hm hm hm") -> None:
        super().__init__(lambda messages, key: says)
        self.words = words

    async def complete(self, messages: Any, sampling: Sampling, key: RngKey) -> Any:
        if sum(len(message.content.split()) for message in messages) > self.words:
            raise ContextFull("too long")
        return await super().complete(messages, sampling, key)


class Turns:
    async def __call__(self, conversation: Conversation) -> float | None:
        return float(len(conversation.turns))


def user() -> ScriptedUser:
    return ScriptedUser(lambda conversation, key: f"user says {conversation.turn}")


def simulation(model: Any = None, window: int = 2, max_turns: int = 4) -> Simulation:
    return Simulation(
        user=user(),  # type: ignore[arg-type]
        reward=ConversationReward({"turns": (1.0, Turns())}),
        sampling=Sampling(8),
        max_turns=max_turns,
        sampler=SamplerConfig(window=window, num_samples=2, group_size=3),
        seed=1,
        make_engine=lambda lm, tokenizer: model,
    )


def test_a_conversation_ends_where_its_next_prompt_does_not_fit() -> None:
    players = Players(Narrow(9), user(), Sampling(8), 5)  # type: ignore[arg-type]
    done = asyncio.run(play(players, Conversation(GOAL), KEY))
    assert (done.ended_by, len(done.turns), done.valid) == (FULL, 2, False)


@pytest.mark.parametrize(
    ("words", "context", "scored"),
    [
        (2, None, 0),  # a context cannot be played
        (3, Conversation(GOAL).with_user("one two three four"), 0),  # a stored context is too long
        (3, Conversation(GOAL).with_user("one two"), 0),  # all futures are
        (30, Conversation(GOAL).with_user("one two"), 3),
    ],
)
def test_what_does_not_fit_is_lost_and_counted_and_the_rest_is_not(words: int, context: Any, scored: int) -> None:
    played, lost = simulation(), LostCounts()
    if context is not None:
        played = replace(played, contexts={(GOAL.prompt, turn): context for turn in range(1, 5)})
    groups = [asyncio.run(played.group(Narrow(words), GOAL, "", step, step, lost)) for step in range(4)]
    assert [len(group.candidates) for group in groups] == [scored] * 4
    assert lost.futures == 4 * 3 * 2
    assert lost.invalid == lost.context_full == (0 if scored else lost.futures)


def test_some_futures_of_a_candidate_may_be_too_long() -> None:
    class Odd(Narrow):
        async def complete(self, messages: Any, sampling: Sampling, key: RngKey) -> Any:
            self.words = 3 if key.sample == 1 and len(messages) > 2 else 99
            return await super().complete(messages, sampling, key)

    played, lost = simulation(window=1), LostCounts()
    played = replace(played, contexts={(GOAL.prompt, turn): Conversation(GOAL).with_user("hi") for turn in range(1, 5)})
    group = asyncio.run(played.group(Odd(99), GOAL, "", 0, 0, lost))
    assert [candidate.mr for candidate in group.candidates] == [2.0] * 3
    assert (lost.futures, lost.invalid, lost.context_full) == (6, 3, 3)


def test_an_evaluation_goes_on() -> None:
    goals = [GOAL, Goal("b", "B", "B", {"title": "b"})]

    def talk(conversation: Conversation, key: RngKey) -> str:
        return "word " * 20 if conversation.goal.id == "b" else "hi"

    played = replace(simulation(), user=ScriptedUser(talk))
    scored = asyncio.run(played.conversations(Narrow(19), goals, "", "test", 1))
    assert [(c.ended_by, s.reward) for c, s in scored] == [("max_turns", 4.0), (FULL, None)]
    assert LostCounts().count(scored) == LostCounts(futures=2, invalid=1, context_full=1)


def test_a_user_whose_prompt_is_too_long_ends_the_conversation() -> None:
    problems: Counter[str] = Counter()
    player = LLMUser(LLMUserConfig(), 4, Narrow(5), problems)
    turn = asyncio.run(player.respond(Conversation(GOAL), KEY))
    assert turn.end == FULL
    assert +problems == Counter(user_context_full=1, user_invalid=1)


def test_a_judge_whose_prompt_is_too_long_gives_no_score() -> None:
    metric, problems = Interactivity(), Counter()  # type: ignore[var-annotated]
    metric.judge = Judge(Narrow(5), Sampling(9), 2, 1, problems)
    done = Conversation(GOAL).with_user("hi").with_reply(spoken("Hello")).with_end("max_turns")
    score = asyncio.run(ConversationReward({"interactivity": (1.0, metric)})(done))
    assert score == Score(None, {"interactivity": None}, {"interactivity": ()})
    assert +problems == Counter(judge_context_full=1, judge_missing=1)


def test_candidates_of_a_context_that_is_too_long_are_not_sampled() -> None:
    players = Players(Narrow(3), user(), Sampling(8), 5)  # type: ignore[arg-type]
    context = Conversation(GOAL).with_user("one two three four")
    assert asyncio.run(sample_candidates(players, context, 3, KEY)) is None


@pytest.mark.parametrize("window", [0, 1])
def test_a_synthesis_keeps_the_turns_that_fitted(window: int) -> None:
    model = Narrow(16)
    made = asyncio.run(
        synthesise(simulation(model, window), model, GOAL, system_prompt="Be", proactive_prompt="Ask", key=KEY)
    )
    assert made is not None and made.ended_by == "context_full"
    assert len(made.turns) == (3 if window == 0 else 2)
    assert all(turn.num_proactive == 1 for turn in made.turns)


def test_local_engine_and_pairwise_judge_say_so(tiny_model: Path) -> None:
    engine = LocalEngine(AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model))
    engine.positions = 40
    with pytest.raises(ContextFull, match="does not fit the model's 40 positions"):
        asyncio.run(engine.complete([Message("user", "hi")], Sampling(40), KEY))
    chat = Chat((("user", "hi"), ("assistant", "hello")))
    assert asyncio.run(PairwiseJudge(engine, 1).compare(GOAL, chat, chat, "text")) is None


@pytest.mark.parametrize("code", ["400 context_length_exceeded", "413 context_length_exceeded"])
def test_a_server_that_cannot_read_a_prompt_says_so(quickly: Any, code: str) -> None:  # noqa: F811
    with FaultServer(lambda number, call: code) as server:
        (error,) = ask(HttpChatModel(endpoint(server)))
    assert isinstance(error, ContextFull)


@contextmanager
def undone() -> Iterator[None]:
    """Takes back what a command changes in its process, which otherwise ends with it.

    These are the seeds in the environment, torch's deterministic kernels, and the log of the run.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    fixed, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with mock.patch.dict(os.environ):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(fixed, warn_only=warned)
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)


def test_a_run_with_a_goal_that_can_never_fit_and_one_that_grows_too_long(
    tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=2, max_position_embeddings=210, eos_token_id=2, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    files = []
    for split in ("train", "val", "test"):
        titles = ["the kiln", "the ferry", "the choir", "the pear"]
        if split == "train":
            titles[1:3] = ["bread " * 300, "rye " * 110]  # never; after a turn or two
        rows = [
            {
                "id": f"{split}-{number}",
                "single_turn_prompt": f"Write a notice for {split} {number}.",
                "single_turn_completion": f"We bake {split} {number}.",
                "single_turn_metadata": {"title": title.strip(), "form": "notice"},
            }
            for number, title in enumerate(titles)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(f"task.{split}_file={tmp_path / split}.jsonl")
    typed = [
        *("experiment=doc_edit", f"model.path={tmp_path / 'model'}", "trainer.accelerator=cpu", "precision=fp32"),
        *("task.max_turns=3", "task.max_new_tokens=40", "trainer.max_steps=2", "trainer.goals_per_step=2", "seed=3"),
        *("sampler.group_size=2", "evaluation.num_conversations=1", "callbacks=quiet", "trainer.max_invalid=1"),
        *("logger=csv", "task.num_val=1", "task.num_test=1"),
        *(*files, f"output_dir={tmp_path / 'run'}"),
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *typed])
    with undone():
        main("train")
    said = capsys.readouterr().out
    assert "1 of 4 train goals are left out (train-1): their first prompt and a reply are longer" in said
    assert said.count("chat template: system role kept") == 1
    logged = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()
    names, *rows = [line.split(",") for line in logged]
    place = names.index("train/context_full")
    assert any(float(row[place]) > 0 for row in rows if row[place])
    assert json.loads((tmp_path / "run" / "results.json").read_text())
