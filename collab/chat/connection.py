"""How a server is reached: key, certificates and proxy.

No object and no text of ours has the key: it is read from its environment variable for each request, and removed from
everything that a server says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from collab.config.schema import EndpointConfig
from collab.util.errors import BadInput

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
    try:
        certificates = httpx.create_ssl_context()
    except OSError as error:
        name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "SSL_CERT_FILE")
        raise BadInput(
            f"The environment variable {name} ({os.environ.get(name)}) must name certificates that can be read: "
            f"{error.strerror or error}. Correct it, or unset it to use those of the package certifi."
        ) from None
    host = urlsplit(endpoint.base_url).hostname or ""
    options: dict[str, Any] = {
        "auth": _Bearer(endpoint),
        "timeout": httpx.Timeout(endpoint.read_timeout, connect=endpoint.connect_timeout, pool=None),
        "verify": certificates,
        "trust_env": not proxy_bypass(host),  # httpx would set up a proxy even if NO_PROXY exempts this server
    }
    try:
        httpx.Client(**options).close()
    except (ImportError, ValueError, httpx.InvalidURL):
        # Only the schemes are shown: an address may hold a password.
        proxies = " or ".join(
            f"{name.upper()}_PROXY ({url.partition('://')[0]}://...)"
            for name, url in sorted(getproxies().items())
            if name in ("all", "http", "https")
        )
        raise BadInput(
            f"The proxy in {proxies} cannot be used for {endpoint.base_url}: it must be http://HOST:PORT, or "
            "socks5://HOST:PORT with the package socksio (pip install socksio). Correct or unset the environment "
            f"variable, or add {host} to NO_PROXY."
        ) from None
    return options
