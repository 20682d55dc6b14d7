"""The HTTP client against a real server on loopback that fails in every way it knows."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from fault_server import FAULTS, FaultServer

from collab.chat import http
from collab.chat.base import ChatFailed, Sampling
from collab.chat.cache import ReplyCache
from collab.chat.http import HttpChatModel, read_reply, seed_of, split_reasoning
from collab.chat.limits import Breaker, Failure, PerMinute
from collab.config.schema import EndpointConfig
from collab.conversation import Message, Reply
from collab.randomness import RngKey
from collab.util.errors import BadInput, RunStopped

SECRET = "sk-test-5d1f0a9c7e3b2468"
ASKED = (Message("system", "Be brief."), Message("user", "Hello there"))
SHORT = Sampling(8, temperature=0.5)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and a key."""
    monkeypatch.setattr(http, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("TEST_KEY", SECRET)


def endpoint(server: FaultServer | None = None, **changes: Any) -> EndpointConfig:
    values: dict[str, Any] = {"base_url": server.url if server else "http://127.0.0.1:9/v1", "model": "tiny"}
    return EndpointConfig(**(values | {"key_env": "TEST_KEY", "read_timeout": 0.5, "connect_timeout": 0.5} | changes))


def ask(model: HttpChatModel, *keys: RngKey, sampling: Sampling = SHORT) -> list[Any]:
    """A reply or an exception for each key, all asked at once, on a loop of their own."""

    async def all_of_them() -> list[Any]:
        calls = (model.complete(ASKED, sampling, key) for key in keys or (RngKey(1),))
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_of_them())


def first_calls(*behaviours: str) -> Any:
    return lambda number, call: behaviours[number] if number < len(behaviours) else "ok"


def test_a_request_says_every_sampling_field_and_the_reply_comes_back_with_its_counts():
    with FaultServer(say=lambda call: "  Hi, what can I do? ") as server:
        (reply,) = ask(HttpChatModel(endpoint(server, extra={"user": "me"})), RngKey(3, role="user"))
    assert reply.text == "Hi, what can I do?" and reply.finish_reason == "stop" and reply.reasoning == ""
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.num_tokens) == (4, 5, 5)
    assert server.calls == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}],
            "max_tokens": 8,
            "temperature": 0.5,
            "top_p": 1.0,
            "seed": seed_of(RngKey(3, role="user")),
            "user": "me",
        }
    ]


def test_fields_that_a_server_refuses_are_left_out_and_others_are_named_as_it_likes():
    changes = {"omit": ["seed", "temperature"], "length_field": "max_completion_tokens"}
    sampling = Sampling(8, top_k=5, stop=("END",), response_format="json")
    with FaultServer() as server:
        ask(HttpChatModel(endpoint(server, **changes)), sampling=sampling)
    fields = {name: value for name, value in server.calls[0].items() if name not in ("model", "messages")}
    assert fields == {
        "max_completion_tokens": 8,
        "top_p": 1.0,
        "top_k": 5,
        "stop": ["END"],
        "response_format": {"type": "json_object"},
    }


def test_the_seed_is_that_of_the_key_and_pairing_shares_it():
    one, other = RngKey(1, role="user", candidate=0), RngKey(1, role="user", candidate=1)
    assert seed_of(one) != seed_of(other) and seed_of(one.at(candidate=None)) == seed_of(other.at(candidate=None))
    assert 0 <= seed_of(one) < 2**31


