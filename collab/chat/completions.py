"""The format of OpenAI's chat completions, apart from transport: the request, the reply in an answer, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from collab.chat.base import ChatFailed, Sampling
from collab.chat.retries import Failure
from collab.config.schema import EndpointConfig
from collab.conversation import Message, Reply, Usage
from collab.randomness import RngKey

_THINKING = re.compile(r"\A\s*(?:<think>)?(.*?)</think>", re.DOTALL)


class Filtered(ChatFailed):
    """The server's content filter took the reply away; it is paid for all the same.

    Args:
        usage: Tokens that the server counted.
    """

    def __init__(self, usage: Usage) -> None:
        super().__init__("the server's content filter took the reply away (finish_reason: content_filter)")
        self.usage = usage


def request_body(
    endpoint: EndpointConfig, messages: Sequence[Message], sampling: Sampling, key: RngKey
) -> dict[str, Any]:
    """The request, with every sampling field: a server has its own defaults for those that are missing."""
    fields: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed_of(key),
    }
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.response_format == "json":
        fields["response_format"] = {"type": "json_object"}
    return {name: value for name, value in (fields | endpoint.extra).items() if name not in endpoint.omit}


def seed_of(key: RngKey) -> int:
    """A seed for servers, 31 bits: a function of the whole key."""
    return int.from_bytes(key.digest(4), "little") >> 1


def guessed_tokens(text: str) -> int:
    """A guess of a text's tokens: one for four characters of ASCII, and one for each other character."""
    ascii = len(text.encode("ascii", "ignore"))
    return -(-ascii // 4) + len(text) - ascii


def expected_prompt(messages: Sequence[dict[str, str]]) -> int:
    """A guess of a prompt's tokens: those of its messages, and four for the frame of each."""
    return sum(guessed_tokens(message["content"]) + 4 for message in messages)


def read_reply(
    data: bytes, messages: Sequence[dict[str, str]], warn: Callable[[str], None] = lambda text: None
) -> Reply:
    """The reply in the body of a chat completion. The content type in its header does not matter.

    Args:
        data: The body.
        messages: Messages of the request; their tokens are guessed if the server does not count them.
        warn: Gets a line about impossible token counts.

    Raises:
        Failure: The body is no chat completion, or its text is no Unicode.
        Filtered: The server's content filter took the reply away.
    """
    try:
        found = json.loads(data)
        choice = found["choices"][0]
        said = choice["message"]
        reason = choice.get("finish_reason")
        content = _text(said["content"], reason)
        thought = said.get("reasoning_content") or said.get("reasoning") or ""
        content.encode(), thought.encode()  # half a surrogate pair is valid JSON, but cannot be written to a file
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failure(f"an answer that is no chat completion ({data[:40]!r})") from None
    text, inside = split_reasoning(content)
    reasoning = "\n".join(part.strip() for part in (thought, inside) if part.strip())
    usage = _usage(found.get("usage"), text, reasoning, messages, warn)
    if reason == "content_filter":
        raise Filtered(usage)
    return Reply(text, finish_reason="length" if reason == "length" else "stop", usage=usage, reasoning=reasoning)


def _text(content: Any, reason: Any) -> str:
    """The text of a reply's content, which may be a list of parts, and null where a filter took it away."""
    if isinstance(content, list):
        return "".join([part["text"] for part in content if part["type"] == "text"])
    if not isinstance(content, str) and reason != "content_filter":
        raise TypeError
    return content or ""


def split_reasoning(content: str) -> tuple[str, str]:
    """(reply, reasoning) of a text that may begin with `<think>...</think>`.

    If the template has opened the tag, only its end is in the text. If the reply was cut before the end, all of it is
    reasoning.
    """
    if found := _THINKING.match(content):
        return content[found.end() :].strip(), found[1].strip()
    if content.lstrip().startswith("<think>"):
        return "", content.strip().removeprefix("<think>").strip()
    return content.strip(), ""


def _usage(
    counted: Any, text: str, reasoning: str, messages: Sequence[dict[str, str]], warn: Callable[[str], None]
) -> Usage:
    """What the server counted; guesses for missing and impossible counts."""
    counted = counted if isinstance(counted, dict) else {}
    details = counted.get("completion_tokens_details")
    given = {name: counted.get(name) for name in ("prompt_tokens", "completion_tokens")}
    given["reasoning_tokens"] = details.get("reasoning_tokens") if isinstance(details, dict) else None
    wrong = {name: count for name, count in given.items() if count is not None and not _is_count(count)}
    if wrong:
        told = ", ".join(f"{name} {str(count)[:40]}" for name, count in wrong.items())
        warn(f"counts tokens as no server can ({told}). Such counts are replaced by guesses.")
    prompt, completion, thought = (None if name in wrong else count for name, count in given.items())
    if prompt is None:
        prompt = expected_prompt(messages)
    if completion is None:
        completion = guessed_tokens(text) + guessed_tokens(reasoning)
    if thought is None or (reasoning and not thought):  # by its share of the characters, then
        thought = round(completion * len(reasoning) / max(1, len(reasoning) + len(text)))
    return Usage(prompt, completion, min(thought, completion))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def error_message(data: bytes) -> tuple[str, str]:
    """(message, code) of an error's body, the message short and on one line; "" for what is missing."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return "", ""  # a page of HTML says no more than its status
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return " ".join(str(error).split())[:300], ""
    message = error.get("message") or error.get("detail") or ""
    return " ".join(str(message).split())[:300], str(error.get("code") or "")
