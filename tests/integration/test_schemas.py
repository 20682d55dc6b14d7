"""Replies that fit a JSON schema. A model of random weights never would by itself."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import answering
from transformers import AutoModelForCausalLM, AutoTokenizer

from collab.chat.base import Sampling
from collab.chat.structured import schema_of
from collab.config.schema import LLMUserConfig
from collab.conversation import Conversation, Goal, Message, Reply
from collab.generation.engine import LocalEngine
from collab.generation.schemas import forbid
from collab.randomness import RngKey
from collab.rewards.judge import Interactivity, Judge
from collab.simulation.llm import LLMUser

FORM = schema_of(mood={"enum": ["glad", "sad"]}, why={"type": "string", "minLength": 1, "maxLength": 40})
GOAL = Goal(
    "kiln", "Please write a notice about the kiln.", "The kiln is hot.", {"title": "the kiln", "form": "notice"}
)
TALK = Conversation(GOAL).with_user("hi").with_reply(Reply("What should it say?"))


def load_engine(folder: Path, **options: Any) -> LocalEngine:
    lm = AutoModelForCausalLM.from_pretrained(folder).eval()
    return LocalEngine(lm, AutoTokenizer.from_pretrained(folder), **options)


def say(engine: LocalEngine, samplings: Sequence[Sampling]) -> list[Reply]:
    async def everyone() -> list[Reply]:
        asked = (
            engine.complete([Message("user", f"Number {n}")], sampling, RngKey(1, sample=n))
            for n, sampling in enumerate(samplings)
        )
        return list(await asyncio.gather(*asked))

    return asyncio.run(everyone())


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> LocalEngine:
    return load_engine(tiny_model)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_reply_fits_its_schema(engine: LocalEngine, temperature: float) -> None:
    for reply in say(engine, [Sampling(80, temperature, schema=FORM)] * 12):
        found = json.loads(reply.text)
        assert list(found) == ["mood", "why"] and found["mood"] in ("glad", "sad")
        assert 1 <= len(found["why"]) <= 40 and reply.finish_reason == "stop"


def test_rows_beside_it_stay_as_they_are(tiny_model: Path) -> None:
    free, held = Sampling(20, 1.0), Sampling(80, 1.0, schema=FORM)
    engine = load_engine(tiny_model, deterministic=True)
    alone = say(engine, [free] * 4)
    engine.clear_cache()
    beside = say(engine, [free] * 4 + [held] * 4)
    assert [reply.token_ids for reply in beside[:4]] == [reply.token_ids for reply in alone]
    assert all(json.loads(reply.text) for reply in beside[4:])


def test_a_forbidden_token_has_no_mass(engine: LocalEngine) -> None:
    logits = torch.zeros(2, engine._head.weight.shape[0])
    forbid(logits, [None, engine._schemas.matcher(FORM)])
    assert (logits[0] == 0).all()
    allowed = engine.tokenizer.batch_decode([[i] for i in logits[1].isfinite().nonzero().flatten().tolist()])
    assert allowed and all('{"mood": '.startswith(text) for text in allowed)


def test_a_user_and_a_judge_of_random_weights_answer_in_form(engine: LocalEngine) -> None:
    problems = Counter[str]()
    user = LLMUser(LLMUserConfig(max_new_tokens=120, retries=0), 4, engine, problems)
    judge = Judge(engine, Sampling(100, 1.0), 0, 1, problems)
    metric = Interactivity()
    metric.judge = judge

    async def played() -> None:
        await asyncio.gather(*(user.respond(TALK, RngKey(1, sample=n)) for n in range(8)))
        for _ in range(2):
            score = await metric(TALK)
            assert score.value is not None and 0 <= score.value <= 1

    asyncio.run(played())
    assert not problems["user_shape"] and not problems["user_stop"] and not problems["judge_shape"]


def test_a_user_may_end_the_chat_in_the_schema_only_with_a_reason() -> None:
    user = LLMUser(LLMUserConfig(patience=2), 8, answering())
    draft = TALK.with_user("It is hot.").with_reply(Reply("The kiln is hot today, so please keep away from it."))
    for talk, ends in ((Conversation(GOAL), []), (TALK, []), (draft, ["[[SATISFIED]]", "[[GIVE UP]]"])):
        schema = user.schema(talk)
        assert [word for word in ("[[SATISFIED]]", "[[GIVE UP]]") if word in schema] == ends
