"""Any OpenAI-compatible server as a `ChatModel`: `POST base_url/chat/completions`.

A call that fails for a reason that may pass (no connection, no answer in time, 408, 409, 429, 5xx, an answer that is
no chat completion) is made again, after a wait drawn from 0 to twice the last one's bound (exponential backoff with
full jitter), or as long as `Retry-After` says. Other refusals are told once and not repeated. Where most calls fail,
a `Breaker` holds all of them and lets one at a time try.

All of it runs on one event loop in a thread of its own: rollouts call `asyncio.run` for each batch, and connections,
limits and the breaker outlive those loops; and servers are heard while the caller's loop is busy decoding.

The retry loop is written out here because the known libraries draw their jitter from Python's global random state,
which the run has seeded: how often a server fails must not change anything else.

The key is looked up in its environment variable for each request and kept in no object; whatever a server says is
searched for it before anyone else gets to see it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import email.utils
import functools
import hashlib
import itertools
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, TypeVar

import httpx

from collab.chat.base import ChatFailed, Sampling
from collab.chat.budget import Ledger
from collab.chat.cache import ReplyCache, name_of
from collab.chat.limits import Breaker, Failure, PerMinute
from collab.config.schema import BudgetConfig, EndpointConfig
from collab.conversation import Message, Reply, Usage
from collab.randomness import RngKey
from collab.util.errors import BadInput, RunStopped

T = TypeVar("T")

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds: bounds of the first wait before a retry, and of any
_LONGEST_RETRY_AFTER = 3600.0  # seconds; a server that asks for more is asked again after that
_BODY_LIMIT = 2**20  # bytes of an answer that are read at least
_BYTES_PER_TOKEN = 64  # of an answer, escapes and reasoning included: what is longer is no reply to this request
_GRACE = 10.0  # seconds that calls under way get when the run ends
_POOL = 8  # connections that one client of httpx looks after
_REAL_KEY = 12  # characters from which on a key is taken for a secret in what a server says
_REFUSED = (401, 402, 403, 404)  # nothing that this run could ask would be answered


class HttpChatModel:
    """One model at one server, through connections that are kept open.

    Args:
        endpoint: Where and how.
        tell: Gets what a person should know while the run goes on (a pause, a refusal), a line each.
        cache: Replies that were had before; None keeps none.
        ledger: Counts what is spent, and holds what the budget does not allow; None counts for itself.

    Raises:
        BadInput: The key's variable is not set, or holds what no header can.
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
        api_key(endpoint)
        # What httpx logs is a line for each call.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        # One pool of httpx goes through all pairs of its connections for each request: with 96 of them, 50 ms. So they
        # are shared out to small pools. The last one that was given back is taken next, which keeps few busy.
        most = endpoint.max_concurrency
        limits = httpx.Limits(max_connections=_POOL, max_keepalive_connections=_POOL, keepalive_expiry=60)
        timeout = httpx.Timeout(endpoint.read_timeout, connect=endpoint.connect_timeout, pool=None)
        context = httpx.create_ssl_context()
        self._pools = [
            httpx.AsyncClient(auth=BearerFromEnvironment(endpoint), timeout=timeout, limits=limits, verify=context)
            for _ in range(-(-most // _POOL))
        ]
        self._free = (self._pools * _POOL)[:most]  # a pool once for each of its connections
        self._slots = asyncio.Semaphore(most)
        self._requests = PerMinute(endpoint.requests_per_minute)
        self._tokens = PerMinute(endpoint.tokens_per_minute)
        self._breaker = Breaker(endpoint.base_url, endpoint.give_up_after, tell)
        self._jitter = random.Random()
        self._told: set[str] = set()
        self._json_mode = True  # until the server refuses it
        self._closing = False
        self._under_way: set[concurrent.futures.Future[Reply]] = set()

    def __repr__(self) -> str:
        return f"HttpChatModel({self.endpoint.model}@{self.endpoint.base_url})"

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        """One reply to `messages`. A server takes a seed from `key` and promises little for it.

        A call whose caller has gone (another one failed, the run was stopped) goes on all the same: it is paid for, and
        its reply is kept in the cache and counted.

        Raises:
            ChatFailed: No reply after all retries, or the server refuses this request.
            RunStopped: The server refuses everything: key, model or credit.
        """
        return await self._outcome(self._complete(messages, sampling, key))

    async def _outcome(self, call: Coroutine[Any, Any, Reply]) -> Reply:
        under_way = asyncio.run_coroutine_threadsafe(call, _loop())
        self._under_way.add(under_way)
        under_way.add_done_callback(self._under_way.discard)
        return await outcome(under_way)

    async def _complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        body, role = self.body(messages, sampling, key), key.role.partition("/")[0] or "other"
        request = name_of(self.endpoint.base_url, body, key)
        if self._cache is not None and (known := self._cache.get(request)):
            self.ledger.of(role).cached += 1
            return known
        most = Usage(expected_prompt(body["messages"]), sampling.max_new_tokens)
        async with self.ledger.room_for(self.endpoint.model, most):
            try:
                reply = await self._with_retries(body, most, role)
            except ChatFailed:
                self.ledger.of(role).failed += 1
                raise
            if self._cache is not None:
                self._cache.put(request, reply)
            assert reply.usage is not None
            self.ledger.add(role, self.endpoint.model, reply.usage)
        return reply

    async def _with_retries(self, body: dict[str, Any], most: Usage, role: str) -> Reply:
        failure, plain = Failure(""), {name: value for name, value in body.items() if name != "response_format"}
        body, refused = body if self._json_mode else plain, False
        for attempt in itertools.count():
            try:
                reply = await self._breaker.run(functools.partial(self._attempt, body, most))
                self._json_mode = self._json_mode and not refused
                return reply
            except _NoJsonMode:
                body, refused = plain, True
                continue
            except Failure as error:
                failure = error
            if attempt == self.endpoint.max_retries or self._closing:
                break
            self.ledger.of(role).retries += 1
            bound = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
            await asyncio.sleep(failure.retry_after + self._jitter.uniform(0, bound))
        raise ChatFailed(f"{self.endpoint.base_url}: no reply after {attempt + 1} attempts; the last: {failure}")

    def body(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> dict[str, Any]:
        """The request, with every sampling field: a server would put defaults of its own in place of those left out."""
        endpoint = self.endpoint
        fields: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            endpoint.length_field: sampling.max_new_tokens,
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

    async def _attempt(self, body: dict[str, Any], most: Usage) -> Reply:
        endpoint = self.endpoint
        limit = max(_BODY_LIMIT, _BYTES_PER_TOKEN * most.completion_tokens)
        problem = ""
        async with self._slots:
            if self._closing:
                raise ChatFailed(f"{endpoint.base_url}: the run is being stopped")
            await self._requests.take(1)
            taken = await self._tokens.take(most.prompt_tokens + most.completion_tokens)
            pool = self._free.pop()
            try:
                async with asyncio.timeout(endpoint.connect_timeout + endpoint.read_timeout):
                    url = f"{endpoint.base_url.rstrip('/')}/{self.route}"
                    async with pool.stream("POST", url, json=body) as response:
                        data = await _read(response, limit)
            except TimeoutError:
                problem = f"no whole reply within {endpoint.connect_timeout + endpoint.read_timeout:g} s"
            except httpx.RequestError as error:
                problem = type(error).__name__
            finally:
                self._free.append(pool)
        # Raised out here, so that no httpx exception, which knows its request, hangs on ours.
        if problem:
            raise Failure(problem)
        if response.status_code == 400 and "response_format" in body:  # few servers say what they refuse
            raise _NoJsonMode
        if response.status_code != 200:
            raise self._refusal(response, data)
        reply = self.read(scrubbed(data, endpoint), body)
        assert reply.usage is not None
        taken.amount = reply.usage.prompt_tokens + reply.usage.completion_tokens
        return reply

    def read(self, data: bytes, body: dict[str, Any]) -> Reply:
        """The reply in the body of an answer to `body`; see `read_reply`."""
        return read_reply(data, body["messages"])

    def _refusal(self, response: httpx.Response, data: bytes) -> Exception:
        status = response.status_code
        message, code = error_message(scrubbed(data, self.endpoint))
        passing = status in (408, 409, 429) or status >= 500
        if passing and code != "insufficient_quota":  # 429 as well, and no waiting helps
            return Failure(f"HTTP {status}{f': {message}' if message else ''}", retry_after(response))
        text = f"{self.endpoint.base_url} answers HTTP {status}: {message or 'no message'}"
        if status in _REFUSED or passing:
            return RunStopped(f"{text}. Check key, model and account of this endpoint.")
        if text not in self._told:
            self._told.add(text)
            self._tell(text)
        return ChatFailed(text)

    async def close(self) -> None:
        """Wait for the calls that are under way, for `_GRACE` seconds at most; none is begun any more."""
        self._closing = True
        await asyncio.to_thread(concurrent.futures.wait, list(self._under_way), _GRACE)
        for call in list(self._under_way):
            call.cancel()
        for pool in self._pools:
            await on_http_loop(pool.aclose())


class _NoJsonMode(ChatFailed):
    """The server may not know `response_format`."""


class BearerFromEnvironment(httpx.Auth):
    """Puts the key of an endpoint on each request."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint = endpoint

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if key := api_key(self.endpoint):
            request.headers["Authorization"] = f"Bearer {key}"
        yield request


def api_key(endpoint: EndpointConfig) -> str:
    """The key, "" where none is sent. Never keep what this returns.

    Raises:
        BadInput: The variable is not set, or holds what no header can.
    """
    if endpoint.key_env is None:
        return ""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise BadInput(
            f"The environment variable {endpoint.key_env} is not set, and {endpoint.base_url} takes its key from "
            f"there. Set it (export {endpoint.key_env}=...), or name another one in key_env; null sends no key."
        )
    if not (key.isascii() and key.isprintable()):
        raise BadInput(
            f"The environment variable {endpoint.key_env} holds characters that cannot be sent: a key is printable "
            "ASCII. Set it again."
        )
    return key


def scrubbed(data: bytes, endpoint: EndpointConfig) -> bytes:
    """What a server said, without the key that it may have quoted; a word like "EMPTY" is a key for show."""
    key = api_key(endpoint).encode()
    return data.replace(key, b"[key]") if len(key) >= _REAL_KEY else data


def seed_of(key: RngKey) -> int:
    """A seed for servers, 31 bits: a function of the whole key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "little") >> 1


def guessed_tokens(text: str) -> int:
    """About how many tokens a text has where nobody counts: four characters each, of ASCII; else one."""
    ascii = len(text.encode("ascii", "ignore"))
    return -(-ascii // 4) + len(text) - ascii


def expected_prompt(messages: Sequence[dict[str, str]]) -> int:
    """Tokens of a prompt, guessed: those of its messages, and four for the frame of each."""
    return sum(guessed_tokens(message["content"]) + 4 for message in messages)


async def _read(response: httpx.Response, limit: int) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > limit:
            raise Failure(f"an answer of more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


# --- what a server says ----------------------------------------------------------------------------------------------

_THINKING = re.compile(r"\A\s*(?:<think>)?(.*?)</think>", re.DOTALL)


def read_reply(data: bytes, messages: Sequence[dict[str, str]]) -> Reply:
    """The reply in the body of a chat completion. What the body is decides, not what its header calls it.

    Raises:
        Failure: It is no chat completion with a text that can be written down.
    """
    try:
        found = json.loads(data)
        choice = found["choices"][0]
        said = choice["message"]
        content = said["content"]
        thought = said.get("reasoning_content") or said.get("reasoning") or ""
        content.encode(), thought.encode()  # half a surrogate pair is JSON, and nothing that a file could hold
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failure(f"an answer that is no chat completion ({data[:40]!r})") from None
    text, inside = split_reasoning(content)
    reasoning = "\n".join(part.strip() for part in (thought, inside) if part.strip())
    usage = _usage(found.get("usage"), text, reasoning, messages)
    cut = choice.get("finish_reason") == "length"
    return Reply(text, finish_reason="length" if cut else "stop", usage=usage, reasoning=reasoning)


def split_reasoning(content: str) -> tuple[str, str]:
    """(reply, reasoning) of a text that may begin with `<think>...</think>`.

    Where the template has opened the tag, only its end is in the text; where the reply was cut before the end, all of
    it is reasoning.
    """
    if found := _THINKING.match(content):
        return content[found.end() :].strip(), found[1].strip()
    if content.lstrip().startswith("<think>"):
        return "", content.strip().removeprefix("<think>").strip()
    return content.strip(), ""


def _usage(counted: Any, text: str, reasoning: str, messages: Sequence[dict[str, str]]) -> Usage:
    counted = counted if isinstance(counted, dict) else {}
    prompt, completion = counted.get("prompt_tokens"), counted.get("completion_tokens")
    if not isinstance(prompt, int):
        prompt = expected_prompt(messages)
    if not isinstance(completion, int):
        completion = guessed_tokens(text) + guessed_tokens(reasoning)
    details = counted.get("completion_tokens_details")
    thought = details.get("reasoning_tokens") if isinstance(details, dict) else None
    if not isinstance(thought, int) or (reasoning and not thought):  # by its share of the characters, then
        thought = round(completion * len(reasoning) / max(1, len(reasoning) + len(text)))
    return Usage(prompt, completion, min(thought, completion))


def error_message(data: bytes) -> tuple[str, str]:
    """(message, code) of an error's body, the message short and on one line; "" for what it does not have."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return "", ""  # a page of HTML says no more than its status
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return " ".join(str(error).split())[:300], ""
    message = error.get("message") or error.get("detail") or ""
    return " ".join(str(message).split())[:300], str(error.get("code") or "")


def retry_after(response: httpx.Response) -> float:
    """Seconds that the header `Retry-After` asks for, as a number or as a date; 0 where it is missing or neither."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER) if seconds == seconds else 0.0


# --- the loop --------------------------------------------------------------------------------------------------------


async def outcome(call: concurrent.futures.Future[T]) -> T:
    """What comes of a call on the other loop, which goes on should the caller be cancelled."""
    here = asyncio.get_running_loop()
    found: asyncio.Future[T] = here.create_future()

    def tell() -> None:
        if found.done():
            return
        if call.cancelled():
            found.cancel()
        elif error := call.exception():
            found.set_exception(error)
        else:
            found.set_result(call.result())

    def done(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            here.call_soon_threadsafe(tell)

    call.add_done_callback(done)
    return await found


async def on_http_loop(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` on the loop of all HTTP, from any other; cancelled together with the caller."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _loop()))


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="http", daemon=True).start()
    return loop
