"""Any OpenAI-compatible server as a `ChatModel`: `POST base_url/chat/completions`.

A call that fails for a reason that may pass is repeated (`collab.chat.retries`). There are two kinds of such failures:

- Only this call fails: no whole answer in time, 408, 409, 500 or another status above 500, an answer that is no chat
  completion. It is repeated `max_retries` times, and then this call is lost.
- Every call fails: no connection, 429, 502, 503, 529. It is repeated for `give_up_after` seconds. Then the run stops,
  unless the server has answered another call in the meantime.

A request that the server refuses for another reason is not repeated.

All calls run on one event loop in a thread of its own. Rollouts call `asyncio.run` for each batch, and connections and
limits outlive those loops. Answers are read while the caller's loop is busy decoding.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import httpx
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from collab.chat import retries
from collab.chat.base import ChatFailed, ContextFull, Sampling
from collab.chat.budget import Ledger
from collab.chat.cache import ReplyCache, name_of
from collab.chat.completions import Filtered, error_message, expected_prompt, read_reply, request_body
from collab.chat.connection import client_options, scrubbed
from collab.chat.limits import TokenLimit
from collab.chat.retries import Attempts, Failure, Unavailable, retry_after
from collab.config.schema import BudgetConfig, EndpointConfig
from collab.conversation import Message, Reply, Usage
from collab.randomness import RngKey
from collab.util.errors import RunStopped

T = TypeVar("T")

_GRACE = 10.0  # seconds that calls under way get when the run ends
_FOR_EVERYONE = (429, 502, 503, 529)  # the server is overloaded or away; 529 is Anthropic's status for it
_TOO_LONG = re.compile(  # how OpenAI, vLLM, SGLang, llama.cpp, TGI and Anthropic refuse a prompt that they cannot read
    r"context[ _-]?(?:length|size|window)|maximum (?:model|input|allowed) length|(?:prompt|input)s? (?:is|are) too long"
    r"|tokens` \+ `?max_new_tokens",
    re.IGNORECASE,
)
_REFUSED = (401, 402, 403, 404)  # the server would refuse any request of this run


class HttpChatModel:
    """One model at one server, through connections that are kept open.

    Args:
        endpoint: Where and how.
        tell: Gets lines that a person should see while the run goes on (a server that is down, a refusal).
        cache: Stores replies across runs; None stores none.
        ledger: Counts what is spent, and stops calls that the budget does not allow; None counts for this model alone.

    Raises:
        BadInput: The key's variable is not set, or holds what no header can; certificates or proxy cannot be used.
    """

    route = "chat/completions"

    def __init__(
        self,
        endpoint: EndpointConfig,
        tell: Callable[[str], None] = lambda text: None,
        cache: ReplyCache | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.endpoint, self._tell, self._cache = endpoint, tell, cache
        self.ledger = ledger or Ledger(BudgetConfig())
        # A client of httpx for each connection, since its pool goes through all pairs of connections for each call: 40
        # ms of computing with 96 of them. The client that was used last is used next, so few of them are connected.
        limits, options = httpx.Limits(max_connections=1, keepalive_expiry=60), client_options(endpoint)
        self._clients = [httpx.AsyncClient(limits=limits, **options) for _ in range(endpoint.max_concurrency)]
        self._free: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        for client in self._clients:
            self._free.put_nowait(client)
        requests, tokens = endpoint.requests_per_minute, endpoint.tokens_per_minute
        # Evenly, one at a time: a burst on top of the rate would exceed the server's limit.
        self._requests = AsyncLimiter(1, 60 / requests) if requests else None
        self._tokens = TokenLimit(tokens) if tokens else None
        self._refusals: set[str] = set()  # those that were reported
        self._answered = 0.0  # when the server last answered any call, by `time.monotonic`
        self._silence_reported = False  # since then
        self._less_form = 0  # how many ways of asking for a schema the server has refused
        self._guesses_reported = False
        self._closing = False
        self._under_way: set[concurrent.futures.Future[Reply]] = set()

    def __repr__(self) -> str:
        return f"HttpChatModel({self.endpoint.model}@{self.endpoint.base_url})"

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        """One reply to `messages`. The server gets a seed made from `key`; few servers repeat a reply by it.

        When the caller is cancelled (another call failed, the run was stopped), the call goes on: it is paid for, so
        its reply is cached and counted.

        Raises:
            ChatFailed: No reply after all retries, or the server refuses this request.
            RunStopped: The server refuses everything (key, model or credit), or has been down for too long.
        """
        return await self._outcome(self._complete(messages, sampling, key))

    async def _outcome(self, call: Coroutine[Any, Any, Reply]) -> Reply:
        """The result of a call on the HTTP loop. The call goes on when the caller is cancelled."""
        under_way = asyncio.run_coroutine_threadsafe(call, _loop())
        self._under_way.add(under_way)
        under_way.add_done_callback(self._under_way.discard)

        async def result() -> Reply:
            done = asyncio.wrap_future(under_way)
            # Reads the exception of a call that nobody waits for any more: asyncio would log it.
            done.add_done_callback(lambda call: call.cancelled() or call.exception())
            return await asyncio.shield(done)

        return await _on_http_loop(result())

    async def _complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        body = request_body(self.endpoint, messages, sampling, key)
        role = key.role.partition("/")[0] or "other"
        request = name_of(self.endpoint.base_url, body, key)
        if self._cache is not None and (known := self._cache.get(request)):
            self.ledger.of(role).cached += 1
            return known
        most = Usage(expected_prompt(body["messages"]), sampling.max_new_tokens)
        async with self.ledger.room_for(self.endpoint.model, most):
            try:
                reply = await self._with_retries(functools.partial(self._attempt, body, most), role)
            except ChatFailed as error:
                self.ledger.of(role).failed += 1
                if isinstance(error, Filtered):
                    self.ledger.of(role).filtered += 1
                    self.ledger.add(role, self.endpoint.model, error.usage)
                raise
            if self._cache is not None:
                self._cache.put(request, reply)
            assert reply.usage is not None
            self.ledger.add(role, self.endpoint.model, reply.usage)
        return reply

    async def _with_retries(self, attempt: Callable[[], Awaitable[Reply]], role: str) -> Reply:
        attempts = Attempts(self.endpoint)

        def before_retry(state: RetryCallState) -> None:
            self.ledger.of(role).retries += 1
            if attempts.seconds > retries.QUIET and self._answered < attempts.since and not self._silence_reported:
                self._silence_reported = True
                self._tell(
                    f"{self.endpoint.base_url} has failed every call for {attempts.seconds:.0f} s ({attempts.last}). "
                    f"Calls are retried for up to {self.endpoint.give_up_after:g} s (give_up_after)."
                )

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Failure),
            after=attempts.count,
            wait=attempts.wait,
            stop=lambda state: self._closing or attempts.enough(state),
            before_sleep=before_retry,
            reraise=True,
        )
        try:
            reply: Reply = await retrying(attempt)
            return reply
        except Failure:
            raise self._given_up(attempts) from None

    def _given_up(self, attempts: Attempts) -> Exception:
        where = self.endpoint.base_url
        if attempts.last.everyone and self._answered < attempts.since and not self._closing:
            return RunStopped(
                f"{where} has failed every call for {attempts.seconds:.0f} s ({attempts.last}); give_up_after is "
                f"{self.endpoint.give_up_after:g}. Resume the run when the server is back, or raise give_up_after."
            )
        return ChatFailed(f"{where}: no reply after {attempts.failed} attempts; the last: {attempts.last}")

    async def _attempt(self, body: dict[str, Any], most: Usage) -> Reply:
        """One attempt. A server that refuses to be asked for a schema is asked for any JSON, then for a text."""
        client, ways = await self._free.get(), _less_and_less_form(body)
        try:
            for level in range(min(self._less_form, len(ways) - 1), len(ways)):
                response, data = await self._post(client, ways[level], most)
                if response.status_code not in (400, 422) or _TOO_LONG.search(" ".join(error_message(data))):
                    break  # few servers say what they refuse
        finally:
            self._free.put_nowait(client)
        if response.status_code != 200:
            raise self._refusal(response, data)
        reply = self.read(data, body)
        if len(ways) > 1:
            self._less_form = max(self._less_form, level)
        if reply.usage is not None and reply.usage.guessed and not self._guesses_reported:
            self._guesses_reported = True
            self._tell(
                f"{self.endpoint.base_url} does not say how many tokens a call used, or says what cannot be: they are "
                "guessed from the length of the texts, and what is spent is an estimate."
            )
        return reply

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any], most: Usage) -> tuple[httpx.Response, bytes]:
        """What the server answers, without the key; waits for the limits per minute first.

        Raises:
            Unavailable: No whole answer in time.
        """
        endpoint, problem, everyone = self.endpoint, "", False
        if self._closing:
            raise ChatFailed(f"{endpoint.base_url}: the run is being stopped")
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            await self._tokens.take(most.prompt_tokens + most.completion_tokens)
        seconds = endpoint.connect_timeout + endpoint.read_timeout
        try:
            async with asyncio.timeout(seconds):  # those of httpx hold for each part of an answer
                response = await client.post(f"{endpoint.base_url.rstrip('/')}/{self.route}", json=body)
        except TimeoutError:
            problem = f"no whole reply within {seconds:g} s"
        except httpx.RequestError as error:
            problem, everyone = type(error).__name__, isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        # Raised out here, so that it has no httpx exception as its context: that knows the request and its key.
        if problem:
            raise Unavailable(problem, everyone=everyone)
        if response.status_code not in _FOR_EVERYONE:
            self._answered, self._silence_reported = time.monotonic(), False
        return response, scrubbed(response.content, endpoint)

    def read(self, data: bytes, body: dict[str, Any]) -> Reply:
        """The reply in the body of an answer to `body`; see `read_reply`."""
        return read_reply(data, body["messages"])

    def _refusal(self, response: httpx.Response, data: bytes) -> Exception:
        status = response.status_code
        message, code = error_message(data)
        passing = status in (408, 409, 429) or status >= 500
        if passing and code != "insufficient_quota":  # has status 429 too, but waiting does not help
            wait = retry_after(response.headers.get("Retry-After", ""))
            return Failure(f"HTTP {status}{f': {message}' if message else ''}", wait, status in _FOR_EVERYONE)
        text = f"answers HTTP {status}: {message or 'no message'}"
        if status in _REFUSED or passing:
            return RunStopped(f"{self.endpoint.base_url} {text}. Check key, model and account of this endpoint.")
        if _TOO_LONG.search(f"{message} {code}"):
            return ContextFull(f"{self.endpoint.base_url} {text}")
        if text not in self._refusals:
            self._refusals.add(text)
            self._tell(f"{self.endpoint.base_url} {text}")
        return ChatFailed(f"{self.endpoint.base_url} {text}")

    async def close(self) -> None:
        """Wait for the calls that are under way, for `_GRACE` seconds at most; no new one starts."""
        self._closing = True
        await asyncio.to_thread(concurrent.futures.wait, list(self._under_way), _GRACE)
        for call in list(self._under_way):
            call.cancel()
        for client in self._clients:
            await _on_http_loop(client.aclose())


def _less_and_less_form(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A request for a schema, then without the schema, then for a text; the request alone if it is for a text."""
    plain = {name: value for name, value in body.items() if name not in ("response_format", "tools", "tool_choice")}
    if "response_format" in body:
        return [body, plain | {"response_format": {"type": "json_object"}}, plain]
    return [body, plain] if "tools" in body else [body]


async def _on_http_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the HTTP loop, from any other loop; it is cancelled together with the caller."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _loop()))


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="http", daemon=True).start()
    return loop
