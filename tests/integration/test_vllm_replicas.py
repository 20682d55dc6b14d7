"""The vLLM engine over two servers on loopback: who answers, one that dies, one that returns, old weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_vllm import TinyVLLM
from trainee import HELLO, KEY, Trainee, assert_speaks_as, make_engine, make_model, make_tokenizer, says, taken_up

from collab.chat.base import Sampling
from collab.chat.completions import seed_of
from collab.conversation import Message, Reply
from collab.generation import replicas, vllm
from collab.generation.vllm import VLLMEngine
from collab.randomness import RngKey
from collab.util.errors import RunStopped

TURNS = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(make_tokenizer(), tmp_path_factory.mktemp("base") / "base", 0)


@pytest.fixture
def servers(base: Path) -> Iterator[list[TinyVLLM]]:
    with TinyVLLM(base) as first, TinyVLLM(base) as second:
        yield [first, second]


@pytest.fixture
def trainee(base: Path) -> Trainee:
    policy = Trainee(base)
    policy.learn()
    return policy


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that are left out are tried again at once."""
    monkeypatch.setattr(replicas, "TRY_AGAIN", 0.05)


def key_of(conversation: int, turn: int) -> RngKey:
    return KEY.at(sample=conversation, turn=turn)


def played(engine: VLLMEngine, conversations: int) -> list[list[Reply]]:
    """The replies of conversations that are held at the same time."""

    async def one(conversation: int) -> list[Reply]:
        said, replies = list(HELLO), []
        for turn in range(TURNS):
            reply = await engine.complete(said, Sampling(6, temperature=0.7), key_of(conversation, turn))
            replies.append(reply)
            said += [Message("assistant", reply.text, reply.token_ids), Message("user", "Go on.")]
        return replies

    async def all_of_them() -> list[list[Reply]]:
        return await asyncio.gather(*(one(number) for number in range(conversations)))

    return asyncio.run(all_of_them())


def asked(server: TinyVLLM) -> list[int]:
    """Seeds of the requests that are no checks."""
    return [call["seed"] for call in server.calls if call["seed"] != 1]


def until(engine: VLLMEngine, holds: Callable[[], bool]) -> list[Reply]:
    """Replies of one conversation after the other, until something holds."""
    replies, end = [], time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        replies.append(says(engine, key=KEY.at(candidate=len(replies)), max_new_tokens=2))
        time.sleep(0.02)  # for the check, which a thread makes meanwhile
    return replies


def test_a_conversation_stays_where_it_is_and_others_go_where_least_is_under_way(
    servers: list[TinyVLLM], trainee: Trainee, tmp_path: Path
) -> None:
    engine = taken_up(make_engine(servers, trainee, tmp_path), trainee)
    assert [len(server.loaded) for server in servers] == [1, 1] and servers[0].loaded == servers[1].loaded
    played(engine, 6)
    places = {seed: number for number, server in enumerate(servers) for seed in asked(server)}
    homes = [{places[seed_of(key_of(number, turn))] for turn in range(TURNS)} for number in range(6)]
    assert all(len(home) == 1 for home in homes)
    assert [homes.count({number}) for number in range(2)] == [3, 3]
    logged = engine.logged()
    assert [logged[f"server_{n}_requests"] for n in (1, 2)] == [3 * TURNS] * 2
    assert logged["server_1_share"] + logged["server_2_share"] == pytest.approx(1) and 0 < logged["server_1_share"] < 1
    assert all(0 <= logged[f"server_{n}_logprob_gap"] < 1e-4 for n in (1, 2))
    engine.close()
    assert not servers[0].adapters and not servers[1].adapters


def test_a_server_that_dies_in_mid_rollout_loses_no_reply_and_changes_none(
    servers: list[TinyVLLM], trainee: Trainee, tmp_path: Path
) -> None:
    told: list[str] = []
    alone = taken_up(make_engine(servers[:1], trainee, tmp_path / "alone"), trainee)
    expected, tokens = played(alone, 5), alone.new_tokens
    alone.close()
    servers[0].calls.clear()
    engine = taken_up(make_engine(servers, trainee, tmp_path / "both", tell=told.append), trainee)
    servers[1].kill_at(3)
    found = played(engine, 5)
    assert [[r.token_ids for r in replies] for replies in found] == [[r.token_ids for r in them] for them in expected]
    assert [[r.text for r in replies] for replies in found] == [[r.text for r in them] for them in expected]
    assert engine.new_tokens == tokens
    logged = engine.logged()
    assert (logged["server_1_requests"], logged["server_2_requests"]) == (5 * TURNS - 2, 2)  # each counted once
    assert (logged["server_1_left_out"], logged["server_2_left_out"]) == (0, 1)
    assert len(told) == 1 and f"{servers[1].url} gets no requests: " in told[0]
    # The next weights go to the one that is left.
    trainee.learn()
    engine.clear_cache()
    taken_up(engine, trainee)
    assert_speaks_as(trainee, says(engine))
    assert servers[0].calls[-1]["model"] == servers[0].loaded[-1]


