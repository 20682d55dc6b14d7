"""Arguments of a chat template are written into it, and go wherever the tokenizer goes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import templates
from transformers import AutoTokenizer

from collab.config.schema import ModelConfig
from collab.lm.loading import load_tokenizer
from collab.lm.template_arguments import bind_arguments, check_arguments
from collab.util.errors import BadInput

TEMPLATE = (
    "{% macro shown(m) %}{{ m.content }}{% if tone is defined and tone is not none %} ({{ tone }}){% endif %}"
    "{% endmacro %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ shown(m) }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if thinking is defined and thinking is false %}<think></think>{% endif %}{% endif %}"
)
ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def known(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def tokenizer(known: Any) -> Any:
    tokenizer = copy.deepcopy(known)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def rendered(tokenizer: Any, **arguments: Any) -> str:
    text: str = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True, **arguments)
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"thinking": False},
        {"thinking": True},
        {"tone": 'it\'s "%}" {{ x }}\n \\n \u00e4 \u2014'},
        {"tone": 1.5e-7},
        {"tone": None},
        {"tone": ["a", {"b": False}], "thinking": False},
    ],
)
def test_bound_arguments_render_as_given_ones(tokenizer: Any, arguments: dict[str, Any]) -> None:
    expected = rendered(tokenizer, **arguments)
    bind_arguments(tokenizer, arguments)
    assert rendered(tokenizer) == expected
    check_arguments(tokenizer, arguments)


def test_a_template_of_white_space_stays_as_it_is(tokenizer: Any) -> None:
    tokenizer.chat_template = "\n  {% if thinking %}A\n{% endif %}\n  B"
    expected = rendered(tokenizer, thinking=True)
    bind_arguments(tokenizer, {"thinking": True})
    assert rendered(tokenizer) == expected


def test_an_argument_of_a_call_wins_and_so_does_the_one_that_was_bound_last(tokenizer: Any) -> None:
    bind_arguments(tokenizer, {"thinking": False})
    assert "<think>" in rendered(tokenizer) and "<think>" not in rendered(tokenizer, thinking=True)
    once = tokenizer.chat_template
    bind_arguments(tokenizer, {"thinking": False})
    assert tokenizer.chat_template == once
    bind_arguments(tokenizer, {"thinking": True})
    assert "<think>" not in rendered(tokenizer)


def test_templates_with_names_get_them_all(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": TEMPLATE, "other": templates.CHATML}
    bind_arguments(tokenizer, {"thinking": False})
    assert rendered(tokenizer).endswith("<think></think>")
    check_arguments(tokenizer, {"thinking": False})


def test_an_argument_without_effect_is_refused(tokenizer: Any) -> None:
    arguments = {"thinking": False, "think": True}
    bind_arguments(tokenizer, arguments)
    with pytest.raises(BadInput, match=r"model.chat_template_kwargs.think: the chat template does not name it"):
        check_arguments(tokenizer, arguments)


def test_a_loaded_tokenizer_has_them_and_keeps_them(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "given")
    (tmp_path / "given" / "config.json").write_text("{}")
    config = ModelConfig(name="test", path=str(tmp_path / "given"), chat_template_kwargs={"thinking": False})
    loaded = load_tokenizer(config)
    assert rendered(loaded).endswith("<think></think>")
    loaded.save_pretrained(tmp_path / "exported")
    assert rendered(AutoTokenizer.from_pretrained(tmp_path / "exported")).endswith("<think></think>")
