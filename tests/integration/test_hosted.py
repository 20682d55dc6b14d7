"""Around the HTTP client: replies on disk, budget, probes, and the estimate of a run."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from composing import load_config
from fault_server import FaultServer
from test_http import SECRET, ask, endpoint, quickly  # noqa: F401  the last is a fixture

from collab.app.estimate import Calls, check_budget, describe, estimate
from collab.chat.budget import BudgetExhausted, Ledger
from collab.chat.cache import ReplyCache
from collab.chat.endpoints import Endpoints
from collab.chat.http import HttpChatModel
from collab.chat.probe import served_model
from collab.config.checks import check
from collab.config.endpoints import hosted
from collab.config.policies import HostedPolicy, named_policies, policy_problems
from collab.config.schema import BudgetConfig, Config, LLMUserConfig
from collab.conversation import Goal, Reply, Usage
from collab.datamodules.goals import GoalSplits
from collab.randomness import RngKey
from collab.util.errors import BadInput

REPLY = Reply("Hi “you”", finish_reason="length", usage=Usage(10, 5, 2), reasoning="hm")


@functools.cache
def composed(entry: str) -> Config:
    return load_config(entry)


def config_of(entry: str = "train", **changes: Any) -> Config:
    """The default config, with values at dotted names, the dots written as two underscores."""
    config = copy.deepcopy(composed(entry))
    for key, value in changes.items():
        *parents, name = key.split("__")
        node: Any = config
        for parent in parents:
            node = getattr(node, parent)
        setattr(node, name, value)
    return config


# --- the cache -------------------------------------------------------------------------------------------------------


def model(server: FaultServer, path: Path, write: bool = True, **changes: Any) -> HttpChatModel:
    return HttpChatModel(endpoint(server, **changes), cache=ReplyCache(path, write))


def test_a_second_run_makes_no_call_and_hears_the_same(tmp_path):
    path = tmp_path / "folder" / "replies.sqlite"
    keys = [RngKey(1, sample=sample) for sample in range(3)]
    with FaultServer() as server:
        first = ask(model(server, path), *keys)
        again = model(server, path)
        assert ask(again, *keys) == first and len(server.calls) == 3
        assert len({reply.text for reply in first}) == 3  # samples of one prompt stay different
        assert again.ledger.of("other").cached == 3 and again.ledger.total_tokens == 0


def test_another_sample_model_or_sampling_is_another_request(tmp_path):
    path = tmp_path / "replies.sqlite"
    with FaultServer() as server:
        ask(model(server, path))
        ask(model(server, path), RngKey(1, sample=1))
        ask(model(server, path, model="unlisted"))
        ask(model(server, path, extra={"user": "me"}))
        ask(model(server, path, omit=["seed"]))  # nothing that is sent differs between samples, and their keys do
        ask(model(server, path, omit=["seed"]), RngKey(2))
        assert len(server.calls) == 6
        ask(model(server, path, max_retries=1, read_timeout=0.4, max_concurrency=3))  # how, not what
        assert len(server.calls) == 6


def test_what_is_only_read_is_never_written(tmp_path):
    path = tmp_path / "replies.sqlite"
    with FaultServer() as server:
        ask(model(server, path, write=False))
        assert not path.exists()
        ask(model(server, path))
        ask(model(server, path, write=False))
        ask(model(server, path, write=False), RngKey(2))
        ask(model(server, path, write=False), RngKey(2))
    assert len(server.calls) == 4


def test_a_failed_call_is_not_kept(tmp_path):
    with FaultServer(lambda number, call: "400" if number == 0 else "ok") as server:
        ask(model(server, tmp_path / "replies.sqlite"))
        (reply,) = ask(model(server, tmp_path / "replies.sqlite"))
    assert isinstance(reply, Reply)


def test_all_of_a_reply_comes_back(tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    cache.put("a", REPLY)
    cache.put("a", replace(REPLY, text="later"))
    assert cache.get("a") == REPLY and cache.get("b") is None


def test_several_processes_write_at_a_time(tmp_path):
    program = (
        "import sys; from pathlib import Path; from collab.chat.cache import ReplyCache; "
        "from collab.conversation import Reply, Usage; cache = ReplyCache(Path(sys.argv[1])); "
        "[cache.put(f'{i % 50}', Reply(f'{i % 50}', usage=Usage(1, 1))) for i in range(200)]"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "replies.sqlite")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(240) for process in processes] == [0, 0, 0]
    cache = ReplyCache(tmp_path / "replies.sqlite", write=False)
    found = [cache.get(f"{i}") for i in range(50)]
    assert [reply.text for reply in found if reply] == [f"{i}" for i in range(50)]


def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text(
        "These are my notes, and long enough to be taken for a table of some kind. " * 9
    )
    with pytest.raises(BadInput, match="cache_file=.*notes.txt cannot be used"):
        ReplyCache(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith("These are my notes")


def test_a_full_disk_is_told_once_and_ends_only_the_keeping(tmp_path, monkeypatch):
    class Full(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql.startswith("INSERT"):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *args)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Full))
    told_of: list[str] = []
    cache = ReplyCache(tmp_path / "replies.sqlite", tell=told_of.append)
    cache.put("a", REPLY)
    cache.put("b", REPLY)
    assert told_of == [f"{cache.path}: database or disk is full. Replies are no longer stored."]


# --- the budget ------------------------------------------------------------------------------------------------------


def test_spend_is_counted_by_role_and_priced(tmp_path):
    prices = {"tiny": [1e6, 1e5]}  # a dollar for each token of a prompt
    ledger = Ledger(BudgetConfig(prices=prices), tmp_path / "spend.json")
    with FaultServer(lambda number, call: "500" if number == 0 else "ok") as server:
        speaker = HttpChatModel(endpoint(server), ledger=ledger)
        ask(speaker, RngKey(1, role="user"))
        ask(speaker, RngKey(1, role="user"), RngKey(1, role="judge/again"))
    user, judge = ledger.spent["user"], ledger.spent["judge"]
    assert (user.calls, user.retries, user.prompt_tokens, user.completion_tokens) == (2, 1, 8, 4)
    assert user.usd == pytest.approx(8.4) and judge.usd == pytest.approx(4.2) and judge.calls == 1
    assert ledger.shown() == {"hosted": "18 tokens, 12.60 $"}
    assert ledger.metrics(["user"])["user_usd"] == user.usd and ledger.metrics(["user"])["usd"] == ledger.total_usd
    ledger.write()
    assert Ledger(BudgetConfig(), tmp_path / "spend.json").spent == ledger.spent  # goes on where it was


@pytest.mark.parametrize("budget", [{"max_tokens": 100}, {"max_usd": 100.0, "prices": {"tiny": [1e6, 1e6]}}])
def test_the_budget_is_never_exceeded_and_ends_in_a_clean_stop(budget):
    ledger = Ledger(BudgetConfig(**budget))
    with FaultServer(say=lambda call: "word " * 8, seconds=0.02) as server:  # 12 tokens a call, 21 at most
        found = ask(HttpChatModel(endpoint(server), ledger=ledger), *(RngKey(seed) for seed in range(20)))
    replies = [reply for reply in found if isinstance(reply, Reply)]
    stops = [error for error in found if isinstance(error, BudgetExhausted)]
    assert len(replies) + len(stops) == 20 and len(server.calls) == len(replies)  # none was paid for and lost
    assert ledger.total_tokens == 12 * len(replies) <= 100
    assert len(replies) == 7  # 84 tokens; an eighth call could have taken 105
    assert "Raise the budget and resume: answered calls are not repeated." in str(stops[0])


def test_the_budget_is_dealt_out_to_processes():
    ledger = Ledger(BudgetConfig(max_tokens=100), share=4)
    with FaultServer(say=lambda call: "word " * 8) as server:
        found = ask(HttpChatModel(endpoint(server), ledger=ledger), RngKey(1), RngKey(2))
    assert [type(one) for one in found] == [Reply, BudgetExhausted]


def test_what_other_processes_spent_earlier_counts(tmp_path):
    """A run of two processes that goes on as one, and as four."""
    for name, tokens in (("spend", 400), ("spend-rank1", 500)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"user": {"prompt_tokens": tokens, "calls": 1}}))

    def left(path: Path, share: int) -> int:
        others = [file for file in tmp_path.glob("spend*.json") if file != path]
        ledger, found = Ledger(BudgetConfig(max_tokens=1000), path, share, others), 0

        async def has_room() -> bool:
            try:
                async with ledger.room_for("tiny", Usage(found + 1, 0)):
                    return True
            except BudgetExhausted:
                return False

        while asyncio.run(has_room()):
            found += 1
        return found

    assert left(tmp_path / "spend.json", 1) == 100
    assert [left(tmp_path / name, 4) for name in ("spend.json", "spend-rank1.json", "spend-rank3.json")] == [25] * 3


def test_a_ledger_that_is_none_is_refused(tmp_path):
    (tmp_path / "spend.json").write_text("[1]")
    with pytest.raises(BadInput, match="does not say what was spent earlier"):
        Ledger(BudgetConfig(), tmp_path / "spend.json")


# --- endpoints -------------------------------------------------------------------------------------------------------


def test_equal_endpoints_share_connections_limits_cache_and_ledger(tmp_path):
    config = replace(config_of(), cache_file=str(tmp_path / "replies.sqlite"), output_dir=str(tmp_path))
    with FaultServer() as server, Endpoints(config, processes=4) as endpoints:
        one = endpoints.model(endpoint(server, model=None, max_concurrency=8, requests_per_minute=2))
        assert endpoints.model(endpoint(server, model=None, max_concurrency=8, requests_per_minute=2)) is one
        assert endpoints.model(endpoint(server)) is not one
        assert one.endpoint.model == "tiny"  # the only one that the server has
        assert one.endpoint.max_concurrency == 2 and one.endpoint.requests_per_minute == 1
        ask(one, RngKey(1, role="user"))
    assert json.loads((tmp_path / "spend.json").read_text())["user"]["calls"] == 1


def test_a_run_without_servers_writes_nothing(tmp_path):
    config = replace(config_of(), cache_file=str(tmp_path / "replies.sqlite"), output_dir=str(tmp_path))
    with Endpoints(config):
        pass
    assert not list(tmp_path.iterdir())


# --- probes ----------------------------------------------------------------------------------------------------------


def test_a_probe_finds_the_model():
    with FaultServer(models=("tiny", "large")) as server:
        assert served_model(endpoint(server)) == "tiny"
        assert not server.calls
        assert served_model(endpoint(server, model="unlisted")) == "unlisted" and len(server.calls) == 1
        with pytest.raises(BadInput, match=r"no model tine\. Did you mean tiny\? It has: tiny, large"):
            served_model(endpoint(server, model="tine"))
        with pytest.raises(BadInput, match=r"has 2 models \(tiny, large\), and none is named\. Set model"):
            served_model(endpoint(server, model=None))
        with pytest.raises(BadInput, match=r"Set base_url to http://127.0.0.1:\d+/v1"):
            served_model(endpoint(server, base_url=server.url.removesuffix("/v1")))


@pytest.mark.parametrize(
    "body", ["[" * 10**5, "[]", '{"data": 5}', '{"data": [5]}', '{"data": {"id": 1}}', "\x00", "{}"]
)
def test_a_list_of_models_that_is_none_is_no_error(body: str, monkeypatch):
    monkeypatch.setattr(httpx, "request", lambda *args, **options: httpx.Response(200, content=body.encode()))
    assert served_model(endpoint()) == "tiny"
    with pytest.raises(BadInput, match="does not list its models"):
        served_model(endpoint(model=None))


def test_a_name_that_cannot_be_printed_does_not_hide_the_others():
    with FaultServer(models=("half \ud83d", "tiny")) as server, pytest.raises(BadInput, match="models") as refusal:
        served_model(endpoint(server, model=None))
    assert b"tiny" in str(refusal.value).encode()


def test_a_probe_of_nothing_says_what_to_do():
    with pytest.raises(BadInput, match=r"Nothing answers at http://127.0.0.1:9/v1/models \(ConnectError\)") as refusal:
        served_model(endpoint())
    assert refusal.value.__context__ is None


def test_a_key_that_is_refused_is_named_by_its_variable(monkeypatch):
    with FaultServer(lambda number, call: "401", refuse_models=True) as server:
        with pytest.raises(BadInput, match=r"HTTP 401: refused Bearer \[key\]\)\. Check the .*variable TEST_KEY"):
            served_model(endpoint(server))
        with pytest.raises(BadInput, match=r"wants a key .* Name the environment variable"):
            served_model(endpoint(server, key_env=None))
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(BadInput, match="environment variable TEST_KEY is not set"):
        served_model(endpoint())


def test_a_server_that_lists_its_models_for_others_alone_is_asked_for_a_word():
    with FaultServer(refuse_models=True) as server:
        assert served_model(endpoint(server, extra={"user": "me"}, omit=["max_tokens"])) == "tiny"
    assert server.calls == [{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "user": "me"}]


# --- config ----------------------------------------------------------------------------------------------------------


def with_user(config: Config, **changes: Any) -> Config:
    config.user = LLMUserConfig(endpoint=endpoint(**changes), max_new_tokens=200)
    return config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_concurrency": -1}, r"user.endpoint.max_concurrency \(-1\) must be at least 1"),
        ({"requests_per_minute": -60}, r"requests_per_minute \(-60\) must be at least 1"),
        ({"tokens_per_minute": 0}, r"tokens_per_minute \(0\) must be at least 1"),
        ({"max_retries": -1}, r"max_retries \(-1\) must be at least 0"),
        ({"read_timeout": 0.0}, r"read_timeout \(0.0\) must be above 0"),
        ({"base_url": "localhost:8000"}, r"base_url \(localhost:8000\) must be the address of a server"),
        ({"base_url": ""}, r"Set user.endpoint.base_url to what comes before"),
        ({"base_url": f"https://me:{SECRET}@host/v1"}, "a key comes from the environment variable that user.endpoint"),
        ({"base_url": f"https://host/v1?key={SECRET}"}, "a key comes from the environment variable"),
        ({"key_env": SECRET}, "user.endpoint.key_env must be the NAME of an environment variable"),
        ({"key_env": SECRET.replace("-", "_")}, "user.endpoint.key_env must be the NAME of an environment variable"),
    ],
)
def test_a_broken_rule_of_an_endpoint_is_told_without_a_key(changes, said):
    with pytest.raises(BadInput, match=said) as refusal:
        check(with_user(config_of(), **changes))
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget__max_usd": -1.0}, r"budget.max_usd \(-1.0\) must be above 0"),
        ({"budget__max_tokens": 0}, r"budget.max_tokens \(0\) must be above 0"),
        (
            {"budget__max_usd": 1.0},
            r"has no price for tiny. Add it .* '\+budget.prices=\{tiny:\[0.15,0.6\]\}'",
        ),
        ({"budget__prices": {"tiny": [1]}}, r"budget.prices.tiny \(\[1\]\) must be two numbers"),
        ({"budget__prices": {"tiny": "free"}}, r"budget.prices.tiny \(free\) must be two numbers"),
        ({"cache": "on"}, r"cache \(on\) must be one of readwrite, read, off"),
    ],
)
def test_a_broken_rule_of_the_budget_is_told(changes, said):
    with pytest.raises(BadInput, match=said):
        check(with_user(config_of(**changes)))


def test_prices_are_added_to_those_that_are_there():
    config = with_user(load_config("train", ["budget.max_usd=1", "+budget.prices={tiny:[0,0]}"]))
    check(config)
    assert config.budget.prices["tiny"] == [0, 0] and "gpt-4o-mini" in config.budget.prices


def test_a_server_is_a_row_of_an_evaluation():
    rows = "policies=[base,gpt-4o-mini@https://api.openai.com/v1,mine:owner/big@http://127.0.0.1:8000/v1]"
    config = load_config("evaluate", [rows, "evaluation.endpoint.key_env=TEST_KEY"])
    check(config, "evaluate")
    assert named_policies(config.policies) == {
        "base": None,
        "gpt-4o-mini": HostedPolicy("gpt-4o-mini", "https://api.openai.com/v1"),
        "mine": HostedPolicy("owner/big", "http://127.0.0.1:8000/v1"),
    }
    found = hosted(config, "evaluate")["policies: mine"]
    assert (found.model, found.base_url, found.key_env) == ("owner/big", "http://127.0.0.1:8000/v1", "TEST_KEY")
    assert not hosted(config, "train")
    (problem,) = policy_problems(["base@http://127.0.0.1:8000/v1"])
    assert "would be called base" in problem


# --- the estimate ----------------------------------------------------------------------------------------------------

GOALS = [Goal(f"g{i}", "p" * 40, "r" * 60) for i in range(4)]  # 25 tokens each, as they are guessed
SPLITS = GoalSplits(train=GOALS[:1], val=GOALS[1:2], test=GOALS[2:])


def test_an_estimate_counts_what_is_played():
    config = config_of(task__max_turns=2, task__max_new_tokens=36, sampler__group_size=4, sampler__equal_turns=False)
    config.trainer.max_steps, config.trainer.goals_per_step, config.trainer.val_every = 6, 2, 3
    config.sampler.num_samples, config.budget.prices = 2, {"tiny": [1, 10]}
    config = with_user(config)
    found = estimate(config, SPLITS, "train")
    # Contexts at turn 1: one message before, and one in each of 4 x 2 futures; at turn 2: two, and no turn is left.
    (step,) = found.unit
    assert (step.role, step.model, step.calls) == ("user", "tiny", (1 + 8) + 2)
    # 625 tokens of instruction and goal; the second message sees 100 more, of the first turn.
    assert step.prompt_tokens == (625 + 8 * 725) + (625 + 725) and step.completion_tokens == 11 * 200
    (total,) = found.total
    whole = 2 * 1 + 3 * 2 * 2  # validations, and three rows of test goals that are played twice
    assert total.calls == 6 * 11 + whole * 2
    config.trainer.val_every = 0
    assert estimate(config, SPLITS, "train").total[0].calls == total.calls - 2 * 1 * 2
    text = describe(config, found)
    usd = (total.prompt_tokens + 10 * total.completion_tokens) / 1e6
    assert f"user (tiny): {total.calls:.0f} calls" in text and f"{usd:.2f} $" in text
    config.budget.prices = {"tiny": [1e-7, 1e-7]}  # 0.00 would say that it is free
    assert describe(config, found).count("less than 0.01 $") == 3


def test_an_estimate_counts_users_by_their_weights_and_a_judge_by_its_metrics():
    server = "http://127.0.0.1:9/v1"
    judge = [f"judge.endpoint.base_url={server}", "judge.endpoint.model=rater", "judge.extract=true"]
    config = load_config("train", ["user=mix", "judge=llm", *judge, "task.max_turns=2", "sampler.window=0"])
    config.user.users["llm"].endpoint = endpoint(model="tiny")
    config.trainer.max_steps, config.trainer.goals_per_step, config.sampler.group_size = 1, 2, 3
    found = {call.role: call for call in estimate(config, SPLITS, "train").total}
    # In training only the agenda speaks, in the test (3 rows of 2 goals, played twice) only the model.
    assert found["user"].calls == 12 * 2
    # One metric of doc_edit is judged, and one has its document copied: 2 x 3 candidates, 1 validation, 12 in the test.
    assert found["judge"].calls == found["extractor"].calls == 2 * 3 + 1 + 12
    assert found["extractor"].completion_tokens == 2048 * 19 and found["judge"].completion_tokens == 400 * 19
    config.user.weights = {"agenda": 3.0, "llm": 1.0}
    mixed = {call.role: call for call in estimate(config, SPLITS, "train").total}
    # A context at turn 1 takes one message of the user, one at turn 2 two; a validation two.
    assert mixed["user"].calls == 12 * 2 + (1 + 2 + 2) / 4


def test_a_run_without_servers_costs_nothing():
    config = config_of()
    assert "makes no calls" in describe(config, estimate(config, SPLITS, "train"))


def test_hosted_rows_are_in_the_estimate_of_an_evaluation():
    config = config_of("evaluate", policies=["base", "tiny@http://127.0.0.1:9/v1"], task__max_turns=3)
    (policy,) = estimate(config, SPLITS, "evaluate").total
    assert (policy.role, policy.model, policy.calls) == ("policy", "tiny", 3 * 2 * 2)


def test_a_budget_below_a_step_is_refused():
    config = with_user(config_of())
    found = estimate(config, SPLITS, "train")
    check_budget(replace(config, budget=BudgetConfig(max_tokens=999999)), found)
    with pytest.raises(BadInput, match=r"budget.max_tokens \(1000\) must be at least what one training step may cost"):
        check_budget(replace(config, budget=BudgetConfig(max_tokens=1000)), found)
    costly = replace(config, budget=BudgetConfig(max_usd=0.001, prices={"tiny": [1.0, 1.0]}))
    with pytest.raises(BadInput, match=r"budget.max_usd \(0.001\) must be at least .* dry_run=true"):
        check_budget(costly, found)


def test_calls_have_a_price():
    config = config_of(budget__prices={"tiny": [2, 4]})
    assert Calls("user", "tiny", 1, 500_000, 250_000).usd(config) == 2.0
