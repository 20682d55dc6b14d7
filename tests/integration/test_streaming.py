"""A reply while it is being written: from a server, and from a policy in this process."""

import asyncio

import pytest
from fault_server import FaultServer

from collab.chat.base import ChatFailed, ContextFull, Sampling
from collab.chat.budget import BudgetExhausted, Ledger
from collab.chat.streaming import StreamingModel
from collab.config.schema import BudgetConfig, EndpointConfig
from collab.conversation import Message
from collab.randomness import RngKey
from collab.study.assistants import Assistant, LocalModel

HI = [Message("user", "Hi")]
SAMPLING = Sampling(20, 0.7)


def ask(server, **fields):
    """(reply or error, all texts that were told)."""
    told = []
    endpoint = EndpointConfig(base_url=server.url, model="tiny", **{"read_timeout": 2, **fields})

    async def run():
        model = StreamingModel(endpoint)
        try:
            return await model.complete(HI, SAMPLING, RngKey(1), told.append)
        except ChatFailed as error:
            return error
        finally:
            await model.close()

    return asyncio.run(run()), told


def test_the_text_so_far_is_told_word_by_word_without_the_thought():
    with FaultServer(say=lambda call: "<think>Who is it? </think>\n\nHello, how are 😀 you?") as server:
        reply, told = ask(server)
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("Hello, how are 😀 you?", "Who is it?", "stop")
    assert [text for text in told if text] == [
        "Hello,",
        "Hello, how",
        "Hello, how are",
        "Hello, how are 😀",
        reply.text,
    ]
    assert server.calls[0]["stream"] is True and server.calls[0]["max_tokens"] == 20


def test_a_reply_is_counted_and_one_that_could_cost_too_much_is_not_asked_for():
    ledger = Ledger(BudgetConfig(max_usd=25, prices={"tiny": [0, 1e6]}))  # a dollar for each token of a reply

    async def run(server, **fields):
        model = StreamingModel(EndpointConfig(base_url=server.url, model="tiny", **fields), ledger, "an arm")
        await model.complete(HI, SAMPLING, RngKey(1), lambda text: None)
        await model.close()

    with FaultServer(say=lambda call: "Hello, how are you?") as server:
        asyncio.run(run(server))
        assert ledger.spent["an arm"].usd == 4  # words, as the server counts them
        asyncio.run(run(server, omit=["stream_options"]))
        spent = ledger.spent["an arm"].usd
        assert 4 < spent - 4 < 12 and spent + SAMPLING.max_new_tokens > 25  # guessed
        with pytest.raises(BudgetExhausted, match="max_usd=25"):
            asyncio.run(run(server))
    assert [call.get("stream_options") for call in server.calls] == [{"include_usage": True}, None]


def test_a_server_that_does_not_stream_is_read_too():
    body = {"choices": [{"message": {"content": "All at once"}, "finish_reason": "length"}], "usage": {}}
    with FaultServer(say=lambda call: body) as server:
        reply, told = ask(server)
    assert (reply.text, reply.finish_reason, told) == ("All at once", "length", [])


@pytest.mark.parametrize(
    ("fault", "calls", "said"),
    [
        ("500", 2, "HTTP 500"),
        ("429", 2, "HTTP 429"),
        ("hang", 2, "Timeout"),
        ("401", 1, "HTTP 401"),  # it would be refused again
        ("drop", 1, "a reply that ends without its end"),  # its words were told already
        ("html", 2, "no chat completion"),
    ],
)
def test_a_failure_is_repeated_once_unless_words_were_told(fault, calls, said, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-0123456789abcdef")
    with FaultServer(plan=lambda number, call: fault, say=lambda call: "one two three four") as server:
        error, told = ask(server, key_env="A_KEY", read_timeout=0.5, connect_timeout=0.5)
    assert isinstance(error, ChatFailed) and said in str(error) and len(server.calls) == calls
    assert "0123456789" not in str(error)
    assert (told != []) == (fault == "drop")


def test_what_fails_for_a_moment_is_answered():
    with FaultServer(plan=lambda number, call: "502" if number == 0 else "ok", say=lambda call: "Hello") as server:
        assert ask(server)[0].text == "Hello"


def test_a_policy_tells_its_text_so_far_and_ends_with_what_it_would_say_anyway(tiny_model):
    model, told = LocalModel(str(tiny_model)), []

    async def run(sampling):
        assistant = Assistant("tiny", model, "Be brief.", sampling, seed=1)
        return await assistant.reply([("Hi", "Hello")], "Who are you?", 7, told.append)

    reply = asyncio.run(run(Sampling(24, 1.0)))
    assert reply.text and told and told[-1].strip() in (reply.text, reply.text[: len(told[-1].strip())])
    lengths = [len(text) for text in told]
    assert lengths == sorted(lengths) and len(set(lengths)) > 5
    assert asyncio.run(run(Sampling(24, 1.0))).text == reply.text  # the same participant and seed
    with pytest.raises(ContextFull):
        asyncio.run(run(Sampling(4000)))
