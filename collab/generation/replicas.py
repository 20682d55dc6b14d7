"""The servers of `engine=vllm`: which of them may answer, and which one gets a request.

A server may answer while it is known to speak with the current weights. It is left out when a call gets no whole
answer (refused, reset, timeout, model lost) or after three failures in a row. Its calls are repeated at other servers,
with the same seed. A server that is left out is tried again after some seconds, and gets no request before it is
verified.

A conversation goes to the server that had it last, which has its prefix in the cache; else to the one with the fewest
requests under way, and of equals to the one that has answered fewest. If no server is left, calls wait as
`HttpChatModel` says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import httpx

from collab.chat.completions import error_message
from collab.chat.http import HttpChatModel
from collab.chat.retries import Failure, Unavailable
from collab.config.schema import EndpointConfig
from collab.conversation import Reply, Usage
from collab.generation.vllm_server import Served, VLLMServer, read_completion
from collab.randomness import RngKey
from collab.util.errors import RunStopped

TRY_AGAIN = 5.0  # seconds until a server that is left out is tried again
_IN_A_ROW = 3  # failures after which a server is left out


def reason(error: BaseException) -> str:
    """An error in words, never empty."""
    return str(error) or type(error).__name__


class _Completions(HttpChatModel):
    """The client of one server for `POST base_url/completions`, of token ids to token ids."""

    route = "completions"

    async def once(self, body: dict[str, Any]) -> Reply:
        """One attempt, which is not repeated.

        Raises:
            Failure: For a reason that may pass.
            ChatFailed: The server refuses this request.
            RunStopped: The server refuses any request, or does not answer as it has to.
        """
        return await self._attempt(body, Usage(len(body["prompt"]), body["max_tokens"]))

    def read(self, data: bytes, body: dict[str, Any]) -> Reply:
        return read_completion(data, body)

    def _refusal(self, response: httpx.Response, data: bytes) -> Exception:
        if response.status_code == 404:  # a server that was started anew has lost its adapters
            return Unavailable(f"HTTP 404: {error_message(data)[0] or 'no message'}")
        return super()._refusal(response, data)

    @property
    def answered(self) -> float:
        """When the server last answered any call, by `time.monotonic`."""
        return self._answered


@dataclass(eq=False)
class Replica:
    """One server, and what this process knows of it.

    Attributes:
        server: For checks and adapters.
        http: For the replies of a rollout.
        served: Its base model; None as long as it was not reached.
        speaks: Name of the adapter that it was verified with, "" for the base alone; None: it gets no requests.
        compared: Its base model was compared with the policy's.
        problem: Why it is left out; "" if it is not.
        again: When it is tried again, by `time.monotonic`.
        trying: It is being tried.
        under_way: Number of requests.
        failures: Number of failures in a row.
        requests, tokens: Of replies in this rollout.
        left_out: Number of times so far.
        gap: Mean distance of its log-probs of the check's conversation to ours, in nats a token, when last checked.
    """

    server: VLLMServer
    http: _Completions
    served: Served | None = None
    speaks: str | None = None
    compared: bool = False
    problem: str = ""
    again: float = 0.0
    trying: bool = False
    under_way: int = 0
    failures: int = 0
    requests: int = 0
    tokens: int = 0
    left_out: int = 0
    gap: float = field(default=float("nan"))

    @property
    def url(self) -> str:
        return self.server.url


class Replicas(HttpChatModel):
    """Sends each request to one of several servers with the same model.

    Args:
        endpoints: One for each server, equal but for the address.
        verify: (server, name of the adapter) -> gap of its log-probs, after it was brought up to date; called in a
            thread of its own. Raises `BadInput` or `RunStopped` if that cannot be done.
        tell: Gets a line when a server is left out or taken up again.

    Attributes:
        all: The servers, in the order of `endpoints`.
        current: Name of the adapter that replies need, "" for the base alone.
    """

    def __init__(
        self, endpoints: Sequence[EndpointConfig], verify: Callable[[Replica, str], float], tell: Callable[[str], None]
    ) -> None:
        where = ", ".join(endpoint.base_url for endpoint in endpoints)  # for messages; each server has its own client
        super().__init__(replace(endpoints[0], base_url=where, max_concurrency=0), tell)
        self.all = [Replica(VLLMServer(endpoint), _Completions(endpoint, tell)) for endpoint in endpoints]
        self.current = ""
        self._verify = verify
        self._sent: dict[RngKey, Replica] = {}  # conversation -> who had it last
        self._state = threading.Lock()  # calls, tries and the main thread change it

    async def reply(self, body: dict[str, Any], role: str, conversation: RngKey) -> Reply:
        """A reply of any server; a `model` of "" in the body is its base.

        Raises:
            ChatFailed: No reply after all retries, or a server refuses this request.
            RunStopped: No server has answered for too long, or the last one that was left refuses everything.
        """
        return await self._outcome(self._with_retries(partial(self._from_one, body, conversation), role))

    async def _from_one(self, body: dict[str, Any], conversation: RngKey) -> Reply:
        self._try_again()
        replica = self.pick(conversation)
        assert replica.served is not None
        times_out = replica.left_out
        replica.under_way += 1
        try:
            reply = await replica.http.once(body | {"model": body["model"] or replica.served.name})
        except Failure as error:
            replica.failures += 1
            # What was sent before it was left out says nothing of how it is now.
            if replica.left_out == times_out and (isinstance(error, Unavailable) or replica.failures >= _IN_A_ROW):
                self.leave_out(replica, reason(error))
            raise
        except RunStopped as error:
            if replica.left_out == times_out:
                self.leave_out(replica, reason(error))
            if not self.ready():
                raise
            raise Failure(str(error)) from None
        finally:
            replica.under_way -= 1
            if replica.http.answered > self._answered:
                self._answered, self._silence_reported = replica.http.answered, False
        replica.failures = 0
        replica.requests += 1
        replica.tokens += len(reply.token_ids)
        return reply

    def ready(self) -> list[Replica]:
        """The servers that may answer."""
        return [replica for replica in self.all if replica.speaks == self.current]

    def pick(self, conversation: RngKey) -> Replica:
        """The server that gets the next request of a conversation.

        Raises:
            Failure: All servers are left out.
        """
        ready = self.ready()
        if not ready:
            raise Failure(self.problems() or "no server is verified yet", everyone=True)
        found = self._sent.get(conversation)
        if found is None or found not in ready:
            found = self._sent[conversation] = min(ready, key=lambda each: (each.under_way, each.requests))
        return found

    def problems(self) -> str:
        """Why servers are left out."""
        several = len(self.all) > 1
        return "; ".join(f"{r.url}: {r.problem}" if several else r.problem for r in self.all if r.problem)

    # --- left out, and taken up again ----------------------------------------------------------------------------

    def leave_out(self, replica: Replica, problem: str) -> None:
        """Send it no requests until it was verified again."""
        with self._state:
            known, replica.problem = replica.problem, problem
            replica.speaks, replica.compared, replica.failures = None, False, 0
            replica.again = time.monotonic() + TRY_AGAIN
            if known:
                return
            replica.left_out += 1
        why = problem.removeprefix("engine=vllm: ").rstrip(".")
        self._tell(f"engine=vllm: {replica.url} gets no requests: {why}. It is tried again every {TRY_AGAIN:g} s.")

    def take_up(self, replica: Replica, adapter: str, gap: float) -> None:
        """It was verified with this adapter, "" for the base alone: it may answer while that is the current one."""
        with self._state:
            if adapter != self.current:
                return  # the weights have changed since
            back, replica.problem = bool(replica.problem), ""
            replica.speaks, replica.compared, replica.gap, replica.failures = adapter, True, gap, 0
        if back:
            self._tell(f"engine=vllm: {replica.url} gets requests again; its log-probs are {gap:.3f} nats from ours.")

    def _try_again(self) -> None:
        """Start to verify each server whose time has come."""
        for replica in self.all:
            if replica.problem and not replica.trying and time.monotonic() >= replica.again:
                replica.trying = True
                # A daemon, since a server may hang when the run ends.
                threading.Thread(target=self._try, args=(replica, self.current), daemon=True).start()

    def _try(self, replica: Replica, adapter: str) -> None:
        problem, gap = "", float("nan")
        try:
            gap = self._verify(replica, adapter)
        except Exception as error:  # whatever it is, the server may not answer, and is tried again
            problem = reason(error)
        if not problem:
            self.take_up(replica, adapter, gap)
        elif adapter == self.current and replica.problem:  # else the weights were synchronised meanwhile
            self.leave_out(replica, problem)
        replica.trying = False

    # --- a rollout -----------------------------------------------------------------------------------------------

    def begin(self, adapter: str) -> None:
        """New weights: no server may answer before it was verified with this adapter."""
        with self._state:
            self.current = adapter
            for replica in self.all:
                replica.speaks, replica.requests, replica.tokens = None, 0, 0

    def drop(self) -> None:
        """Cancel the calls under way, and forget who had which conversation; the servers then stop decoding them."""
        for call in list(self._under_way):
            call.cancel()
        self._sent.clear()

    def logged(self) -> dict[str, float]:
        """Of each of several servers: requests and share of the tokens in this rollout, gap, times left out."""
        if len(self.all) == 1:
            return {}
        tokens = sum(replica.tokens for replica in self.all)
        values = {}
        for number, each in enumerate(self.all, 1):
            values[f"server_{number}_requests"] = float(each.requests)
            values[f"server_{number}_share"] = each.tokens / tokens if tokens else 0.0
            values[f"server_{number}_logprob_gap"] = each.gap
            values[f"server_{number}_left_out"] = float(each.left_out)
        return values
