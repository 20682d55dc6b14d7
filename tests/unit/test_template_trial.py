"""The trial of a chat template: what works is described, what does not is refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import templates
from transformers import AutoTokenizer

from collab.conversation import Message
from collab.lm.chat_format import ChatFormat
from collab.lm.template_trial import try_template
from collab.util.errors import BadInput

CHATML, GEMMA = templates.CHATML, templates.GEMMA
SYSTEM = [Message("system", "Be brief."), Message("user", "Hi")]


@pytest.fixture(scope="module")
def known(smollm2: Path) -> dict[str, Any]:
    return templates.all_of(AutoTokenizer.from_pretrained(smollm2))


@pytest.fixture
def tokenizer(known: dict[str, Any]) -> Any:
    return copy.deepcopy(known["chatml"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "smollm2",
            [
                "system role kept",
                "messages verbatim",
                "continues the last",
                "end with <|im_end|>",
                "49152 tokens of 49152",
            ],
        ),
        ("chatml", ["system role kept", "messages verbatim", "continues the last", "end with <|im_end|>"]),
        ("llama3", ["system role kept", "without white space at their ends", "end with <|eot_id|>"]),
        ("gemma", ["in front of the first user message", "without white space", "end with <end_of_turn>"]),
        ("mistral", ["system role kept", "earlier turns change", "end with </s>"]),
        ("llama2", ["system role kept", "messages verbatim", "end with </s>"]),
        ("phi", ["system role kept", "end with <|end|>"]),
        ("words", ["system role kept", "end with </s>", "prompts end with '</s> assistant '"]),
    ],
)
def test_what_a_template_does_is_said_in_a_line(known: dict[str, Any], name: str, says: list[str]) -> None:
    line = try_template(known[name], len(known[name]))
    assert "\n" not in line
    for part in says:
        assert part in line


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content }", "cannot render a conversation of user"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "cannot render a conversation of user"),
        ("{{ 1 / 0 }}", "cannot render a conversation of user: division by zero"),
        (CHATML.replace("m.content", "m.content | upper"), "changes a message: .* becomes '10817: \"NA"),
        (CHATML.replace("m.content", "m.content | e"), "changes a message: .* becomes '.*&lt;b"),
        (CHATML.replace("m.content", "m.content[:20]"), "changes a message"),
        ("{% for m in messages if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
         "{% endfor %}<|im_start|>assistant\n", "leaves out a"),
        ("{% for m in messages if m.role != 'user' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
         "{% endfor %}<|im_start|>assistant\n", "leaves out a message of the role user"),
        ("{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}", "does not say who speaks"),
        (CHATML.partition("{% if add")[0], "does not open the assistant's reply"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
         "{% endif %}", "no special token behind a reply"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_trained_with_is_refused(tokenizer: Any, template: str, problem: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(BadInput, match=f"(?s){problem}"):
        try_template(tokenizer, len(tokenizer))


def test_tokens_beyond_the_model_are_refused(tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="and the model has 100 tokens"):
        try_template(tokenizer, 100)


@pytest.mark.parametrize("system", ["{{ raise_exception('no') }}", "", "{{ '' if true else m.content }}"])
def test_a_system_message_that_the_template_does_not_take_goes_before_the_user_s(tokenizer: Any, system: str) -> None:
    tokenizer.chat_template = CHATML.replace(
        "{% for m in messages %}", f"{{% for m in messages %}}{{% if m.role == 'system' %}}{system}{{% else %}}"
    ).replace("<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endif %}{% endfor %}")
    merged = "<|im_start|>user\nBe brief.\n\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ChatFormat(tokenizer).encode(SYSTEM)[0]) == merged
    assert "in front of the first user message" in try_template(tokenizer, len(tokenizer))
    longer = [*SYSTEM, Message("assistant", "Yes."), Message("user", "More")]
    ids, (boundary,) = ChatFormat(tokenizer).encode(longer)
    assert tokenizer.decode(ids) == f"{merged}Yes.<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"


def test_the_end_of_a_template_s_turn_ends_a_reply_even_if_the_tokenizer_names_another(known: dict[str, Any]) -> None:
    gemma = copy.deepcopy(known["gemma"])
    gemma.eos_token = "<|endoftext|>"
    assert ChatFormat(gemma).end == gemma.convert_tokens_to_ids("<end_of_turn>")


def test_a_space_before_the_end_of_turn_is_no_end_of_turn(known: dict[str, Any]) -> None:
    llama2 = known["llama2"]
    form = ChatFormat(llama2)
    assert llama2.convert_ids_to_tokens(form.encode_reply("ok")) == ["▁", "o", "k", "</s>"]
    ended = (*form.encode_text("ok"), llama2.eos_token_id)
    ids, _ = form.encode([Message("user", "a"), Message("assistant", "ok", ended), Message("user", "b")])
    assert ids.count(llama2.eos_token_id) == 1
