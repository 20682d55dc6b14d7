"""The format of OpenAI's chat completions, apart from transport: the request, the reply in an answer, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from collab.chat.base import ChatFailed, Sampling
from collab.chat.retries import Failure
from collab.chat.thoughts import split_thought
from collab.config.schema import EndpointConfig
from collab.conversation import Message, Reply, Usage, guessed_tokens
from collab.randomness import RngKey

_MOST_TOKENS = 10**7  # of one call: no model has so long a context

# Values of `finish_reason` in lower case, by what became of the reply. After any other value it is whole.
_CUT = {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded"}
_FILTERED = {
    *("content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content", "spii"),
    *("guardrail_intervened", "refusal"),
}
_BROKEN = {
    *("error", "abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource"),
    "malformed_function_call",
}


class Filtered(ChatFailed):
    """The server's content filter removed the reply, which is paid for all the same.

    Args:
        usage: Tokens that the server counted.
        reason: The server's `finish_reason`.
    """

    def __init__(self, usage: Usage, reason: str = "content_filter") -> None:
        super().__init__(f"the server's content filter removed the reply (finish_reason: {reason})")
        self.usage, self.reason = usage, reason


def request_body(
    endpoint: EndpointConfig, messages: Sequence[Message], sampling: Sampling, key: RngKey
) -> dict[str, Any]:
    """The request. It has every sampling field, since a server has its own defaults for those that are missing."""
    fields: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        endpoint.limit_field: sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed_of(key),
    }
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.schema:
        fields |= schema_fields(sampling.schema, endpoint.schema_as)
    return {name: value for name, value in (fields | endpoint.extra).items() if name not in endpoint.omit}


def schema_fields(schema: str, way: str = "response_format") -> dict[str, Any]:
    """The request fields that ask for a reply of this schema, as a format or as the arguments of a tool.

    Without bounds on lengths, since OpenAI refuses them.
    """

    def unbounded(node: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in node.items() if name not in ("minLength", "maxLength")}

    form = json.loads(schema, object_hook=unbounded)
    if way == "tool":
        tool = {"name": "answer", "description": "The answer, in its form.", "parameters": form}
        choice = {"type": "function", "function": {"name": "answer"}}
        return {"tools": [{"type": "function", "function": tool}], "tool_choice": choice}
    named = {"name": "answer", "strict": True, "schema": form}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def seed_of(key: RngKey) -> int:
    """A seed for servers, 31 bits: a function of the whole key."""
    return int.from_bytes(key.digest(4), "little") >> 1


def expected_prompt(messages: Sequence[dict[str, str]]) -> int:
    """A guess of a prompt's tokens: those of its messages, and four for the frame of each."""
    return sum(guessed_tokens(message["content"]) + 4 for message in messages)


def read_reply(data: bytes, messages: Sequence[dict[str, str]]) -> Reply:
    """The reply in the body of a chat completion. The content type in its header does not matter.

    Args:
        data: The body.
        messages: Messages of the request; their tokens are guessed if the server does not count them.

    Raises:
        Failure: The body is no chat completion, its text is no Unicode, or the server broke the reply off.
        Filtered: The server's content filter removed the reply.
    """
    try:
        choice = (body := json.loads(data))["choices"][0]
        reason = str(choice.get("finish_reason") or "stop").lower()
        content, thought = _content(choice["message"], reason)
        content.encode(), thought.encode()  # half a surrogate pair is valid JSON, but cannot be written to a file
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failure(f"an answer that is no chat completion ({data[:40]!r})") from None
    text, inside = split_thought(content)
    reasoning = "\n".join(part.strip() for part in (thought, inside) if part.strip())
    usage = usage_of(body.get("usage"), text, reasoning, messages)
    if reason in _FILTERED:
        raise Filtered(usage, reason)
    if reason in _BROKEN:
        raise Failure(f"a reply that the server broke off (finish_reason: {reason})")
    return Reply(text, finish_reason="length" if reason in _CUT else "stop", usage=usage, reasoning=reasoning)


def read_counts(data: str) -> Any:
    """`usage` in a chunk of a streamed answer: the last one has it if `stream_options` asks for it. Else None."""
    try:
        return json.loads(data).get("usage")
    except (ValueError, AttributeError, RecursionError):
        return None


