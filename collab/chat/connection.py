"""How a server is reached: key, certificates and proxy; single requests.

No object and no text of ours has the key: it is read from its environment variable for each request, and removed from
everything that a server says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from typing import Any

import httpx

from collab.config.schema import EndpointConfig
from collab.util.errors import BadInput
from collab.util.network import proxy_of, transport

_REAL_KEY = 12  # characters; a shorter key is a placeholder ("EMPTY"), which replies may contain


class _Bearer(httpx.Auth):
    """Puts the key of an endpoint on each request."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint = endpoint

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if key := _key(self.endpoint):
            request.headers["Authorization"] = f"Bearer {key}"
        yield request


def _key(endpoint: EndpointConfig) -> str:
    """The key, "" where none is sent. Never keep what this returns."""
    if endpoint.key_env is None:
        return ""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise BadInput(
            f"The environment variable {endpoint.key_env} is not set, and it holds the key for {endpoint.base_url}. "
            f"Set it (export {endpoint.key_env}=...), or name another one in key_env; null sends no key."
        )
    if not (key.isascii() and key.isprintable()):
        raise BadInput(
            f"The environment variable {endpoint.key_env} holds characters that cannot be sent: a key is printable "
            "ASCII. Set it again."
        )
    return key


def scrubbed(data: bytes, endpoint: EndpointConfig) -> bytes:
    """What a server said, without the key that it may have quoted."""
    key = _key(endpoint).encode()
    return data.replace(key, b"[key]") if len(key) >= _REAL_KEY else data


def client_options(endpoint: EndpointConfig) -> dict[str, Any]:
    """Keyword arguments for a client or a request of httpx: key, timeouts, certificates, proxy.

    Raises:
        BadInput: The key's variable is not set or holds what no header can; certificates cannot be read; a proxy cannot
            be used.
    """
    _key(endpoint)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # otherwise it logs a line for each call
    timeout = httpx.Timeout(endpoint.read_timeout, connect=endpoint.connect_timeout, pool=None)
    return {"auth": _Bearer(endpoint), "timeout": timeout, **transport(endpoint.base_url)}


def request(
    endpoint: EndpointConfig, method: str, url: str, body: dict[str, Any] | None = None, *, hint: str
) -> httpx.Response:
    """What a server answers to one request, which is not repeated; its content is not scrubbed.

    Raises:
        BadInput: Nothing answers, with `hint` as the way out; or as `client_options`.
    """
    try:
        return httpx.request(method, url, json=body, **client_options(endpoint))
    except httpx.HTTPError as error:
        problem = type(error).__name__
    if variable := proxy_of(url)[0]:
        problem += f", through the proxy in {variable}"
    # Raised out here, so that it has no httpx exception as its context: that knows the request and its key.
    raise BadInput(f"Nothing answers at {url} ({problem}). {hint}")
