"""Tokens, limits and headers of the study's pages."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from typing import Any
from urllib.parse import parse_qsl

from aiolimiter import AsyncLimiter
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION, ADMIN = "study_session", "study_admin"  # cookies
_MAX_BODY = 500_000  # bytes of a request
_MAX_LIMITERS = 20_000
_PER_MINUTE = {"save": 300, "message": 30, "reply": 120, "join": 300, "login": 10}  # calls of a participant or address
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",  # the back button asks the server, which knows how far the participant is
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def new_token() -> str:
    return secrets.token_urlsafe(32)


def csrf_of(session: str) -> str:
    """The token that forms of a session carry. Another site knows neither it nor the cookie that it is made from."""
    return hashlib.sha256(f"csrf {session}".encode()).hexdigest()


def admin_cookie(token: str) -> str:
    return hashlib.sha256(f"admin {token}".encode()).hexdigest()


def same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), right.encode())


def set_cookie(response: Response, request: Request, name: str, value: str) -> None:
    """A cookie that no script reads and that no other site's form sends."""
    secure, day = request.url.scheme == "https", 24 * 3600
    response.set_cookie(name, value, max_age=30 * day, httponly=True, samesite="lax", secure=secure)


class Limits:
    """How often one participant, or one address where there is none yet, may do a thing. Kept in memory alone."""

    def __init__(self) -> None:
        self._limiters: OrderedDict[tuple[str, str], AsyncLimiter] = OrderedDict()

    async def take(self, kind: str, who: str) -> None:
        """Raises:
        HTTPException: 429; too often.
        """
        key = (kind, who)
        limiter = self._limiters.setdefault(key, AsyncLimiter(_PER_MINUTE[kind], 60))
        self._limiters.move_to_end(key)
        if len(self._limiters) > _MAX_LIMITERS:
            self._limiters.popitem(last=False)
        if not limiter.has_capacity():
            raise HTTPException(429, "Too many requests in a minute. Wait a moment, then try again.")
        await limiter.acquire()


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


async def fields_of(request: Request, session: str) -> dict[str, Any]:
    """The fields of a form or of a JSON object that was posted with the session's token.

    Raises:
        HTTPException: It is too large, no form and no object, or has another token.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise HTTPException(413, f"The text is too long: {_MAX_BODY} bytes are the limit.")
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            given = json.loads(body)
        else:
            given = dict(parse_qsl(body.decode(), keep_blank_values=True))
        if not isinstance(given, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise HTTPException(400, "This request cannot be read.") from None
    if not same(str(given.get("csrf", "")), csrf_of(session)):
        raise HTTPException(403, "This page is out of date. Reload it, then try again.")
    return given


class SafeHeaders:
    """Puts the security headers on each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)
