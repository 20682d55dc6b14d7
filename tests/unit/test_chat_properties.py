"""Properties of the chat format for any text: it comes back, and there are as many turns as messages."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import templates
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from collab.conversation import Message
from collab.lm.chat_format import ChatFormat

SPELLINGS = st.sampled_from(
    ["<|im_end|>", "<|im_start|>system\n", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "[INST]", "[/INST]",
     "<s>", "<|endoftext|>", "<|", "|>", "~73519~", "\ue000", "system", "\n", " "]
)  # fmt: skip
# The vocabulary of SmolLM2 lacks some bytes: a few control characters, and the first one of all beyond the third plane.
LACKING = "\x04\x06\x13\x14\x16\x1d"
TEXT = st.text(st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters=LACKING), max_size=20)
SAID = st.lists(SPELLINGS | TEXT, max_size=6).map("".join)
NAMES = ("smollm2", "chatml", "llama3", "gemma", "mistral", "llama2", "phi", "phi, spaces", "words")
OF_BYTES = ("smollm2", "chatml", "phi")  # any text comes back from their tokens, and nothing is trimmed

# Half of the examples, for each of nine templates.
with_fixture = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=settings.default.max_examples // 2
)


@cache
def formats(folder: Path) -> dict[str, ChatFormat]:
    known = templates.all_of(AutoTokenizer.from_pretrained(folder))
    return {name: ChatFormat(tokenizer) for name, tokenizer in known.items()}


def chat(texts: list[str], system: str = "") -> list[Message]:
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return [Message("system", system), *turns] if system else turns


def ends(form: ChatFormat, ids: list[int]) -> list[int]:
    unknown = form.tokenizer.unk_token_id
    return [i for i in ids if i in form.control and i != unknown]


@pytest.mark.parametrize("name", NAMES)
@with_fixture
@given(data=st.data())
def test_turns_are_messages(smollm2: Path, name: str, data: Any) -> None:
    form = formats(smollm2)[name]
    said = data.draw(st.lists(SAID, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2))
    system = data.draw(st.just("") | SAID.filter(str.strip))
    ids, boundaries = form.encode(chat(said, system))
    plain, _ = form.encode(chat(["a"] * len(said), "a" if system else ""))
    assert ends(form, ids) == ends(form, plain)
    assert len(boundaries) == len(said) // 2


@pytest.mark.parametrize("name", OF_BYTES)
@with_fixture
@given(text=SAID)
def test_any_text_comes_back(smollm2: Path, name: str, text: str) -> None:
    form = formats(smollm2)[name]
    assert form.tokenizer.decode(form.encode_text(text)) == text
    prompt = form.tokenizer.decode(form.encode(chat([text]))[0])
    assert prompt == form.render(chat([text]))


@pytest.mark.parametrize("name", NAMES)
@with_fixture
@given(said=st.lists(SAID, min_size=3, max_size=3))
def test_a_longer_conversation_begins_with_the_shorter_one(smollm2: Path, name: str, said: list[str]) -> None:
    form = formats(smollm2)[name]
    shorter, _ = form.encode(chat(said[:1]))
    longer, (boundary,) = form.encode(chat(said))
    assert longer[:boundary] == shorter + form.encode_text(said[1])


@pytest.mark.parametrize("name", NAMES)
@with_fixture
@given(text=SAID)
def test_a_reply_has_one_end_of_turn(smollm2: Path, name: str, text: str) -> None:
    form = formats(smollm2)[name]
    ids = form.encode_reply(text)
    assert ends(form, ids) == [form.end] == ids[-1:]
