"""The HTTP client against a real server on loopback that fails in every way it knows."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from typing import Any

import pytest
from fault_server import FAULTS, FaultServer

from collab.chat import retries
from collab.chat.base import ChatFailed, Sampling
from collab.chat.cache import ReplyCache
from collab.chat.completions import read_reply, seed_of
from collab.chat.http import HttpChatModel
from collab.chat.limits import TokenLimit
from collab.chat.probe import served_model
from collab.chat.structured import schema_of
from collab.chat.thoughts import split_thought
from collab.config.schema import EndpointConfig
from collab.conversation import Message, Reply
from collab.randomness import RngKey
from collab.util.errors import BadInput, RunStopped

SECRET = "sk-test-5d1f0a9c7e3b2468"
ASKED = (Message("system", "Be brief."), Message("user", "Hello there"))
SHORT = Sampling(8, temperature=0.5)
SCHEMA = schema_of(note={"type": "string", "maxLength": 40})
FORM = json.loads(schema_of(note={"type": "string"}))  # without the length, which OpenAI refuses


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and a key."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.05)
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


def test_fields_that_a_server_refuses_are_left_out_and_others_are_added():
    changes = {
        "omit": ["seed", "temperature"],
        "extra": {"reasoning_effort": "none"},
        "limit_field": "max_completion_tokens",
    }
    sampling = Sampling(8, top_k=5, stop=("END",), schema=SCHEMA)
    with FaultServer() as server:
        ask(HttpChatModel(endpoint(server, **changes)), sampling=sampling)
    fields = {name: value for name, value in server.calls[0].items() if name not in ("model", "messages")}
    assert fields == {
        "max_completion_tokens": 8,
        "reasoning_effort": "none",
        "top_p": 1.0,
        "top_k": 5,
        "stop": ["END"],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": FORM}},
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
    slow = fault in ("429 seconds", "429 date", "hang", "drip")
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


def forms(call: dict[str, Any]) -> list[str]:
    return [call["response_format"]["type"]] if "response_format" in call else []


@pytest.mark.parametrize("refused", ["json_schema", "response_format"])
def test_a_server_that_refuses_a_schema_is_asked_for_less_from_then_on(tmp_path, refused: str):
    def plan(number: int, call: dict[str, Any]) -> str:
        return "400" if refused in json.dumps(call) else "ok"

    tries = [["json_schema"], ["json_object"], []][: 2 if refused == "json_schema" else 3]
    in_json = Sampling(8, schema=SCHEMA)
    with FaultServer(plan) as server:
        model = HttpChatModel(endpoint(server), cache=ReplyCache(tmp_path / "replies"))
        (first,) = ask(model, sampling=in_json)
        (second,) = ask(model, RngKey(2), sampling=in_json)
        assert list(map(forms, server.calls)) == [*tries, tries[-1]]
        again = HttpChatModel(endpoint(server), cache=ReplyCache(tmp_path / "replies"))
        calls = len(server.calls)
        assert ask(again, RngKey(1), RngKey(2), sampling=in_json) == [first, second] and len(server.calls) == calls
        ask(model, RngKey(3))
        assert forms(server.calls[-1]) == []


def test_a_request_that_is_refused_for_another_reason_says_nothing_about_schemas():
    with FaultServer(lambda number, call: "400") as server:
        model = HttpChatModel(endpoint(server))
        ask(model, sampling=Sampling(8, schema=SCHEMA))
        ask(model, RngKey(2), sampling=Sampling(8, schema=SCHEMA))
        assert list(map(forms, server.calls)) == [["json_schema"], ["json_object"], []] * 2


def test_a_schema_may_be_asked_for_as_the_arguments_of_a_tool():
    def say(call: dict[str, Any]) -> dict[str, Any]:
        arguments = json.dumps({"note": f"seed {call['seed']}"})
        message = {"content": None, "tool_calls": [{"type": "function", "function": {"arguments": arguments}}]}
        usage = {"prompt_tokens": 20, "completion_tokens": 9}
        return {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}

    with FaultServer(say=say) as server:
        (reply,) = ask(HttpChatModel(endpoint(server, schema_as="tool")), sampling=Sampling(8, schema=SCHEMA))
    (call,) = server.calls
    (tool,) = call["tools"]
    assert tool["function"]["parameters"] == FORM and "response_format" not in call
    assert call["tool_choice"] == {"type": "function", "function": {"name": tool["function"]["name"]}}
    assert json.loads(reply.text) == {"note": f"seed {seed_of(RngKey(1))}"}


def test_a_call_that_nobody_waits_for_any_more_is_counted_and_kept(tmp_path):
    cache = ReplyCache(tmp_path / "replies")
    with FaultServer(seconds=0.2) as server:
        model = HttpChatModel(endpoint(server), cache=cache)

        async def stopped() -> None:
            calls = [asyncio.create_task(model.complete(ASKED, SHORT, RngKey(number))) for number in range(5)]
            while len(server.calls) < 5:
                await asyncio.sleep(0.005)
            for call in calls:
                call.cancel()

        asyncio.run(stopped())
        asyncio.run(model.close())
        assert len(server.calls) == 5 and model.ledger.of("other").calls == 5
        again = HttpChatModel(endpoint(server), cache=cache)
        assert len(ask(again, *(RngKey(number) for number in range(5)))) == 5
        assert len(server.calls) == 5 and again.ledger.of("other").cached == 5


def test_a_failure_that_nobody_waits_for_is_not_logged(caplog):
    with FaultServer(lambda number, call: "401", seconds=0.2) as server:
        model = HttpChatModel(endpoint(server))

        async def stopped() -> None:
            call = asyncio.create_task(model.complete(ASKED, SHORT, RngKey(1)))
            while not server.calls:
                await asyncio.sleep(0.005)
            call.cancel()

        asyncio.run(stopped())
        asyncio.run(model.close())
        assert len(server.calls) == 1
    time.sleep(0.1)
    gc.collect()
    assert not caplog.records


def test_a_call_fails_after_all_retries():
    with FaultServer(lambda number, call: "500") as server:
        (error,) = ask(HttpChatModel(endpoint(server, max_retries=3)))
    assert isinstance(error, ChatFailed) and "4 attempts" in str(error) and "HTTP 500" in str(error)
    assert len(server.calls) == 4


def test_a_server_that_is_down_stops_the_run_in_bounded_time_however_many_calls_wait_for_it():
    began = time.monotonic()
    errors = ask(HttpChatModel(endpoint(max_retries=0, give_up_after=0.5)), *(RngKey(seed) for seed in range(100)))
    assert time.monotonic() - began < 10  # one after the other they would take 50 s
    assert {type(error) for error in errors} == {RunStopped}
    assert "has failed every call for" in str(errors[0]) and "(ConnectError); give_up_after is 0.5" in str(errors[0])


@pytest.mark.parametrize("fault", ["429", "502", "503"])
def test_a_server_that_is_away_for_longer_than_all_retries_is_waited_for(fault: str):
    """A restart fails every call, and says nothing about any of them."""
    told: list[str] = []
    with FaultServer(lambda number, call: fault if number < 20 else "ok") as server:
        model = HttpChatModel(endpoint(server, max_retries=2), told.append)
        assert all(isinstance(reply, Reply) for reply in ask(model, RngKey(1), RngKey(2)))
    assert not told  # it was back soon


def test_a_long_silence_is_told_once_and_before_the_run_stops(monkeypatch):
    monkeypatch.setattr(retries, "QUIET", 0.1)
    told: list[str] = []
    with FaultServer(lambda number, call: "503") as server:
        errors = ask(HttpChatModel(endpoint(server, give_up_after=0.4), told.append), RngKey(1), RngKey(2))
    assert [type(error) for error in errors] == [RunStopped] * 2
    (line,) = told
    assert line.startswith(f"{server.url} has failed every call for 0 s (HTTP 503: refused Bearer [key])")


def test_a_call_that_fails_while_others_are_answered_is_lost_alone():
    refused = seed_of(RngKey(1))
    with FaultServer(lambda number, call: "429" if call["seed"] == refused else "ok", seconds=0.02) as server:
        model = HttpChatModel(endpoint(server, give_up_after=0.4, max_concurrency=2))
        found = ask(model, *(RngKey(seed) for seed in range(1, 41)))
    assert isinstance(found[0], ChatFailed) and all(isinstance(reply, Reply) for reply in found[1:])


def test_no_more_calls_are_in_flight_than_allowed():
    with FaultServer(seconds=0.05) as server:
        replies = ask(HttpChatModel(endpoint(server, max_concurrency=3)), *(RngKey(seed) for seed in range(12)))
    assert all(isinstance(reply, Reply) for reply in replies)
    assert server.most_in_flight == 3 and server.connections == 3


def test_the_waits_have_jitter_that_leaves_the_global_random_state_alone():
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
    parts = [repr(vars(part)) for part in vars(model).values() if hasattr(part, "__dict__")]
    assert SECRET not in repr(model) + repr(vars(model)) + "".join(parts)


@pytest.mark.parametrize("value", ["", "  ", "two\nlines", "schlüssel"])
def test_a_key_that_is_missing_or_cannot_be_sent_is_refused_by_the_name_of_its_variable(monkeypatch, value):
    monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(BadInput, match="environment variable TEST_KEY") as refusal:
        HttpChatModel(endpoint())
    assert not value.strip() or value not in str(refusal.value)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


PROXY_OF = {
    "ALL_PROXY": "http",
    "all_proxy": "https",
    "HTTP_PROXY": "http",
    "http_proxy": "http",
    "HTTPS_PROXY": "https",
}


@pytest.mark.parametrize("address", ["socks5://me:password@127.0.0.1:9", "ftp://me:password@a", "http://password:x"])
@pytest.mark.parametrize("name", PROXY_OF)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(monkeypatch, no_proxies, name, address):
    monkeypatch.setenv(name, address)
    with pytest.raises(BadInput, match=rf"{name} \({address[:3]}\w*://...\) .* add 127.0.0.1 to NO_PROXY") as refusal:
        HttpChatModel(endpoint(base_url=f"{PROXY_OF[name]}://127.0.0.1:9/v1"))
    assert "password" not in str(refusal.value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FaultServer() as server:
        assert isinstance(ask(HttpChatModel(endpoint(server)))[0], Reply)


@pytest.mark.parametrize("exempt", ["127.0.0.1", "127.0.0.1:{port}", "*", "fe80::/10,[::1,127.0.0.1"])
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_a_server_that_no_proxy_names_is_asked_without_the_proxy(monkeypatch, no_proxies, name, exempt):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with FaultServer() as server:
        monkeypatch.setenv(name, exempt.format(port=server.port))
        assert isinstance(ask(HttpChatModel(endpoint(server)))[0], Reply)
        assert served_model(endpoint(server)) == "tiny"


def test_entries_of_no_proxy_do_not_matter_without_a_proxy(monkeypatch, no_proxies):
    monkeypatch.setenv("NO_PROXY", "fe80::/10,[::1,:x")
    with FaultServer() as server:
        assert isinstance(ask(HttpChatModel(endpoint(server)))[0], Reply)


def test_a_proxy_is_used_and_one_that_does_not_answer_is_named(monkeypatch, no_proxies):
    with FaultServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1").removeprefix("http://"))  # without a scheme
        assert isinstance(ask(HttpChatModel(endpoint(base_url="http://model.invalid/v1")))[0], Reply)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"model.invalid/v1/models \(\w+, through the proxy in http_proxy\)"):
        served_model(endpoint(base_url="http://model.invalid/v1"))


@pytest.mark.parametrize(
    ("name", "why"), [("SSL_CERT_FILE", "No such file or directory"), ("SSL_CERT_DIR", "no such folder")]
)
def test_certificates_that_cannot_be_read_are_named(monkeypatch, name, why):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(name, "/nonexistent")
    with pytest.raises(BadInput, match=rf"{name} \(/nonexistent\) .* {why}"):
        HttpChatModel(endpoint())


def test_a_file_without_certificates_is_named(monkeypatch, tmp_path):
    (tmp_path / "empty.pem").write_text("nothing")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with pytest.raises(BadInput, match=r"SSL_CERT_FILE \(.*empty.pem\) must name certificates"):
        HttpChatModel(endpoint())


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
    assert split_thought(content) == (text, reasoning)


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


def test_a_reply_in_parts_is_their_text():
    parts = '[{"type": "text", "text": "Hel"}, {"type": "image", "url": "x"}, {"type": "text", "text": "lo"}]'
    assert read_reply(f'{{"choices": [{{"message": {{"content": {parts}}}}}]}}'.encode(), []).text == "Hello"


def test_impossible_counts_are_replaced_by_guesses_and_a_person_hears_of_it_once():
    told: list[str] = []
    with FaultServer(usage={"prompt_tokens": -500, "completion_tokens": -1}) as server:
        model = HttpChatModel(endpoint(server), told.append)
        replies = ask(model, RngKey(1), RngKey(2))
    assert all(reply.usage.prompt_tokens == 14 and reply.usage.completion_tokens > 0 for reply in replies)
    assert model.ledger.total_tokens > 28
    (line,) = told
    assert line.startswith(f"{server.url} does not say how many tokens a call used") and "guessed" in line


def test_a_reply_that_a_content_filter_took_away_is_a_failed_call_that_is_paid_for():
    with FaultServer(lambda number, call: "filtered") as server:
        model = HttpChatModel(endpoint(server))
        (error,) = ask(model, RngKey(1, role="judge"))
    assert isinstance(error, ChatFailed) and "content filter" in str(error) and len(server.calls) == 1
    spend = model.ledger.of("judge")
    assert (spend.calls, spend.failed, spend.filtered, spend.prompt_tokens) == (1, 1, 1, 4)
    assert "1 failed, 1 of them by a content filter" in model.ledger.table()[0]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_limit_of_calls_holds_in_every_window_and_not_only_on_average():
    times: list[float] = []

    def plan(number: int, call: dict[str, Any]) -> str:
        times.append(time.monotonic())
        return "ok"

    with FaultServer(plan) as server:
        began = time.monotonic()
        ask(HttpChatModel(endpoint(server, requests_per_minute=1200)), *(RngKey(seed) for seed in range(20)))
    assert 0.05 * 19 - 0.02 <= times[-1] - began < 10
    # 10 in half a second, and what a busy machine hears late; a burst would be all 20.
    assert max(sum(start <= at < start + 0.5 for at in times) for start in times) <= 14


def test_a_limit_of_tokens_holds_in_every_window_and_large_calls_do_not_starve():
    async def taken() -> list[tuple[float, int]]:
        limit, found = TokenLimit(1000, seconds=0.5), []

        async def call(tokens: int) -> None:
            await limit.take(tokens)
            found.append((time.monotonic(), tokens))

        await asyncio.gather(*(call(tokens) for tokens in (100, 900, *[100] * 10, 2500)))
        return found

    found = asyncio.run(taken())
    assert [tokens for _, tokens in found] == [100, 900, *[100] * 10, 2500]  # in the order in which they came
    began = found[0][0]
    # The limit, and what a busy machine notes late; a burst on top of the rate would make 2000.
    assert all(sum(n for at, n in found if start < at <= start + 0.5) <= 1300 for start, _ in found[1:-1])
    assert 4500 / 1000 * 0.5 - 0.1 < found[-1][0] - began + 100 / 1000 * 0.5 < 10
