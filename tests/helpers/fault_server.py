"""A real HTTP server on loopback that answers chat completions as it is told to, and as badly as it is told to."""

from __future__ import annotations

import asyncio
import email.utils
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

# What can be done to the n-th call instead of answering it ("ok").
FAULTS = (
    *(
        "429",
        "429 seconds",
        "429 date",
        "408",
        "409",
        "500",
        "502",
        "hang",
        "drop",
        "truncated",
        "html",
        "empty choices",
    ),
    *("no content", "drip", "encoding", "surrogate", "wrong length"),
)

Plan = Callable[[int, dict[str, Any]], str]
Say = Callable[[dict[str, Any]], "str | dict[str, Any]"]


class FaultServer:
    """Use it as a context manager; it listens on a port of its own.

    Args:
        plan: (number of the call from 0, its JSON) -> "ok", one of FAULTS, "slow" (ok after a second), "wrong type",
            "filtered", or a status such as "401".
        say: JSON of a call -> the text of its reply, or the whole body of the answer.
        seconds: What a call takes.
        word_seconds: What each word of a streamed reply takes.
        models: What `GET /models` lists; other models are answered with 404, except `unlisted`.
        usage: What is said about tokens instead of their counts.
        refuse_models: `GET /models` is answered with 401. Refusals quote the key that came with the request.

    Attributes:
        calls: JSON of each `POST`, in order.
        behaved: What was done to each.
        sent: Number of a `POST` -> when (`time.monotonic`) its answer was written, if its client was still there.
        connections: Number of connections that were made.
        most_in_flight: Most `POST`s that were being answered at a time.
    """

    def __init__(
        self,
        plan: Plan = lambda number, call: "ok",
        say: Say = lambda call: f"seed {call.get('seed')}",
        seconds: float = 0.0,
        models: tuple[str, ...] = ("tiny",),
        refuse_models: bool = False,
        word_seconds: float = 0.0,
        usage: dict[str, Any] | None = None,
    ) -> None:
        self.refuse_models, self.usage, self.word_seconds = refuse_models, usage, word_seconds
        self.plan, self.say, self.seconds, self.models = plan, say, seconds, models
        self.calls: list[dict[str, Any]] = []
        self.behaved: list[str] = []
        self.sent: dict[int, float] = {}
        self.connections = self.most_in_flight = self._in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultServer:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *details: object) -> None:
        async def stop() -> None:
            self._server.close()
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n")[1:])}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = head.split(" ", 2)
        key = headers.get("authorization", "no key")
        if method == "GET" and self.refuse_models:
            return await self._send(writer, 401, json.dumps({"error": {"message": f"refused {key}"}}).encode())
        if method == "GET":
            there = path == "/v1/models"
            found = (
                {"data": [{"id": name} for name in self.models]} if there else {"error": {"message": "no such page"}}
            )
            return await self._send(writer, 200 if there else 404, json.dumps(found).encode())
        call = json.loads(data)
        if call["model"] not in (*self.models, "unlisted"):
            return await self._send(writer, 404, json.dumps({"error": {"message": "no such model"}}).encode())
        number = len(self.calls)
        behaviour = self.plan(number, call)
        self.calls.append(call)
        self.behaved.append(behaviour)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            if self.seconds:
                await asyncio.sleep(self.seconds)
            stays = await self._behave(behaviour, call, key, writer)
            if not reader.at_eof():  # a client that has given up or been killed has closed the connection
                self.sent[number] = time.monotonic()
            return stays
        finally:
            self._in_flight -= 1

    async def _behave(self, behaviour: str, call: dict[str, Any], key: str, writer: asyncio.StreamWriter) -> bool:
        status, _, how = behaviour.partition(" ")
        if status.isdigit():
            extra = {"seconds": "Retry-After: 1\r\n", "date": f"Retry-After: {_in_a_second()}\r\n"}.get(how, "")
            error = {"error": {"message": f"refused {key}", "code": how if "_" in how else None}}
            return await self._send(writer, int(status), json.dumps(error).encode(), extra)
        said = self.say(call)
        body = completion(said, call) if isinstance(said, str) else said
        body["usage"] = self.usage or body["usage"]
        if behaviour == "slow":
            await asyncio.sleep(1)
        elif behaviour == "hang":
            await asyncio.sleep(3600)
        elif behaviour == "html":
            return await self._send(writer, 200, b"<html>All is well.</html>", kind="text/html")
        elif behaviour == "wrong type":
            return await self._send(writer, 200, json.dumps(body).encode(), kind="text/html")
        elif behaviour == "truncated":
            return await self._send(writer, 200, json.dumps(body).encode()[:-20])
        elif behaviour == "empty choices":
            return await self._send(writer, 200, json.dumps(body | {"choices": []}).encode())
        elif behaviour == "filtered":
            body["choices"][0] |= {"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}
        elif behaviour == "no content":
            body["choices"][0]["message"]["content"] = None
        elif behaviour == "encoding":
            body["choices"][0]["message"]["content"] = "schön"
            return await self._send(writer, 200, json.dumps(body, ensure_ascii=False).encode("latin-1"))
        elif behaviour == "surrogate":
            body["choices"][0]["message"]["content"] = "half a \ud83d pair"
        if call.get("stream") and isinstance(said, str):
            counts = body["usage"] if call.get("stream_options", {}).get("include_usage") else None
            return await self._stream(said, writer, behaviour == "drop", counts)
        data = json.dumps(body).encode()
        if behaviour in ("drop", "drip", "wrong length"):
            longer = 7 if behaviour == "wrong length" else 0
            writer.write(_head(200, len(data) + longer) + data[: len(data) if longer else 30])
            await writer.drain()
            for byte in data[30:] if behaviour == "drip" else b"":
                await asyncio.sleep(0.3)
                writer.write(bytes([byte]))
                await writer.drain()
            return False
        return await self._send(writer, 200, data)

    async def _stream(self, said: str, writer: asyncio.StreamWriter, cut: bool, counts: dict[str, Any] | None) -> bool:
        """The reply as server-sent events, word by word, then the counts of tokens.

        If `cut`, the connection ends after half of it.
        """
        writer.write(b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        words = re.findall(r"\S+\s*", said)
        for word in words[: len(words) // 2] if cut else words:
            await self._chunk(writer, {"delta": {"content": word}, "finish_reason": None})
            await asyncio.sleep(self.word_seconds)
        if not cut:
            await self._chunk(writer, {"delta": {}, "finish_reason": "stop"})
            if counts is not None:
                writer.write(f"data: {json.dumps({'choices': [], 'usage': counts})}\n\n".encode())
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()
        return False

    async def _chunk(self, writer: asyncio.StreamWriter, choice: dict[str, Any]) -> None:
        writer.write(f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n".encode())
        await writer.drain()

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, data: bytes, extra: str = "", kind: str = "application/json"
    ) -> bool:
        writer.write(_head(status, len(data), extra, kind) + data)
        await writer.drain()
        return True


def completion(text: str, call: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat completion; tokens are words."""
    prompt = sum(len(message["content"].split()) for message in call["messages"])
    spoken = len(text.split())
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": call.get("model"),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": spoken, "total_tokens": prompt + spoken},
    }


def _head(status: int, length: int, extra: str = "", kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{extra}\r\n".encode()


def _in_a_second() -> str:
    return email.utils.formatdate(time.time() + 2, usegmt=True)  # dates have whole seconds
