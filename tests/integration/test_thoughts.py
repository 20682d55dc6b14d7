"""A tiny model that was taught to think before it speaks: what is shown, counted, remembered, reused and trained on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import templates
import torch
from models import tiny_lm, word_tokenizer
from scripted import ScriptedUser
from tokenizers import AddedToken

from collab.chat.base import Sampling
from collab.conversation import Conversation, Goal, Message, Reply, as_record
from collab.generation.engine import LocalEngine
from collab.lm.chat_format import ChatFormat
from collab.modules.packing import pack
from collab.randomness import RngKey
from collab.rewards.metrics import assistant_tokens
from collab.simulation.conversation_loop import Players, play

ASKED = ("hi", "six")
SAID = (("hmm no date", "when"), ("date no place", "where"))  # (thought, reply) of each turn
KEY = RngKey(1)


def thinking_tokenizer(name: str) -> Any:
    template, marks = {
        "qwen3": (templates.QWEN3, ("<think>", "</think>")),
        "magistral": (templates.MAGISTRAL, ("[THINK]", "[/THINK]")),
    }[name]
    tokenizer = word_tokenizer(
        ["user", "assistant", "hi", "six", "hmm", "no", "date", "place", "when", "where"], template
    )
    control = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in control], special_tokens=True)
    tokenizer.add_tokens([AddedToken(mark, special=name == "magistral") for mark in marks])
    tokenizer.eos_token = {"qwen3": "<|im_end|>", "magistral": "</s>"}[name]
    return tokenizer


def spoken(form: ChatFormat, turn: int) -> Reply:
    thought, text = SAID[turn]
    start, end = form.marks
    ids = tuple(form.tokenizer(f"{start} {thought} {end} {text}", add_special_tokens=False)["input_ids"])
    return form.read(Reply("", (*ids, form.end)), Sampling(16))


def asked(form: ChatFormat, turn: int) -> list[Message]:
    messages = [Message("user", ASKED[0])]
    for earlier in range(turn):
        reply = spoken(form, earlier)
        messages += [Message("assistant", reply.text, reply.token_ids), Message("user", ASKED[earlier + 1])]
    return messages


@pytest.fixture(scope="module", params=["qwen3", "magistral"])
def taught(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The model and its tokenizer. It knows what to think and say in both turns."""
    tokenizer = thinking_tokenizer(request.param)
    form, lm = ChatFormat(tokenizer), tiny_lm(len(tokenizer))
    optimizer = torch.optim.Adam(lm.parameters(), lr=5e-3)
    for _ in range(40):
        for turn in range(2):
            prompt, reply = form.encode(asked(form, turn))[0], spoken(form, turn).token_ids
            labels = torch.tensor([[-100] * len(prompt) + list(reply)])
            lm(input_ids=torch.tensor([[*prompt, *reply]]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return lm.eval(), tokenizer


def ask(engine: LocalEngine, messages: list[Message], **sampling: Any) -> Reply:
    return asyncio.run(engine.complete(messages, Sampling(sampling.pop("limit", 16), 1.0, **sampling), KEY))


def test_only_what_is_said_is_shown_and_counted(taught: tuple[Any, Any]) -> None:
    engine = LocalEngine(*taught)
    reply = ask(engine, asked(engine.format, 0))
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("when", "hmm no date", "stop")
    assert reply.num_tokens == 2 and len(reply.token_ids) == 7  # the word and the end; both marks and three words
    cut = ask(engine, asked(engine.format, 0), limit=3)
    assert (cut.text, cut.reasoning, cut.finish_reason, cut.num_tokens) == ("", "hmm no", "length", 0)
    shown = ask(engine, asked(engine.format, 0), show_thoughts=True)
    assert "".join(shown.text.split()) == "hmmnodate".join(engine.format.marks) + "when"
    assert shown.num_tokens == 7 and shown.token_ids == reply.token_ids


def test_a_conversation_goes_on_without_its_thoughts(taught: tuple[Any, Any]) -> None:
    heard: list[list[str]] = []

    def user(conversation: Conversation, key: RngKey) -> str:
        heard.append(conversation.assistant_texts)
        return ASKED[len(conversation.turns)]

    players = Players(LocalEngine(*taught), ScriptedUser(user), Sampling(16), max_turns=2)
    played = asyncio.run(play(players, Conversation(Goal("g", "", "")), KEY))
    assert heard == [[], ["when"]] and played.assistant_texts == ["when", "where"]
    assert assistant_tokens(played) == 4
    record = as_record(played)
    assert record["thoughts"] == [thought for thought, _ in SAID] and record["reply_tokens"] == [2, 2]


def test_kept_prefixes_and_the_update_agree_with_the_history_that_the_template_wants(taught: tuple[Any, Any]) -> None:
    lm, tokenizer = taught
    warm, cold = LocalEngine(lm, tokenizer), LocalEngine(lm, tokenizer, cache_bytes=0)
    first = ask(warm, asked(warm.format, 0))
    messages = [*asked(warm.format, 0), Message("assistant", first.text, first.token_ids), Message("user", ASKED[1])]
    second = ask(warm, messages)
    assert (second.text, second.reasoning) == ("where", "date no place")
    told = tokenizer.decode(second.prompt_ids)
    assert ("hmm" in told) == (tokenizer.eos_token == "</s>")  # Magistral's template keeps thoughts

    plain = ask(cold, messages)
    assert (plain.token_ids, plain.prompt_ids) == (second.token_ids, second.prompt_ids)
    assert plain.logprobs == pytest.approx(second.logprobs, abs=1e-4)

    batch = pack([[second]], 1.0)
    assert tuple(batch.targets.tolist()) == second.token_ids
    assert tuple(batch.input_ids[0].tolist()) == (*second.prompt_ids, *second.token_ids[:-1])
    assert batch.predict_from.tolist() == [len(second.prompt_ids) - 1 + i for i in range(len(second.token_ids))]
    with torch.no_grad():
        logits = lm(input_ids=batch.input_ids).logits[0, batch.predict_from]
    logprobs = logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    assert logprobs.tolist() == pytest.approx(second.logprobs, abs=1e-4)