def test_a_server_that_returns_answers_after_it_was_verified_with_the_current_adapter(
    soon: None, servers: list[TinyVLLM], trainee: Trainee, tmp_path: Path
) -> None:
    told: list[str] = []
    engine = taken_up(make_engine(servers, trainee, tmp_path, tell=told.append), trainee)
    servers[1].kill()
    until(engine, lambda: bool(told))
    engine.clear_cache()
    trainee.learn()
    taken_up(engine, trainee)  # while it is away
    current = servers[0].loaded[-1]
    servers[1].calls.clear()
    servers[1].start()
    for reply in until(engine, lambda: bool(asked(servers[1]))):
        assert_speaks_as(trainee, reply)
    assert servers[1].loaded[-1] == current and len(servers[1].loaded) == 2
    checks = [call["model"] for call in servers[1].calls if call["seed"] == 1]
    assert checks == ["tiny", "tiny", current]  # its log-probs, those of what it samples, those with the adapter
    first = next(number for number, call in enumerate(servers[1].calls) if call["seed"] != 1)
    assert first == len(checks) and servers[1].calls[first]["model"] == current
    assert f"{servers[1].url} gets requests again; its log-probs are 0.000 nats from ours" in told[-1]


@pytest.mark.parametrize("fault", ["ignores adapters", pytest.param("raw", marks=pytest.mark.slow)])
def test_a_server_that_returns_with_other_weights_or_logprobs_answers_nothing(
    fault: str, soon: None, servers: list[TinyVLLM], trainee: Trainee, tmp_path: Path
) -> None:
    engine = taken_up(make_engine(servers, trainee, tmp_path), trainee)
    servers[1].kill()
    until(engine, lambda: engine.logged()["server_2_left_out"] == 1)
    servers[1].faults = {fault}
    servers[1].calls.clear()
    servers[1].start()
    tries = {"ignores adapters": 3, "raw": 2}[fault]  # requests of a try
    for reply in until(engine, lambda: len(servers[1].calls) > tries):  # the second try has begun
        assert_speaks_as(trainee, reply)
    assert not asked(servers[1])
    gap = engine.logged()["server_2_logprob_gap"]
    assert gap > 0.1 if fault == "ignores adapters" else gap < 1e-4


def test_a_server_with_old_weights_is_found_by_the_gap_and_left_out(
    servers: list[TinyVLLM], trainee: Trainee, tmp_path: Path
) -> None:
    told: list[str] = []
    engine = taken_up(make_engine(servers, trainee, tmp_path, tell=told.append), trainee)
    servers[1].faults = {"stuck"}
    trainee.learn()
    taken_up(engine, trainee)
    assert len(told) == 1 and f"loaded at {servers[1].url}, is not in effect" in told[0]
    logged = engine.logged()
    assert logged["server_1_logprob_gap"] < 1e-4 and logged["server_2_logprob_gap"] > 0.1
    played(engine, 3)
    assert len(asked(servers[0])) == 3 * TURNS and not asked(servers[1])
    servers[0].faults = {"no lora"}  # nobody is left
    with pytest.raises(RunStopped) as caught:
        taken_up(engine, trainee)
    assert "--enable-lora" in str(caught.value) and f"loaded at {servers[1].url}, is not" in str(caught.value)


def test_three_failures_in_a_row_leave_a_server_out(servers: list[TinyVLLM], trainee: Trainee, tmp_path: Path) -> None:
    engine = taken_up(make_engine(servers, trainee, tmp_path), trainee)
    servers[1].faults = {"broken"}
    before = len(servers[1].calls)
    assert len(played(engine, 4)) == 4
    assert engine.logged()["server_2_left_out"] == 1 and len(servers[1].calls) - before >= 3
    assert engine.logged()["server_1_requests"] == 4 * TURNS


def test_all_dead_stop_the_run_and_are_named(servers: list[TinyVLLM], trainee: Trainee, tmp_path: Path) -> None:
    engine = taken_up(make_engine(servers, trainee, tmp_path, give_up_after=0.3), trainee)
    for server in servers:
        server.kill()
    with pytest.raises(
        RunStopped, match="has failed every call for .* Resume the run when the server is back"
    ) as caught:
        says(engine)
    assert all(server.url in str(caught.value) for server in servers)


@pytest.mark.slow
def test_another_process_waits_until_the_first_has_loaded_the_adapter(
    soon: None, servers: list[TinyVLLM], trainee: Trainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []

    def send(value: object) -> object:
        sent.append(value)
        return value

    first = make_engine(servers, trainee, tmp_path)
    first.sync_weights(trainee.logprobs, send)
    monkeypatch.setattr(vllm, "rank", lambda: 1)
    other = make_engine(servers, trainee, tmp_path)
    other.sync_weights(trainee.logprobs, lambda value: sent.pop(0))
    servers[1].kill()
    until(first, lambda: first.logged()["server_2_left_out"] == 1)
    until(other, lambda: other.logged()["server_2_left_out"] == 1)
    servers[1].calls.clear()
    servers[1].start()
    until(other, lambda: sum(call["model"] != "tiny" for call in servers[1].calls) > 1)  # tried twice
    assert not asked(servers[1]) and not servers[1].adapters
    until(first, lambda: bool(servers[1].adapters))
    before = other.logged()["server_2_requests"]
    until(other, lambda: other.logged()["server_2_requests"] > before)
