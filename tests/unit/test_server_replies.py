"""What a server answers is a reply or a named failure, whatever JSON it is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.chat.completions import Filtered, error_message, read_reply
from collab.chat.retries import Failure
from collab.conversation import Reply
from collab.generation.vllm_server import read_completion
from collab.util.errors import RunStopped

ASKED = [{"role": "user", "content": "Hello there"}]


def read(message: Any, reason: Any = "stop", usage: Any = None) -> Reply:
    body = {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}
    return read_reply(json.dumps(body).encode(), ASKED)


# --- any JSON --------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-(10**400), 10**400) | st.floats()
TEXTS = st.text(st.characters()) | st.sampled_from(["\ud83d", "<think>", "</think>Hi", "length", "error", "text"])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
NAMES = st.sampled_from(["type", "text", "thinking", "refusal", "value", "reasoning_tokens"])
ANY = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(NAMES | st.text(), inner), max_leaves=8)
MESSAGES = ANY | st.dictionaries(st.sampled_from(["content", "refusal", "reasoning_content", "reasoning"]), ANY)
USAGES = ANY | st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "completion_tokens_details"]), ANY
)
REASONS = ANY | st.sampled_from(["stop", "length", "content_filter", "SAFETY", "error"])
CHOICES = st.lists(ANY | st.fixed_dictionaries({"message": MESSAGES, "finish_reason": REASONS}), max_size=2)
BODIES = ANY | st.fixed_dictionaries({"choices": ANY | CHOICES, "usage": USAGES}, optional={"error": ANY})


@given(BODIES)
def test_any_json_is_a_reply_or_a_named_failure(body: Any):
    try:
        reply = read_reply(json.dumps(body).encode(), ASKED)
    except (Failure, Filtered) as failure:
        assert str(failure).encode()
        return
    assert reply.usage is not None and reply.finish_reason in ("stop", "length")
    assert reply.text == reply.text.strip() and (reply.text + reply.reasoning).encode() is not None
    assert 0 <= reply.usage.reasoning_tokens <= reply.usage.completion_tokens < 10**8
    assert 0 < reply.usage.prompt_tokens < 10**8 and reply.num_tokens >= 0
    assert Reply.of(json.loads(json.dumps(reply.__dict__ | {"usage": reply.usage.__dict__}))) == reply


@given(st.binary())
def test_any_bytes_are_a_reply_or_a_named_failure(data: bytes):
    with pytest.raises(Failure):
        read_reply(data, ASKED)
    with pytest.raises(Failure):
        read_completion(data, {"prompt": [1, 2]})


IDS = ANY | st.lists(st.integers(-(2**70), 2**70) | ANY, max_size=2) | st.just([5, 7])
LOGPROBS = ANY | st.fixed_dictionaries({"token_logprobs": ANY | st.lists(LEAVES, max_size=2) | st.just([-0.5, 0])})
COMPLETION = {"token_ids": IDS, "prompt_token_ids": ANY | st.just([1, 2]), "logprobs": LOGPROBS}
COMPLETION["finish_reason"] = ANY | st.sampled_from(["stop", "length", "abort"])


@given(ANY | st.fixed_dictionaries({"choices": ANY | st.lists(st.fixed_dictionaries(COMPLETION), max_size=1)}))
def test_any_json_is_a_completion_or_a_named_failure(body: Any):
    try:
        reply = read_completion(json.dumps(body).encode(), {"prompt": [1, 2]})
    except (Failure, RunStopped) as failure:
        assert str(failure).encode()
        return
    assert reply.prompt_ids == (1, 2) and reply.finish_reason in ("stop", "length")
    assert len(reply.token_ids) == len(reply.logprobs) > 0 and all(map(math.isfinite, reply.logprobs))
    assert all(type(index) is int and 0 <= index < 2**31 for index in reply.token_ids)


@given(ANY | st.fixed_dictionaries({"error": ANY | st.dictionaries(st.sampled_from(["message", "code"]), ANY)}))
def test_the_message_of_any_error_is_one_short_line_that_can_be_printed(body: Any):
    for text in error_message(json.dumps(body).encode()):
        assert len(text) <= 300 and len(text.splitlines()) < 2 and text.encode() is not None


# --- the shapes of a reply -------------------------------------------------------------------------------------------

HI = {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    "content",
    [
        "hi",
        [HI],
        HI,
        ["hi"],
        [{"text": "hi"}],
        [{"type": "output_text", "text": "hi"}],
        [{"type": "text", "text": {"value": "hi", "annotations": []}}],
        [
            {"type": "text", "text": "h"},
            {"type": "image_url", "image_url": {"url": "x"}},
            {"type": "text", "text": "i"},
        ],
        [{"type": "refusal", "refusal": "hi"}],
    ],
)
def test_a_reply_is_its_text_whatever_the_shape_of_the_content(content: Any):
    reply = read({"role": "assistant", "content": content})
    assert (reply.text, reply.reasoning) == ("hi", "")


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, HI]},
        {"content": [{"type": "reasoning", "text": "hm"}, HI]},
        {"content": "hi", "reasoning": "hm"},
        {"content": "hi", "reasoning_content": [{"type": "text", "text": "hm"}]},
        {"content": "hi", "reasoning_content": None, "thinking": "hm"},
    ],
)
def test_reasoning_is_no_part_of_the_reply_whatever_its_shape(message: Any):
    reply = read(message)
    assert (reply.text, reply.reasoning) == ("hi", "hm")


def test_a_model_that_declines_says_so():
    assert read({"content": None, "refusal": "I can't do that."}).text == "I can't do that."


def test_a_reply_that_was_cut_while_the_model_was_reasoning_is_empty():
    reply = read({"content": None, "reasoning_content": "hm"}, "length")
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("", "hm", "length")


@pytest.mark.parametrize("content", [None, 5, True, [{"type": "image", "url": "x"}], [7], {"a": "b"}])
def test_an_answer_without_a_text_is_no_reply(content: Any):
    with pytest.raises(Failure, match="no chat completion"):
        read({"content": content, "tool_calls": []}, "tool_calls")


# --- why a reply ended -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_a_reply_that_was_cut_is_one_whatever_the_server_calls_it(reason: str):
    assert read({"content": "hi"}, reason).finish_reason == "length"


@pytest.mark.parametrize("reason", ["stop", "eos", "end_turn", "STOP", None, "", ["stop"], "tool_calls"])
def test_any_other_reply_is_whole(reason: Any):
    assert read({"content": "hi"}, reason).finish_reason == "stop"


@pytest.mark.parametrize("content", ["", None, "half a sen", []])
@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "content_filtered", "guardrail_intervened", "refusal"])
def test_a_filtered_reply_is_a_failed_call_that_is_paid_for(content: Any, reason: str):
    with pytest.raises(Filtered, match=f"content filter .*{reason.lower()}") as failure:
        read({"content": content}, reason, {"prompt_tokens": 9, "completion_tokens": 2})
    assert (failure.value.usage.prompt_tokens, failure.value.usage.completion_tokens) == (9, 2)


@pytest.mark.parametrize("content", ["", None, "half a sen"])
@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_a_reply_that_the_server_broke_off_is_asked_for_again(content: Any, reason: str):
    with pytest.raises(Failure, match=f"broke off .*{reason}"):
        read({"content": content}, reason)


# --- counts of tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [-1, 0, float("nan"), float("inf"), "12", True, None, [12], {}, 10**9, 10**400])
def test_a_count_that_cannot_be_is_guessed(count: Any):
    usage = read({"content": "hi"}, usage={"prompt_tokens": count, "completion_tokens": count}).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.guessed) == (7, 1, True)


@pytest.mark.parametrize("usage", [None, [], "x", 5, {}])
def test_counts_that_are_missing_are_guessed(usage: Any):
    assert read({"content": "hi"}, usage=usage).usage.guessed


def test_counts_that_can_be_are_taken():
    usage = read({"content": "hi"}, usage={"prompt_tokens": 9.0, "completion_tokens": 2}).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.guessed) == (9, 2, False)
    assert read({"content": ""}, usage={"prompt_tokens": 9, "completion_tokens": 0}).usage.guessed is False


def test_a_reply_is_never_all_reasoning():
    usage = {"prompt_tokens": 9, "completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 30}}
    reply = read({"content": "hi", "reasoning": "hmhmhm"}, usage=usage)
    assert (reply.usage.reasoning_tokens, reply.num_tokens) == (6, 2)
