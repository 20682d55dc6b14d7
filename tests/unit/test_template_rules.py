"""Conversations by the rules of Qwen3, R1, Llama 3.1, Gemma 3, Mistral and Magistral, token for token."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
import templates
from transformers import AutoTokenizer

from collab.chat.base import Sampling
from collab.conversation import Message, Reply
from collab.lm.chat_format import ChatFormat
from collab.lm.template_arguments import bind_arguments
from collab.lm.template_trial import try_template
from collab.util.errors import BadInput

THOUGHT = "He left out the date."
MARKS = {"magistral": ("[THINK]", "[/THINK]")}


@pytest.fixture(scope="module")
def tokenizers(tiny_model: Path) -> dict[str, Any]:
    known = templates.by_rules(AutoTokenizer.from_pretrained(tiny_model))
    known["qwen3, no thoughts"] = copy.deepcopy(known["qwen3"])
    bind_arguments(known["qwen3, no thoughts"], {"enable_thinking": False})
    bind_arguments(known["llama31"], {"date_string": "26 Jul 2024"})
    return known


THINKERS = ("qwen3", "r1", "magistral")
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
U, A, E = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\uff5c>"

# What a prompt for the third reply is, after "Be brief." | "Hi" -> "When?" | "At six." -> "Where?" | "Here."
EXPECTED = {
    "qwen3": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nWhen?<|im_end|>\n<|im_start|>user\nAt six.<|im_end|>\n"
    "<|im_start|>assistant\nWhere?<|im_end|>\n<|im_start|>user\nHere.<|im_end|>\n<|im_start|>assistant\n",
    "qwen3, no thoughts": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nWhen?<|im_end|>\n<|im_start|>user\nAt six.<|im_end|>\n"
    "<|im_start|>assistant\nWhere?<|im_end|>\n<|im_start|>user\nHere.<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "r1": f"<\uff5cbegin\uff5c>Be brief.{U}Hi{A}When?{E}{U}At six.{A}Where?{E}{U}Here.{A}<think>\n",
    "llama31": f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{DATES}Be brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nWhen?<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAt six.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nWhere?<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHere.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma3": "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nWhen?<end_of_turn>\n"
    "<start_of_turn>user\nAt six.<end_of_turn>\n<start_of_turn>model\nWhere?<end_of_turn>\n"
    "<start_of_turn>user\nHere.<end_of_turn>\n<start_of_turn>model\n",
    "mistral7": "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]When?</s>[INST]At six.[/INST]Where?</s>"
    "[INST]Here.[/INST]",
    "magistral": "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]When?</s>[INST]At six.[/INST]Where?</s>"
    "[INST]Here.[/INST]",
}
NAMES = tuple(EXPECTED)


def tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def sampled(form: ChatFormat, text: str, thought: str = "", **sampling: Any) -> Reply:
    """A reply as an engine would make it, with its thought between marks and the end of turn."""
    start, end = form.marks
    if thought or form.opens_thought:
        text = f"{'' if form.opens_thought else start}\n{thought}\n{end}\n\n{text}"
    ids = (*tokens(form.tokenizer, text), form.end)
    return form.read(Reply("", ids, (0.0,) * len(ids)), Sampling(64, **sampling))


def conversation(form: ChatFormat, thought: str = "") -> list[Message]:
    def said(text: str) -> Message:
        reply = sampled(form, text, thought)
        return Message("assistant", reply.text, reply.token_ids)

    opening = [Message("system", "Be brief."), Message("user", "Hi")]
    return [*opening, said("When?"), Message("user", "At six."), said("Where?"), Message("user", "Here.")]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_without_thoughts_is_the_template_s(tokenizers: dict[str, Any], name: str) -> None:
    tokenizer = tokenizers[name]
    ids, boundaries = ChatFormat(tokenizer).encode(conversation(ChatFormat(tokenizer)))
    assert tokenizer.decode(ids) == EXPECTED[name]
    if name != "llama31":  # a prompt ends with two line feeds, which are other tokens in front of a word
        assert ids == tokens(tokenizer, EXPECTED[name])
    for boundary in boundaries:  # of what an earlier request has computed
        assert tokenizer.decode(ids[:boundary]) == EXPECTED[name][: len(tokenizer.decode(ids[:boundary]))]


@pytest.mark.parametrize("name", ("qwen3", "r1"))
def test_thoughts_of_earlier_turns_are_dropped_where_the_template_drops_them(
    tokenizers: dict[str, Any], name: str
) -> None:
    form = ChatFormat(tokenizers[name])
    messages = conversation(form, THOUGHT)
    assert THOUGHT in form.decode(messages[2].token_ids or ()) and THOUGHT not in messages[2].content
    ids, boundaries = form.encode(messages)
    assert ids == tokens(tokenizers[name], EXPECTED[name])
    prompts = [form.encode(messages[:place])[0] for place in (2, 4)]
    kept = [len(prompt) for prompt in prompts if ids[: len(prompt)] == prompt]
    assert boundaries == kept and len(kept) == {"qwen3": 2, "r1": 0}[name]  # R1's prompts end in a thought


def test_thoughts_stay_in_the_history_where_the_template_keeps_them(tokenizers: dict[str, Any]) -> None:
    form = ChatFormat(tokenizers["magistral"])
    messages = conversation(form, THOUGHT)
    ids, boundaries = form.encode(messages)
    told = EXPECTED["magistral"]
    for reply in ("When?", "Where?"):
        told = told.replace(reply, f"[THINK]\n{THOUGHT}\n[/THINK]\n\n{reply}")
    assert ids == tokens(tokenizers["magistral"], told)
    for place, boundary in zip((2, 4), boundaries, strict=True):
        assert ids[:boundary] == [*form.encode(messages[:place])[0], *(messages[place].token_ids or ())]


@pytest.mark.parametrize("name", THINKERS)
def test_a_thought_is_neither_shown_nor_counted_unless_asked_for(tokenizers: dict[str, Any], name: str) -> None:
    form = ChatFormat(tokenizers[name])
    plain, thoughtful = sampled(form, "When?"), sampled(form, "When?", THOUGHT)
    assert (thoughtful.text, thoughtful.reasoning) == ("When?", THOUGHT)
    assert thoughtful.num_tokens == len(tokens(form.tokenizer, "When?")) + 1
    shown = sampled(form, "When?", THOUGHT, show_thoughts=True)
    assert THOUGHT in shown.text and shown.text.endswith("When?")
    assert shown.num_tokens == len(shown.token_ids) == len(thoughtful.token_ids) and shown.reasoning == ""
    assert plain.text == "When?" and plain.num_tokens == thoughtful.num_tokens


@pytest.mark.parametrize("name", THINKERS)
def test_a_reply_that_is_cut_in_its_thought_shows_nothing(tokenizers: dict[str, Any], name: str) -> None:
    form = ChatFormat(tokenizers[name])
    whole = sampled(form, "When?", THOUGHT)
    cut = form.read(Reply("", whole.token_ids[:6], finish_reason="length"), Sampling(6))
    assert cut.text == "" and cut.num_tokens == 0 and THOUGHT.startswith(cut.reasoning)
    next_prompt = [Message("user", "Hi"), Message("assistant", cut.text, cut.token_ids), Message("user", "?")]
    ids, _ = form.encode(next_prompt)
    assert ids.count(form.end) == {"qwen3": 3, "r1": 1, "magistral": 1}[name]  # of all messages, or of replies


def test_what_a_thought_is_follows_the_marks_that_a_text_begins_with(tokenizers: dict[str, Any]) -> None:
    form = ChatFormat(tokenizers["llama31"])  # no marks of its own, and those of the rest of the world are text
    assert sampled(form, "<think>hm</think>Yes").text == "Yes"
    assert sampled(form, "A <think> is a tag.").text == "A <think> is a tag."
    assert sampled(form, "[THINK]hm[/THINK]Yes").text == "[THINK]hm[/THINK]Yes"


def test_a_stored_reply_ends_the_thought_that_the_prompt_opens(tokenizers: dict[str, Any]) -> None:
    form = ChatFormat(tokenizers["r1"])
    ids = form.encode_reply("When?")
    assert form.tokenizer.decode(ids) == f"\n</think>\n\nWhen?{E}"
    assert form.read(Reply("", tuple(ids)), Sampling(64)).text == "When?"
    for name in ("qwen3", "magistral"):
        form = ChatFormat(tokenizers[name])
        assert ids[:0] == [] and form.decode(form.encode_reply("When?")) == "When?"


@pytest.mark.parametrize(
    ("name", "end", "says"),
    [
        ("qwen3", "<|im_end|>", ["system role kept", "thoughts of earlier turns are left out"]),
        ("qwen3, no thoughts", "<|im_end|>", ["prompts end with '<|im_end|>\\n<|im_start|>assistant\\n<think>"]),
        ("r1", E, ["thoughts of earlier turns are left out", "a reply begins in a thought"]),
        ("llama31", "<|eot_id|>", ["system role kept", "each prompt continues the last one"]),
        ("gemma3", "<end_of_turn>", ["system role kept", "each prompt continues the last one"]),
        ("mistral7", "</s>", ["system role kept", "each prompt continues the last one"]),
        ("magistral", "</s>", ["system role kept", "each prompt continues the last one"]),
    ],
)
def test_the_trial_accepts_them_and_says_what_they_do(
    tokenizers: dict[str, Any], name: str, end: str, says: list[str]
) -> None:
    tokenizer = tokenizers[name]
    line = try_template(tokenizer, len(tokenizer))
    assert all(part in line for part in (*says, f"replies end with {end}")), line
    assert ("begins in a thought" in line) == (name == "r1")
    assert "date of the day" not in line


def test_a_date_of_the_day_is_told_and_can_be_fixed(tokenizers: dict[str, Any]) -> None:
    tokenizer = copy.deepcopy(tokenizers["llama31"])
    tokenizer.chat_template = templates.LLAMA31
    form = ChatFormat(tokenizer)
    assert datetime.date.today().strftime("%Y") in form.render([Message("user", "Hi")])
    assert "prompts have the date of the day" in try_template(tokenizer, len(tokenizer))
    bind_arguments(tokenizer, {"date_string": "1 May 2025"})
    text = ChatFormat(tokenizer).render([Message("user", "Hi")])
    assert "Today Date: 1 May 2025\n\n<|eot_id|>" in text


@pytest.mark.parametrize("name", ("gemma3", "mistral7"))
def test_roles_that_do_not_alternate_are_refused_in_plain_words(tokenizers: dict[str, Any], name: str) -> None:
    with pytest.raises(BadInput, match="cannot render a conversation of user, user: .*must alternate"):
        ChatFormat(tokenizers[name]).encode([Message("user", "Hi"), Message("user", "Hello?")])
