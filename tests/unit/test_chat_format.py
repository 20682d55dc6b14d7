"""Rendering is append-only: what was sampled stays as it is, and all else is as the chat template has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from collab.conversation import Message
from collab.lm.chat_format import ChatFormat

THINKING = (  # like several published templates: opens with BOS and drops the thoughts of earlier replies
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def tokens(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def chat(tokenizer: Any, *contents: str, system: str = "", end: str = "<|im_end|>") -> list[Message]:
    """User and assistant in turn; the assistant's messages carry the ids of their text and of `end`."""
    messages = [Message("system", system)] if system else []
    for i, content in enumerate(contents):
        ids = tokens(tokenizer, content + end) if i % 2 else None
        messages.append(Message("assistant" if i % 2 else "user", content, ids))
    return messages


def template(tokenizer: Any, messages: list[Message]) -> list[int]:
    plain = [{"role": m.role, "content": m.content} for m in messages]
    text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    return list(tokens(tokenizer, text))


ORDINARY = (
    "Hi, can you help me write a notice?",
    "Sure! What is it about, and who will read it?",
    "The kiln; 12 members.\nIt fires at 9:30 — on  Tuesdays.",
    "Great. What else?",
    "That is all.",
)


@pytest.mark.parametrize("system", ["", "You help the user write a short text."])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_ordinary_text_is_rendered_as_the_template_does(tokenizer: Any, system: str, length: int) -> None:
    messages = chat(tokenizer, *ORDINARY[:length], system=system)
    assert ChatFormat(tokenizer).encode(messages)[0] == template(tokenizer, messages)


def test_without_sampled_ids_the_text_is_tokenised(tokenizer: Any) -> None:
    messages = [Message(m.role, m.content) for m in chat(tokenizer, *ORDINARY, system="Be brief.")]
    assert ChatFormat(tokenizer).encode(messages)[0] == template(tokenizer, messages)


def test_sampled_ids_are_kept_even_if_the_tokenizer_would_choose_others(tokenizer: Any) -> None:
    odd = tuple(i for letter in "the kiln" for i in tokens(tokenizer, letter)) + (tokenizer.eos_token_id,)
    assert odd[:-1] != tokens(tokenizer, "the kiln") and tokenizer.decode(odd[:-1]) == "the kiln"
    messages = [Message("user", "What?"), Message("assistant", "the kiln", odd), Message("user", "Oh.")]
    ids, boundaries = ChatFormat(tokenizer).encode(messages)
    opening = template(tokenizer, messages[:1])
    assert boundaries == [len(opening) + len(odd)]
    assert ids[: boundaries[0]] == [*opening, *odd]
    after = "\n<|im_start|>user\nOh.<|im_end|>\n<|im_start|>assistant\n"
    assert ids[boundaries[0] :] == list(tokens(tokenizer, after))


def test_a_cut_reply_gets_the_end_of_turn_that_it_lacks(tokenizer: Any) -> None:
    whole = chat(tokenizer, *ORDINARY[:3])
    cut = chat(tokenizer, *ORDINARY[:3], end="")
    ids, (boundary,) = ChatFormat(tokenizer).encode(cut)
    assert ids == ChatFormat(tokenizer).encode(whole)[0] == template(tokenizer, whole)
    assert ids[boundary] == tokenizer.eos_token_id and ids[boundary - 1] != tokenizer.eos_token_id


def test_every_longer_conversation_begins_with_the_shorter_one(tokenizer: Any) -> None:
    encode = ChatFormat(tokenizer).encode
    messages = chat(tokenizer, *ORDINARY, system="Be brief.")
    ids, boundaries = encode(messages)
    assert len(boundaries) == 2
    for count, boundary in zip((2, 4), boundaries, strict=True):
        shorter, _ = encode(messages[:count])
        reply = messages[count].token_ids
        assert reply and ids[:boundary] == [*shorter, *reply]
    assert encode(messages[:2])[1] == [] and encode(messages[:4])[1] == boundaries[:1]


def test_a_template_that_drops_thoughts_renders_each_prompt_anew(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    messages = chat(tokenizer, "Why?", "<think>Hm, why.</think>Because.", "Really?")
    ids, (boundary,) = ChatFormat(tokenizer).encode(messages)
    opening = template(tokenizer, messages[:1])
    assert ids[:boundary] == opening and ids == template(tokenizer, messages)
    assert "Hm" not in tokenizer.decode(ids)


@pytest.mark.parametrize("said", ["~assistant~", "so ~assistant~~ and ~assistant~ it is"])
def test_what_a_user_says_cannot_shift_the_seam(tokenizer: Any, said: str) -> None:
    messages = chat(tokenizer, said, "What?", f"I said {said}!", "Ah.", said, system=said)
    assert ChatFormat(tokenizer).encode(messages)[0] == template(tokenizer, messages)


def test_an_empty_reply_is_an_empty_turn(tokenizer: Any) -> None:
    messages = [Message("user", "Hi"), Message("assistant", ""), Message("user", "Hello?")]
    ids, boundaries = ChatFormat(tokenizer).encode(messages)
    assert ids == template(tokenizer, messages)
    assert boundaries == [len(template(tokenizer, messages[:1]))]
