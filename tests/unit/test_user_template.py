"""Templates of user models: the published one, those that training makes, and what is sampled behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from templates import all_of, by_rules, of_bytes
from tokenizers import AddedToken
from transformers import AutoTokenizer

from collab.conversation import Message
from collab.lm.chat_format import ChatFormat
from collab.lm.template_trial import try_template
from collab.lm.user_template import speak_as_user
from collab.parsing.intents import END
from collab.util.errors import BadInput

PUBLISHED = (  # as the repository of microsoft/UserLM-8b has it: no BOS, no line end behind the last header
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n{{ m.content }}<|eot_id|>{% endfor %}"
    "<|start_header_id|>user<|end_header_id|>"
)
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHAT = [
    Message("system", "You are a user who wants a poem."),
    Message("user", "a poem pls"),
    Message("assistant", "About what?"),
    Message("user", "the sea"),
    Message("assistant", "Waves, waves."),
]


@pytest.fixture(scope="module")
def base(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def published(base: Any) -> Any:
    return of_bytes(base, PUBLISHED, HEADERS, "<|eot_id|>")


def rendered(tokenizer: Any, messages: list[Message]) -> str:
    plain = [{"role": m.role, "content": m.content} for m in messages]
    return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_published_template_is_read_as_it_writes(published: Any, length: int) -> None:
    format = ChatFormat(published)
    assert format.speaker == "user"
    ids, boundaries = format.encode(CHAT[:length])
    assert published.decode(ids) == rendered(published, CHAT[:length])
    assert published.convert_ids_to_tokens(format.end) == "<|eot_id|>"
    assert len(boundaries) == length // 2


def test_the_end_of_a_message_is_where_the_next_prompt_goes_on(published: Any) -> None:
    format = ChatFormat(published)
    sampled = [*format.encode(CHAT[:3])[0], *format.encode_reply("the sea")]
    whole, boundaries = format.encode(CHAT)
    assert whole[: len(sampled)] == sampled and boundaries[-1] == len(sampled) - 1


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("template", ["published", "exchanged"])
def test_the_end_of_a_chat_is_one_token_that_is_read_again(base: Any, template: str, special: bool) -> None:
    if template == "published":
        tokenizer = of_bytes(base, PUBLISHED, HEADERS, "<|eot_id|>")
    else:
        tokenizer = of_bytes(base, base.chat_template, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
        speak_as_user(tokenizer)
    tokenizer.add_tokens([AddedToken(END, special=special, normalized=False)], special_tokens=special)
    format, end = ChatFormat(tokenizer), tokenizer.convert_tokens_to_ids(END)
    ids = format.encode_reply(END)
    assert ids[-2:] == [end, format.end] and ids.count(end) == 1
    assert tokenizer.decode(ids).strip() == f"{END}{tokenizer.eos_token}"
    assert format.decode(ids) == END and format.decode(ids[:-1]) == END
    assert format.decode([*format.encode_reply("ok bye", cut=True), end, format.end]) == f"ok bye{END}"
    assert (end in format.control) == special
    if special:  # within a text it is ordinary text, and the assistant cannot write it
        assert end not in format.encode_reply(f"I typed {END}")
        assert end not in format.encode([*CHAT[:2], Message("assistant", END)])[0]


def test_an_assistant_does_not_write_the_end_of_a_chat(base: Any) -> None:
    tokenizer = of_bytes(base, base.chat_template, ["<|im_start|>", "<|im_end|>", END], "<|im_end|>")
    format, end = ChatFormat(tokenizer), tokenizer.convert_tokens_to_ids(END)
    assert end not in format.encode_reply(END) and format.decode([end, format.end]) == ""


def test_a_template_with_the_roles_exchanged_opens_a_message_of_the_user(base: Any) -> None:
    tokenizer = of_bytes(base, base.chat_template, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    speak_as_user(tokenizer)
    once = tokenizer.chat_template
    speak_as_user(tokenizer)
    assert tokenizer.chat_template == once
    assert rendered(tokenizer, CHAT[:3]) == (
        "<|im_start|>system\nYou are a user who wants a poem.<|im_end|>\n<|im_start|>assistant\na poem pls<|im_end|>\n"
        "<|im_start|>user\nAbout what?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_templates_of_all_families_become_those_of_user_models(base: Any) -> None:
    for name, tokenizer in {**all_of(base), **by_rules(base)}.items():
        if name in ("r1", "words"):
            continue
        assert ChatFormat(tokenizer).speaker == "assistant", name
        speak_as_user(tokenizer)
        format = ChatFormat(tokenizer)
        assert format.speaker == "user", name
        text, start = format.render(CHAT), format.render(CHAT[:1])
        places = [text.index(message.content) for message in CHAT]
        assert text.startswith(start) and places == sorted(places), name
        assert "prompts end with" in try_template(tokenizer, len(tokenizer)), name
        sampled = [*format.encode(CHAT[:3])[0], *format.encode_reply("the sea")]
        spaced = name == "llama2"  # its template puts a space before the end of a message
        assert spaced or format.encode(CHAT)[0][: len(sampled)] == sampled, name


def test_a_template_that_opens_a_thought_is_refused(base: Any) -> None:
    tokenizer = by_rules(base)["r1"]
    before = tokenizer.chat_template
    with pytest.raises(BadInput, match="cannot be that of a user model"):
        speak_as_user(tokenizer)
    assert tokenizer.chat_template == before


def test_a_user_model_passes_the_trial_of_its_template(published: Any) -> None:
    assert "replies end with <|eot_id|>" in try_template(published, len(published))
