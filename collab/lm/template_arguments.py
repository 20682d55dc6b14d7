"""Arguments of a chat template, written into the template itself.

A tokenizer then renders with them wherever it is used: policies, local users and judges, and whatever loads an exported
policy, such as a server. An argument that a call gives wins over one that is written here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from collab.util.errors import BadInput

_BLOCK = re.compile(r"\{[%{].*?[%}]\}", re.DOTALL)  # of Jinja
_STRING = re.compile(r"'[^']*'|\"[^\"]*\"")


def bind_arguments(tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """Write `model.chat_template_kwargs` into the chat template of a tokenizer, in place."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several templates by name
        tokenizer.chat_template = {name: _bound(text, arguments) for name, text in template.items()}
    else:
        tokenizer.chat_template = _bound(template, arguments)


def check_arguments(tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """Check that a chat template with bound arguments names each of them.

    Raises:
        BadInput: It does not name one: the argument would have no effect.
    """
    texts = tokenizer.chat_template
    texts = texts.values() if isinstance(texts, dict) else [texts]
    blocks = [block for text in texts for block in _BLOCK.findall(text.removeprefix(_prefix(arguments)))]
    own = _STRING.sub("", "\n".join(blocks))
    for name in arguments:
        if not re.search(rf"\b{name}\b", own):
            raise BadInput(
                f"model.chat_template_kwargs.{name}: the chat template does not name it, so it has no effect. Leave it "
                "out, or look for the right name in the template."
            )


def _bound(template: str, arguments: Mapping[str, Any]) -> str:
    prefix = _prefix(arguments)
    return template if template.startswith(prefix) else prefix + template


def _prefix(arguments: Mapping[str, Any]) -> str:
    """Assignments in Jinja, whose literals of plain data are Python's. The line's end is not part of the output."""
    sets = [f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}\n"
            for name, value in arguments.items()]  # fmt: skip
    return "".join(sets)
