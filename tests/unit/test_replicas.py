"""Which server of several gets a request, and lists of servers that are refused."""

from __future__ import annotations

import pytest
from composing import load_config

from collab.chat.retries import Failure
from collab.config.checks import check
from collab.config.endpoints import engine_endpoints
from collab.config.schema import VLLMEngineConfig
from collab.generation.replicas import Replica, Replicas
from collab.randomness import RngKey
from collab.util.errors import BadInput

URLS = ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1", "http://127.0.0.1:3/v1"]


def make(told: list[str]) -> Replicas:
    def verify(replica: Replica, adapter: str) -> float:
        raise AssertionError("nothing is tried here")

    return Replicas(engine_endpoints(VLLMEngineConfig(base_url=URLS)), verify, told.append)


def test_a_conversation_keeps_its_server_and_a_new_one_goes_where_least_is_under_way() -> None:
    servers = make([])
    with pytest.raises(Failure, match="no server is verified yet"):
        servers.pick(RngKey(1))
    servers.begin("new")
    for replica, adapter in zip(servers.all, ("new", "new", "old"), strict=True):
        servers.take_up(replica, adapter, 0.0)
    first, second, stale = servers.all
    first.under_way = 2
    assert servers.pick(RngKey(1)) is second
    second.under_way = 5
    assert servers.pick(RngKey(1)) is second and servers.pick(RngKey(2)) is first
    servers.leave_out(second, "ConnectError")
    assert servers.pick(RngKey(1)) is first
    servers.take_up(second, "new", 0.0)
    second.under_way = 0
    assert servers.pick(RngKey(1)) is first  # its prefix is there now
    servers.drop()
    assert servers.pick(RngKey(1)) is second
    servers.take_up(stale, "old", 0.0)  # a check that ended late
    assert stale not in servers.ready()
    servers.begin("newer")
    assert servers.ready() == []


def test_what_is_told_and_logged() -> None:
    told: list[str] = []
    servers = make(told)
    servers.begin("")
    for replica, tokens in zip(servers.all, (30, 10, 0), strict=True):
        servers.take_up(replica, "", 0.01)
        replica.requests, replica.tokens = tokens // 10, tokens
    servers.leave_out(servers.all[2], "HTTP 500")
    servers.leave_out(servers.all[2], "ConnectError")  # still
    assert told == [f"engine=vllm: {URLS[2]} gets no requests: HTTP 500. It is tried again every 5 s."]
    assert servers.problems() == f"{URLS[2]}: ConnectError"
    assert servers.logged() == {
        **{"server_1_requests": 3, "server_2_requests": 1, "server_3_requests": 0},
        **{"server_1_share": 0.75, "server_2_share": 0.25, "server_3_share": 0},
        **{"server_1_logprob_gap": 0.01, "server_2_logprob_gap": 0.01, "server_3_logprob_gap": 0.01},
        **{"server_1_left_out": 0, "server_2_left_out": 0, "server_3_left_out": 1},
    }
    servers.take_up(servers.all[2], "", 0.02)
    assert told[1:] == [f"engine=vllm: {URLS[2]} gets requests again; its log-probs are 0.020 nats from ours."]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("[]", "engine.base_url is an empty list"),
        ("[http://a:1/v1,http://b:1/v1,http://a:1/v1/]", "engine.base_url: number 3 of 3 is there already"),
        ("[http://a:1/v1,localhost]", "engine: the base_url (localhost) must be the address of a server"),
        ("[http://a:1/v1,http://me:secret@b/v1]", "engine: the base_url has a user, a password"),
        ("[http://a:1/v1,8000]", "engine.base_url: number 2 of 2 is not the address of one server"),
        ("'http://me:secret@a/v1,http://b/v1'", "engine.base_url: number 1 of 1 is not the address of one server"),
        ("null", "engine.base_url: number 1 of 1 is not the address"),
    ],
)
def test_lists_of_servers_that_are_refused(given: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(load_config("train", ["engine=vllm", f"engine.base_url={given}"]), "train")
    assert words in str(caught.value) and "secret" not in str(caught.value)


def test_one_server_or_several_are_taken() -> None:
    for given, expected in (("http://a:1/v1", ["http://a:1/v1"]), ("[http://a:1/v1,http://b:1/v1]", None)):
        config = load_config("train", ["engine=vllm", f"engine.base_url={given}"])
        check(config, "train")
        assert [e.base_url for e in engine_endpoints(config.engine)] == (expected or ["http://a:1/v1", "http://b:1/v1"])