def test_connections_are_kept_over_several_loops():
    with FaultServer() as server:
        model = HttpChatModel(endpoint(server))
        for _ in range(3):
            ask(model)
    assert (len(server.calls), server.connections) == (3, 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again_until_it_has_passed(fault: str):
    slow = fault in ("429 seconds", "429 date", "hang", "drip", "huge")
    faults = [fault] * (1 if slow else 2)
    with FaultServer(first_calls(*faults)) as server:
        model = HttpChatModel(endpoint(server))
        began = time.monotonic()
        (reply,) = ask(model)
        took = time.monotonic() - began
    assert reply.text == f"seed {seed_of(RngKey(1))}"
    assert server.behaved == [*faults, "ok"]
    if fault.startswith("429 "):  # a second, or up to two: dates have whole ones
        assert took >= 1
    assert took < 20  # "drip" would take 60 s for the whole reply, "hang" an hour


def test_a_completion_under_the_wrong_content_type_is_one():
    with FaultServer(first_calls("wrong type")) as server:
        (reply,) = ask(HttpChatModel(endpoint(server)))
    assert reply.text.startswith("seed") and server.behaved == ["wrong type"]


@pytest.mark.parametrize("status", ["401", "402", "403", "404", "429 insufficient_quota"])
def test_what_will_not_pass_stops_the_run_at_the_first_call(status: str):
    with FaultServer(lambda number, call: status) as server:
        (error,) = ask(HttpChatModel(endpoint(server)))
    assert isinstance(error, RunStopped) and f"HTTP {status[:3]}: refused Bearer [key]" in str(error)
    assert len(server.calls) == 1


def test_a_request_that_is_refused_fails_alone_and_its_message_is_told_once():
    told: list[str] = []
    with FaultServer(lambda number, call: "400") as server:
        errors = ask(HttpChatModel(endpoint(server), told.append), RngKey(1), RngKey(2))
    assert [type(error) for error in errors] == [ChatFailed, ChatFailed] and len(server.calls) == 2
    assert told == [f"{server.url} answers HTTP 400: refused Bearer [key]"]


def test_a_server_without_a_json_mode_is_asked_without_it_from_then_on(tmp_path):
    def plan(number: int, call: dict[str, Any]) -> str:
        return "400" if "response_format" in call else "ok"

    in_json = Sampling(8, response_format="json")
    with FaultServer(plan) as server:
        model = HttpChatModel(endpoint(server), cache=ReplyCache(tmp_path / "replies"))
        (first,) = ask(model, sampling=in_json)
        (second,) = ask(model, RngKey(2), sampling=in_json)
        assert [("response_format" in call) for call in server.calls] == [True, False, False]
        again = HttpChatModel(endpoint(server), cache=ReplyCache(tmp_path / "replies"))
        assert ask(again, RngKey(1), RngKey(2), sampling=in_json) == [first, second] and len(server.calls) == 3
    with FaultServer(lambda number, call: "400") as server:  # which refuses the request for another reason
        model = HttpChatModel(endpoint(server))
        ask(model, sampling=in_json)
        ask(model, RngKey(2), sampling=in_json)
        assert [("response_format" in call) for call in server.calls] == [True, False] * 2


def test_a_call_that_nobody_waits_for_any_more_is_counted_and_kept(tmp_path):
    cache = ReplyCache(tmp_path / "replies")
    with FaultServer(seconds=0.2) as server:
        model = HttpChatModel(endpoint(server), cache=cache)

        async def stopped() -> None:
            calls = [asyncio.create_task(model.complete(ASKED, SHORT, RngKey(number))) for number in range(5)]
            await asyncio.sleep(0.1)
            for call in calls:
                call.cancel()

        asyncio.run(stopped())
        asyncio.run(model.close())
        assert len(server.calls) == 5 and model.ledger.of("other").calls == 5
        again = HttpChatModel(endpoint(server), cache=cache)
        assert len(ask(again, *(RngKey(number) for number in range(5)))) == 5
        assert len(server.calls) == 5 and again.ledger.of("other").cached == 5


def test_a_call_fails_after_all_retries():
    with FaultServer(lambda number, call: "500") as server:
        (error,) = ask(HttpChatModel(endpoint(server, max_retries=3)))
    assert isinstance(error, ChatFailed) and "4 attempts" in str(error) and "HTTP 500" in str(error)
    assert len(server.calls) == 4


def test_no_server_is_a_failed_call():
    (error,) = ask(HttpChatModel(endpoint(max_retries=1)))
    assert isinstance(error, ChatFailed) and "ConnectError" in str(error)


def test_no_more_calls_are_in_flight_than_allowed():
    with FaultServer(seconds=0.05) as server:
        replies = ask(HttpChatModel(endpoint(server, max_concurrency=3)), *(RngKey(seed) for seed in range(12)))
    assert all(isinstance(reply, Reply) for reply in replies)
    assert server.most_in_flight == 3 and server.connections == 3


def test_the_waits_have_full_jitter_that_leaves_the_global_random_state_alone():
    import random

    random.seed(1)
    before = random.getstate()
    with FaultServer(first_calls("500", "500")) as server:
        ask(HttpChatModel(endpoint(server)))
    assert random.getstate() == before


# --- the key ---------------------------------------------------------------------------------------------------------


def test_the_key_is_in_no_text_that_a_model_or_an_exception_has(monkeypatch):
    echo = FaultServer(say=lambda call: f"Bearer {SECRET}")
    with echo as server:
        model = HttpChatModel(endpoint(server))
        (reply,) = ask(model)
        assert reply.text == "Bearer [key]"
        monkeypatch.setenv("TEST_KEY", "EMPTY")  # for show; as a word it stays
        assert ask(model)[0].text == f"Bearer {SECRET}"
    assert SECRET not in repr(model) + repr(vars(model)) + repr(vars(model._pools[0]))


@pytest.mark.parametrize("value", ["", "  ", "two\nlines", "schlüssel"])
def test_a_key_that_is_missing_or_cannot_be_sent_is_refused_by_the_name_of_its_variable(monkeypatch, value):
    monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(BadInput, match="environment variable TEST_KEY") as refusal:
        HttpChatModel(endpoint())
    assert not value.strip() or value not in str(refusal.value)


# --- what a server says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("Hello", "Hello", ""),
        ("<think>hm\nhm</think>\n\nHello", "Hello", "hm\nhm"),
        ("hm</think>Hello", "Hello", "hm"),  # the template had opened the tag
        ("<think>hm, hm", "", "hm, hm"),  # cut
        ("I <think> so", "I <think> so", ""),
    ],
)
def test_reasoning_is_split_off(content, text, reasoning):
    assert split_reasoning(content) == (text, reasoning)


