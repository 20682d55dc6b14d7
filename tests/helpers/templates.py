"""Small tokenizers with the chat templates and control tokens of well-known models, written by their rules."""

from __future__ import annotations

import copy
import string
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (  # the system text stands in the last user message, as in v0.3
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% endif %}{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if loop.last and system %}"
    "[INST] {{ system }}\n\n{{ m.content }}[/INST]{% else %}[INST] {{ m.content }}[/INST]{% endif %}"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (first if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
QWEN3 = (  # drops what was thought before the last user message; a prompt without thoughts ends with an empty one
    "{% set ns = namespace(asked=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{% if loop.index0 > ns.asked %}<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
R1 = (  # as QWEN3, and each prompt opens the thought
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<\uff5cUser\uff5c>{{ m.content }}{% else %}<\uff5cAssistant\uff5c>{{ m.content.split('</think>')[-1] | trim }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<\uff5cAssistant\uff5c><think>\n{% endif %}"
)
LLAMA31 = (  # a system message in any case, with a date
    "{% if date_string is not defined and strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% elif date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: {{ date_string }}\n\n{{ system }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA3 = (  # the system message stands in the first user message; roles have to alternate
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL7 = (  # a system message of its own; roles have to alternate; nothing opens a reply but the end of a request
    "{{ bos_token }}{% if messages[0].role == 'system' %}[SYSTEM_PROMPT]{{ messages[0].content }}[/SYSTEM_PROMPT]"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
MAGISTRAL = MISTRAL7 + "{# replies begin with [THINK]...[/THINK], which stay in the history #}"
WORDS = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}assistant "


def of_bytes(base: Any, template: str, control: list[str], eos: str, **kinds: bool) -> Any:
    """The byte-level tokenizer of `base` with other control tokens and another template."""
    tokenizer = copy.deepcopy(base)
    kinds = {"special": True, "normalized": False} | kinds
    tokenizer.add_tokens([AddedToken(token, **kinds) for token in control], special_tokens=kinds["special"])
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = control[0], eos, template
    return tokenizer


def of_pieces(template: str, eos: str = "</s>") -> Any:
    """A tokenizer in the manner of sentencepiece: a space before the text, control tokens in the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *"▁\n—", *string.printable[:95], "▁t", "he", "▁the"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "t"), ("h", "e"), ("▁t", "he")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in pieces[:5]])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos, unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


def of_words() -> Any:
    """Whole words: a control token that stands alone is also a word of the vocabulary."""
    words = ["<s>", "</s>", "<unk>", "user", "assistant", "system", "My", "notice.", "Now", "obey", "the"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = WORDS
    return tokenizer


def all_of(smollm2: Any) -> dict[str, Any]:
    """Name -> tokenizer; `smollm2` is that of SmolLM2."""
    headers = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    turns = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
    roles = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    return {
        "smollm2": smollm2,
        "chatml": of_bytes(smollm2, CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        "llama3": of_bytes(smollm2, LLAMA3, headers, "<|eot_id|>"),
        "gemma": of_bytes(smollm2, GEMMA, turns, "<end_of_turn>"),
        "mistral": of_pieces(MISTRAL),
        "llama2": of_pieces(LLAMA2),
        "phi": of_bytes(smollm2, PHI, roles, "<|end|>", special=False),
        "phi, spaces": of_bytes(smollm2, PHI, roles, "<|end|>", rstrip=True),
        "phi, normalised": of_bytes(smollm2, PHI, roles, "<|end|>", special=False, normalized=True),
        "words": of_words(),
    }


def by_rules(base: Any) -> dict[str, Any]:
    """Name -> tokenizer with the rules of a published model; `base` has byte-level tokens.

    The marks of thoughts are added tokens as the models have them: ordinary ones, but special ones for Magistral.
    """
    headers = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    speakers = ["<\uff5cbegin\uff5c>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\uff5c>"]
    turns = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
    requests = ["<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    found = {
        "qwen3": of_bytes(base, QWEN3, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        "r1": of_bytes(base, R1, speakers, speakers[-1]),
        "llama31": of_bytes(base, LLAMA31, headers, "<|eot_id|>"),
        "gemma3": of_bytes(base, GEMMA3, turns, "<end_of_turn>"),
        "mistral7": of_bytes(base, MISTRAL7, requests, "</s>"),
        "magistral": of_bytes(base, MAGISTRAL, [*requests, "[THINK]", "[/THINK]"], "</s>"),
    }
    for name in ("qwen3", "r1"):
        found[name].add_tokens([AddedToken(mark, normalized=False, special=False) for mark in ("<think>", "</think>")])
    return found


def control_of(tokenizer: Any) -> list[str]:
    """The control tokens that the template of `tokenizer` writes."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    plain = [{"role": role, "content": "?"} for role in ("user", "assistant", "user")]
    text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    return sorted(token for token in known if token in text)
