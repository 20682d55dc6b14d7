"""How a server is reached: key, certificates and proxy.

The key is in no object and no text of ours: it is read from its environment variable for each request, and removed from
whatever a server says.
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
    """What a server said, without the key that it may have quoted."""
    key = api_key(endpoint).encode()
    return data.replace(key, b"[key]") if len(key) >= _REAL_KEY else data


def client_options(endpoint: EndpointConfig) -> dict[str, Any]:
    """Keyword arguments for a client or a request of httpx: key, timeouts, certificates, proxy.

    Raises:
        BadInput: The environment names no key, no readable certificates, or a proxy that cannot be used.
    """
    api_key(endpoint)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it logs a line for each call
    try:
        certificates = httpx.create_ssl_context()
    except OSError as error:
        name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "SSL_CERT_FILE")
        raise BadInput(
            f"The environment variable {name} ({os.environ.get(name)}) must name certificates that can be read: "
            f"{error.strerror or error}. Correct it, or unset it to use those of the package certifi."
        ) from None
    options: dict[str, Any] = {
        "auth": BearerFromEnvironment(endpoint),
        "timeout": httpx.Timeout(endpoint.read_timeout, connect=endpoint.connect_timeout, pool=None),
        "verify": certificates,
        # httpx sets up every proxy of the environment, even if NO_PROXY exempts this server.
        "trust_env": not proxy_bypass(urlsplit(endpoint.base_url).hostname or ""),
    }
    try:
        httpx.Client(**options).close()
    except (ImportError, ValueError, httpx.InvalidURL):
        # Only the schemes are told: an address may hold a password.
        schemes = {name: url.partition("://")[0] for name, url in getproxies().items()}
        named = [
            f"{name.upper()}_PROXY ({schemes[name]}://...)" for name in ("all", "http", "https") if name in schemes
        ]
        raise BadInput(
            f"The proxy named by {' or '.join(named)} cannot be used for {endpoint.base_url}: it must be "
            "http://HOST:PORT, or socks5://HOST:PORT with the package socksio (pip install socksio). Correct or unset "
            f"the environment variable, or add {urlsplit(endpoint.base_url).hostname} to NO_PROXY."
        ) from None
    return options