@pytest.mark.parametrize(
    ("message", "usage", "counts"),
    [
        ('"content": "Hello"', '"completion_tokens": 9', (9, 0, 9)),
        ('"content": "<think>hm hm</think>Hello"', '"completion_tokens": 10', (10, 5, 5)),  # five characters each
        ('"content": "Hello", "reasoning_content": "hm hm"', '"completion_tokens": 10', (10, 5, 5)),
        (
            '"content": "Hello"',
            '"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 7}',
            (10, 7, 3),
        ),
        ('"content": "Hello"', "", (2, 0, 2)),  # not counted: four characters a token
    ],
)
def test_reasoning_is_counted_apart(message, usage, counts):
    reply = read_reply(f'{{"choices": [{{"message": {{{message}}}}}], "usage": {{{usage}}}}}'.encode(), [])
    assert reply.text == "Hello" and reply.usage is not None
    assert (reply.usage.completion_tokens, reply.usage.reasoning_tokens, reply.num_tokens) == counts


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_limit_holds_in_every_window_and_not_only_on_average():
    async def times() -> list[float]:
        window, found = PerMinute(3, seconds=0.2), []
        for _ in range(8):
            await window.take(1)
            found.append(time.monotonic())
        return found

    found = asyncio.run(times())
    assert all(later - earlier >= 0.2 for earlier, later in zip(found, found[3:], strict=False))
    assert found[2] - found[0] < 0.1 and found[-1] - found[0] < 1


def test_what_was_taken_for_tokens_that_were_not_used_is_given_back():
    async def scenario() -> float:
        window = PerMinute(100, seconds=5)
        (await window.take(90)).amount = 10
        began = time.monotonic()
        await window.take(90)
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 1


def test_a_call_that_is_larger_than_the_limit_goes_alone():
    async def scenario() -> None:
        window = PerMinute(10, seconds=0.05)
        for _ in range(3):
            assert (await window.take(50)).amount == 10

    asyncio.run(asyncio.wait_for(scenario(), 1))


def test_where_most_calls_fail_all_wait_and_one_at_a_time_tries():
    told: list[str] = []
    attempts = itertools.count()
    at_once = most_at_once = 0
    breaker = Breaker("here", 60, told.append, first_pause=0.01, longest_pause=0.02)

    async def attempt() -> int:
        nonlocal at_once, most_at_once
        number = next(attempts)
        tries = bool(told)
        at_once += tries
        if len(told) == 1:  # until it answers again
            most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0.005)
        at_once -= tries
        if number < 60:
            raise Failure("HTTP 500")
        return number

    async def call() -> int:
        while True:
            try:
                return await breaker.run(attempt)
            except Failure:
                pass

    async def all_calls() -> list[int]:
        return await asyncio.gather(*(call() for _ in range(40)))

    found = asyncio.run(all_calls())
    assert len(set(found)) == 40 and next(attempts) == 100  # 60 that failed, and then each once
    assert most_at_once == 1
    assert told[0].startswith("here: 16 of the last 16 attempts failed (HTTP 500)")
    assert told[1].startswith("here: answers again") and len(told) == 2


def test_the_breaker_gives_up():
    breaker = Breaker("here", 0.05, lambda text: None, first_pause=0.02)

    async def attempt() -> None:
        raise Failure("HTTP 500")

    async def call() -> None:
        while True:
            try:
                await breaker.run(attempt)
            except Failure:
                pass

    with pytest.raises(RunStopped, match="here has done nothing but fail"):
        asyncio.run(asyncio.wait_for(call(), 5))