def read_chunk(data: str) -> tuple[str, str, str | None]:
    """(text, reasoning, finish reason) that a chunk of a streamed answer adds; the reason is None before the last.

    Raises:
        Failure: It is no chunk of a chat completion, or the server broke the reply off.
        Filtered: The server's content filter removed the reply.
    """
    try:
        body = json.loads(data)
        if not body["choices"]:  # the chunk with the usage
            return "", "", None
        choice = body["choices"][0]
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking")
        parts = [*_parts(thought, thought=True), *_parts(delta.get("content")), *_parts(delta.get("refusal"))]
        text, reasoning = ("".join(said for inside, said in parts if inside == kind) for kind in (False, True))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        message = error_message(data.encode(errors="replace"))[0]
        raise Failure(message or f"a chunk that is of no chat completion ({data[:40]!r})") from None
    reason = choice.get("finish_reason")
    if str(reason).lower() in _FILTERED:
        raise Filtered(Usage(0, 0), str(reason))
    if str(reason).lower() in _BROKEN:
        raise Failure(f"a reply that the server broke off (finish_reason: {reason})")
    return text, reasoning, None if reason is None else "length" if str(reason).lower() in _CUT else "stop"


def _content(message: Any, reason: str) -> tuple[str, str]:
    """(content, reasoning) of a message.

    The content is the arguments of a tool that was called, a text, a part, or a list of parts. It may be missing if the
    model declined in `refusal`, if a filter removed it, or if the reply was cut while the model was reasoning.
    """
    calls = message.get("tool_calls")
    content = calls[0]["function"]["arguments"] if calls else message.get("content")
    if calls and isinstance(content, dict):  # of servers that parse them
        content = json.dumps(content, ensure_ascii=False)
    if content is None:
        content = message.get("refusal")
    thought = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
    parts = [*_parts(thought, thought=True), *_parts(content)]
    texts = ["".join(text for inside, text in parts if inside == kind) for kind in (False, True)]
    if content is None:
        whole = reason in _FILTERED | _BROKEN or (reason in _CUT and texts[1] != "")
    else:
        whole = isinstance(content, str) or not content or parts != []
        whole = whole and isinstance(content, str | list | dict)
    if not whole:
        raise TypeError
    return texts[0], texts[1]


def _parts(node: Any, thought: bool = False) -> Iterator[tuple[bool, str]]:
    """The texts in a message's content, each with whether it is reasoning. Parts of other kinds are left out."""
    if isinstance(node, str):
        yield thought, node
    elif isinstance(node, list):
        for part in node:
            yield from _parts(part, thought)
    elif isinstance(node, dict):
        thought = thought or any(word in str(node.get("type")) for word in ("think", "reason"))
        name = next((name for name in ("text", "thinking", "reasoning", "refusal", "value") if name in node), None)
        if name is not None:
            yield from _parts(node[name], thought)


def usage_of(counts: Any, text: str, reasoning: str, messages: Sequence[dict[str, str]]) -> Usage:
    """What a server counted, and guesses for counts that are missing or impossible.

    Args:
        counts: `usage` of its answer, whatever that is.
        text: Of the reply.
        reasoning: Before it.
        messages: Of the request.
    """
    prompt = _count(counts, "prompt_tokens", at_least=1)  # each message has a frame
    completion = _count(counts, "completion_tokens", at_least=1 if text or reasoning else 0)
    thought = _count(counts, "completion_tokens_details", "reasoning_tokens")
    guessed = prompt is None or completion is None
    if prompt is None:
        prompt = expected_prompt(messages)
    if completion is None:
        completion = guessed_tokens(text) + guessed_tokens(reasoning)
    if thought is None or (reasoning and not thought) or (text and thought >= completion):
        # Guessed by its share of the characters.
        thought = round(completion * len(reasoning) / max(1, len(reasoning) + len(text)))
    return Usage(prompt, completion, min(thought, completion), guessed)


def _count(node: Any, *names: str, at_least: int = 0) -> int | None:
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, int | float) or isinstance(node, bool) or not at_least <= node <= _MOST_TOKENS:
        return None
    return int(node)  # some servers write 12.0


def error_message(data: bytes) -> tuple[str, str]:
    """(message, code) of an error's body, the message short and on one line; "" for what is missing."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return "", ""  # a page of HTML says no more than its status
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return _line(error), ""
    return _line(error.get("message") or error.get("detail") or ""), _line(error.get("code") or "")


def _line(value: Any) -> str:
    """A value of a server as one short line that can be printed: JSON allows half a surrogate pair."""
    return " ".join(str(value).split())[:300].encode(errors="replace").decode()
