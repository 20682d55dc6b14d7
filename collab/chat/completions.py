"""The format of OpenAI's chat completions, apart from transport: the request, the reply in an answer, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from collab.chat.base import ChatFailed, Sampling
from collab.chat.retries import Failure
from collab.config.schema import EndpointConfig
from collab.conversation import Message, Reply, Usage
from collab.randomness import RngKey

_THINKING = re.compile(r"\A\s*(?:<think>)?(.*?)</think>", re.DOTALL)


class Filtered(ChatFailed):
    """The server's content filter removed the reply, which is paid for all the same.

    Args:
        usage: Tokens that the server counted.
    """

    def __init__(self, usage: Usage) -> None:
        super().__init__("the server's content filter removed the reply (finish_reason: content_filter)")
        self.usage = usage


def request_body(
    endpoint: EndpointConfig, messages: Sequence[Message], sampling: Sampling, key: RngKey
) -> dict[str, Any]:
    """The request. It has every sampling field, since a server has its own defaults for those that are missing."""
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


def read_reply(data: bytes, messages: Sequence[dict[str, str]]) -> Reply:
    """The reply in the body of a chat completion. The content type in its header does not matter.

    Args:
        data: The body.
        messages: Messages of the request; their tokens are guessed if the server does not count them.

    Raises:
        Failure: The body is no chat completion, or its text is no Unicode.
        Filtered: The server's content filter removed the reply.
    """
    try:
        body = json.loads(data)
        choice = body["choices"][0]
        message = choice["message"]
        reason = choice.get("finish_reason")
        content = _content(message["content"], reason)
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        content.encode(), thought.encode()  # half a surrogate pair is valid JSON, but cannot be written to a file
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failure(f"an answer that is no chat completion ({data[:40]!r})") from None
    text, inside = split_reasoning(content)
    reasoning = "\n".join(part.strip() for part in (thought, inside) if part.strip())
    usage = _usage(body.get("usage"), text, reasoning, messages)
    if reason == "content_filter":
        raise Filtered(usage)
    return Reply(text, finish_reason="length" if reason == "length" else "stop", usage=usage, reasoning=reasoning)


def _content(content: Any, reason: Any) -> str:
    """The text of a message, which may be a list of parts, or null after a content filter."""
    if isinstance(content, list):
        return "".join([part["text"] for part in content if part["type"] == "text"])
    if not isinstance(content, str) and reason != "content_filter":
        raise TypeError
    return content or ""


def split_reasoning(content: str) -> tuple[str, str]:
    """(reply, reasoning) of a text that may begin with `<think>...</think>`.

    If the chat template has opened the tag, the text has only its end. If the reply was cut before the end, all of it
    is reasoning.
    """
    if match := _THINKING.match(content):
        return content[match.end() :].strip(), match[1].strip()
    if content.lstrip().startswith("<think>"):
        return "", content.strip().removeprefix("<think>").strip()
    return content.strip(), ""


def _usage(counts: Any, text: str, reasoning: str, messages: Sequence[dict[str, str]]) -> Usage:
    """What the server counted, and guesses for counts that are missing or impossible."""
    prompt = _count(counts, "prompt_tokens")
    completion = _count(counts, "completion_tokens")
    thought = _count(counts, "completion_tokens_details", "reasoning_tokens")
    if prompt is None:
        prompt = expected_prompt(messages)
    if completion is None:
        completion = guessed_tokens(text) + guessed_tokens(reasoning)
    if thought is None or (reasoning and not thought):  # guessed by its share of the characters
        thought = round(completion * len(reasoning) / max(1, len(reasoning) + len(text)))
    return Usage(prompt, completion, min(thought, completion))


def _count(node: Any, *names: str) -> int | None:
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, int) and not isinstance(node, bool) and node >= 0 else None


def error_message(data: bytes) -> tuple[str, str]:
    """(message, code) of an error's body, the message short and on one line; "" for what is missing."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return "", ""  # a page of HTML says no more than its status
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return " ".join(str(error).split())[:300], ""
    message = error.get("message") or error.get("detail") or ""
    return " ".join(str(message).split())[:300], str(error.get("code") or "")
