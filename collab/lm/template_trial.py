"""A trial of a chat template before a run: does it keep who speaks, what they say, and where a reply ends?"""

from __future__ import annotations

from typing import Any

from collab.conversation import Message, Role
from collab.lm.chat_format import ChatFormat
from collab.util.errors import BadInput


def try_template(tokenizer: Any, vocab_size: int) -> str:
    """Render a system message and two turns, and look at what the template makes of them.

    Args:
        tokenizer: With the chat template.
        vocab_size: Tokens of the model.

    Returns:
        What the template does, in one line.

    Raises:
        BadInput: The template cannot render the conversation. It leaves out or changes a message, or does not say who
            speaks. It puts no control token behind a reply, or does not open the reply that a prompt asks for. A
            message can forge a control token. A token is not in the model's vocabulary.
    """
    form = ChatFormat(tokenizer)
    roles: list[Role] = ["system", "user", "assistant", "user", "assistant"]
    roles += ["user"] if form.speaker == "assistant" else []
    messages = [Message(role, _content(number)) for number, role in enumerate(roles, start=1)]
    text = form.render(messages)
    spans = _places(text, messages)
    headers = _header(text, spans, 1), _header(text, spans, 2)  # in front of an assistant's message, of a user's
    if headers[0] == headers[1]:
        raise BadInput(
            f"The chat template does not say who speaks: {headers[0]!r} stands in front of messages of the user and of "
            "the assistant alike."
        )
    headers = headers if form.speaker == "assistant" else headers[::-1]  # in front of a reply, of what it answers
    asks = text[spans[-1][1] :].lstrip(" ")
    if headers[0].startswith(asks.strip()) and headers[0] != asks.strip():
        raise BadInput(
            f"The chat template does not open the {form.speaker}'s reply: {headers[0]!r} stands before earlier ones, "
            f"and a prompt ends with {asks!r}. It must write the beginning of a reply at `add_generation_prompt`."
        )
    if form.end is None:
        raise BadInput(
            f"The chat template puts no special token behind a reply, but {headers[1]!r}: the policy could not end its "
            "turn. Put the tokenizer's end-of-turn token there."
        )
    _check_tokens(form, messages, vocab_size)
    role = "the system message is put in front of the first user message" if form.folds_system else "system role kept"
    whole = all(message.content in text for message in messages)
    if form.drops_thoughts:
        history = "thoughts of earlier turns are left out, each prompt is rendered anew"
    elif text.startswith(form.render(messages[: 2 if form.speaker == "assistant" else 1])):
        history = "each prompt continues the last one"
    else:
        history = "earlier turns change; prompts keep their first rendering"
    return "; ".join(
        (
            role,
            "messages verbatim" if whole else "messages without white space at their ends",
            history,
            *(["a reply begins in a thought"] if form.opens_thought else []),
            *(["prompts have the date of the day"] if form.dates else []),
            f"replies end with {tokenizer.convert_ids_to_tokens(form.end)}",
            f"prompts end with {asks!r}",
            f"{len(tokenizer)} tokens of {vocab_size}",
        )
    )


def _content(number: int) -> str:
    return f' {number}0817: "na\u00efve" <b>&amp;</b> {{x}} don\'t  stop\n\n\tDone \u2014 {number} '


def _places(text: str, messages: list[Message]) -> list[tuple[int, int]]:
    """(start, end) of each message in the rendered text, without white space at its ends, but for the system message.

    Its place is free: some templates put it into the last user message.
    """
    spans, done = [], 0
    for number, message in enumerate(messages, start=1):
        content = message.content.strip()
        start = text.find(content, 0 if message.role == "system" else done)
        if start < 0:
            at = text.find(f"{number}0817")
            what = f"changes a message: {content!r} becomes {text[at : at + len(content)]!r}" if at >= 0 else ""
            raise BadInput(
                f"The chat template {what or f'leaves out a message of the role {message.role}'}. A policy would learn "
                "from another conversation than the one that is scored. Mend the template."
            )
        if message.role != "system":
            done = start + len(content)
            spans.append((start, done))
    return spans


def _header(text: str, spans: list[tuple[int, int]], number: int) -> str:
    """What stands in front of a message, from the one before on."""
    return text[spans[number - 1][1] : spans[number][0]].strip()


def _check_tokens(form: ChatFormat, messages: list[Message], vocab_size: int) -> None:
    ids, _ = form.encode(messages)
    if max(ids) >= vocab_size:
        name = form.tokenizer.convert_ids_to_tokens(max(ids))
        raise BadInput(
            f"The chat template makes the token {name} with the id {max(ids)}, and the model has {vocab_size} tokens. "
            "Use the tokenizer files that the model was trained with."
        )
    for token in sorted(form.control.intersection(ids)):
        name = form.tokenizer.convert_ids_to_tokens(token)
        forged, _ = form.encode([*messages[:-1], Message(messages[-1].role, f"a{name}b {name} c")])
        if forged.count(token) > ids.count(token):
            raise BadInput(
                f"A message that spells {name!r} makes that control token: this tokenizer cannot tell it from text."
            )
