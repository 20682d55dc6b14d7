"""A server's reply while it is being written, for a person who reads along.

`collab.chat.http` is for runs: it repeats a call for minutes, and stores and counts replies. Here a person waits. A
call that fails before its first word is repeated once; then the person is told. What replies cost is counted by the
same ledger as in runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from collab.chat.base import ChatFailed, Sampling
from collab.chat.budget import Ledger
from collab.chat.completions import (
    Filtered,
    error_message,
    expected_prompt,
    read_chunk,
    read_counts,
    read_reply,
    request_body,
    usage_of,
)
from collab.chat.connection import client_options, scrubbed
from collab.chat.retries import Failure
from collab.chat.thoughts import THINK, split_thought
from collab.config.schema import BudgetConfig, EndpointConfig
from collab.conversation import FinishReason, Message, Reply, Usage
from collab.randomness import RngKey

Tell = Callable[[str], None]

_WAIT = 1.0  # seconds before a call is repeated


class StreamingModel:
    """One model at one server.

    Args:
        endpoint: Where and how; `model` must be named (`collab.chat.probe.served_model`).
        ledger: Counts what is spent, and stops calls that its budget does not allow; None counts for this model alone.
        role: Under which name the ledger counts.

    Raises:
        BadInput: As `collab.chat.connection.client_options`.
    """

    def __init__(self, endpoint: EndpointConfig, ledger: Ledger | None = None, role: str = "policy") -> None:
        self.endpoint, self.ledger, self._role = endpoint, ledger or Ledger(BudgetConfig()), role
        limits = httpx.Limits(max_connections=endpoint.max_concurrency)
        self._client = httpx.AsyncClient(limits=limits, **client_options(endpoint))

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey, tell: Tell) -> Reply:
        """One reply; `tell` gets its text so far, again and again, without the thought before it.

        Raises:
            ChatFailed: No whole reply in two attempts, or the server refuses the request.
            BudgetExhausted: The reply could cost more than the budget allows.
        """
        body = request_body(self.endpoint, messages, sampling, key) | {"stream": True}
        if self.ledger.capped and "stream_options" not in self.endpoint.omit:
            body["stream_options"] = {"include_usage": True}  # some servers that cost nothing refuse it
        most = Usage(expected_prompt(body["messages"]), sampling.max_new_tokens)
        async with self.ledger.room_for(self.endpoint.model, most):
            try:
                reply = await self._in_two_attempts(body, tell)
            except ChatFailed as error:
                self.ledger.of(self._role).failed += 1
                if isinstance(error, Filtered):
                    self.ledger.of(self._role).filtered += 1
                    self.ledger.add(self._role, self.endpoint.model, error.usage)
                raise
            assert reply.usage is not None
            self.ledger.add(self._role, self.endpoint.model, reply.usage)
        return reply

    async def _in_two_attempts(self, body: dict[str, Any], tell: Tell) -> Reply:
        told = False

        def tell_and_note(text: str) -> None:
            nonlocal told
            told = told or text != ""
            tell(text)

        problem = ""
        for attempt in range(2):
            if attempt:
                await asyncio.sleep(_WAIT)
            seconds = self.endpoint.connect_timeout + self.endpoint.read_timeout
            try:
                async with asyncio.timeout(seconds):
                    return await self._attempt(body, tell_and_note)
            except TimeoutError:
                problem = f"no whole reply within {seconds:g} s"
            except httpx.HTTPError as error:
                problem = type(error).__name__
            except Failure as error:
                problem = str(error)
            if told:
                break
        # Raised out here, so that it has no httpx exception as its context: that knows the request and its key.
        raise ChatFailed(f"{self.endpoint.base_url}: {problem}")

    async def _attempt(self, body: dict[str, Any], tell: Tell) -> Reply:
        url = f"{self.endpoint.base_url.rstrip('/')}/chat/completions"
        async with self._client.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                said = error_message(scrubbed(await response.aread(), self.endpoint))[0]
                text = f"HTTP {response.status_code}: {said or 'no message'}"
                if response.status_code in (408, 409, 429) or response.status_code >= 500:
                    raise Failure(text)
                raise ChatFailed(f"{self.endpoint.base_url} {text}")
            if "text/event-stream" not in response.headers.get("content-type", ""):  # it does not stream
                return read_reply(scrubbed(await response.aread(), self.endpoint), body["messages"])
            return await self._read(response, tell, body["messages"])

    async def _read(self, response: httpx.Response, tell: Tell, messages: Sequence[dict[str, str]]) -> Reply:
        text = reasoning = ""
        finish: str | None = None
        counts: Any = None
        async for line in response.aiter_lines():
            if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
                continue
            chunk = scrubbed(data.encode(), self.endpoint).decode()
            counts = read_counts(chunk) or counts
            try:
                more, thought, reason = read_chunk(chunk)
            except Filtered as error:  # what was written before it is paid for
                raise Filtered(usage_of(counts, text, reasoning, messages), error.reason) from None
            text, reasoning, finish = text + more, reasoning + thought, reason or finish
            if more:
                tell(_said(_whole(text)))
        if finish is None:
            raise Failure("a reply that ends without its end")
        reply, inside = split_thought(_whole(text))
        ended: FinishReason = "length" if finish == "length" else "stop"
        usage = usage_of(counts, text, reasoning, messages)
        return Reply(reply, finish_reason=ended, usage=usage, reasoning=_whole(reasoning + inside))

    async def close(self) -> None:
        await self._client.aclose()


def _whole(text: str) -> str:
    """A text in which surrogate pairs that chunks cut are whole; half a pair, which cannot be stored, is replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _said(text: str) -> str:
    """What a reply says so far: without a thought, and without the beginning of a mark that may open one."""
    start = text.lstrip()
    return "" if THINK[0].startswith(start) else split_thought(text)[0]
