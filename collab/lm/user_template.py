"""The chat template of a user model: a prompt ends by opening a message of the user, as that of UserLM-8b.

The published format (Naous et al. 2025, arXiv 2510.06552, and the card of microsoft/UserLM-8b): the system message is
what the user wants, the intent; messages keep their roles; the model writes the user's next message, or `END`
(`collab.parsing.intents`). An assistant model becomes a user model by training with its own template with the roles
exchanged: it knows how to write where the template says "assistant", so that is where the user's messages go.
"""

from __future__ import annotations

import contextlib
from typing import Any

from collab.conversation import Message
from collab.lm.chat_format import ChatFormat
from collab.util.errors import BadInput

# In Jinja, in front of a template; on one line, since what follows it must stay as it is. {system} is the role that the
# intent gets.
_EXCHANGE = (
    "{{% set exchanged = namespace(messages=[]) %}}{{% for message in messages %}}{{% set exchanged.messages = "
    "exchanged.messages + [{{'role': {{'user': 'assistant', 'assistant': 'user'}}.get(message['role'], '{system}'), "
    "'content': message['content']}}] %}}{{% endfor %}}{{% set messages = exchanged.messages %}}"
)
_TRIAL = [Message("system", "40817"), Message("user", "29553"), Message("assistant", "73519")]


def speak_as_user(tokenizer: Any) -> None:
    """Make the chat template of a tokenizer that of a user model, in place; one that is stays as it is.

    Templates that know no system message, or want a user's message after it, get the intent as a message.

    Raises:
        BadInput: The template opens no message of the user even so.
    """
    if ChatFormat(tokenizer).speaker == "user":
        return
    template = tokenizer.get_chat_template()
    for system in ("system", "user"):
        tokenizer.chat_template = _EXCHANGE.format(system=system) + template
        format = ChatFormat(tokenizer)
        with contextlib.suppress(BadInput):
            first, later = format.render(_TRIAL[:1]), format.render(_TRIAL)
            if format.speaker == "user" and _TRIAL[0].content in first and later.startswith(first):
                return
    tokenizer.chat_template = template
    raise BadInput(
        f"The chat template of {tokenizer.name_or_path} cannot be that of a user model: with the roles exchanged, a "
        "prompt does not end as a message begins. Take a model whose template opens each message in one way, without "
        "a thought, as those of Llama 3, Qwen2.5 and SmolLM2 do."
    )
