"""The network as the environment describes it: proxies, certificates, whether a server answers in time."""

from __future__ import annotations

import functools
import os
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from collab.util.errors import BadInput

T = TypeVar("T")

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # in the order in which httpx takes them
_AWAY = (407, 502, 503, 504)  # statuses of a proxy that has not reached the server


def transport(url: str) -> dict[str, Any]:
    """Keyword arguments for a client or a request of httpx: certificates and proxy of the environment.

    httpx itself reads no variable of proxies: it refuses entries of NO_PROXY that it does not know, proxy or not.

    Raises:
        BadInput: Certificates cannot be read, or a proxy cannot be used; names the variable.
    """
    variable, problem = next((name for name in _CERTIFICATES if os.environ.get(name)), ""), ""
    folders = os.environ.get(variable, "").split(os.pathsep) if variable == "SSL_CERT_DIR" else []
    if folders and not any(map(os.path.isdir, folders)):
        problem = "no such folder"
    try:
        certificates = _certificates(*map(os.environ.get, _CERTIFICATES))
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise BadInput(
            f"The environment variable {variable} ({os.environ.get(variable)}) must name certificates that can be "
            f"read: {problem}. Correct it, or unset it to use those of the package certifi."
        )
    variable, proxy = proxy_of(url)
    options: dict[str, Any] = {"verify": certificates, "trust_env": False, "proxy": proxy}
    try:
        httpx.Client(**options).close()
    except (ImportError, ValueError, httpx.InvalidURL):
        # Only the scheme is shown: an address may hold a password.
        raise BadInput(
            f"The proxy in the environment variable {variable} ({str(proxy).partition('://')[0]}://...) cannot be used "
            f"for {url}: it must be http://HOST:PORT, or socks5://HOST:PORT with the package socksio (pip install "
            f"socksio). Correct or unset {variable}, or add {urlsplit(url).hostname} to NO_PROXY."
        ) from None
    return options


@functools.cache
def _certificates(*named: str | None) -> ssl.SSLContext:
    """Those that the variables name, or certifi's. They are read once: that takes longer than a request."""
    return httpx.create_ssl_context()


def proxy_of(url: str) -> tuple[str, str | None]:
    """(Variable, address) of the proxy for `url`; ("", None) if there is none or NO_PROXY exempts the server."""
    parts, proxies = urlsplit(url), getproxies()
    if parts.hostname is None or proxy_bypass(parts.netloc):
        return "", None
    for scheme in (parts.scheme, "all"):
        if address := proxies.get(scheme):
            names = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
            variable = next((name for name in names if os.environ.get(name)), names[1])
            return variable, address if "://" in address else f"http://{address}"
    return "", None


def unreachable(url: str, seconds: float) -> str:
    """Why no server answers at `url` in time; "" if one does, with whatever status.

    Raises:
        BadInput: As `transport`.
    """
    options = transport(url)
    try:
        # The timeouts of httpx leave out the name server.
        status = within(seconds, lambda: httpx.head(url, timeout=seconds, **options)).status_code
        problem = f"HTTP {status}" if status in _AWAY else ""
    except TimeoutError:
        problem = f"no answer within {seconds:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        problem = type(error).__name__
    variable, _ = proxy_of(url)
    return f"{problem}, through the proxy in {variable}" if problem and variable else problem


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or its exception, if it ends in time. It runs in a thread, which may outlive this call.

    Raises:
        TimeoutError: It has not ended after so many seconds.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(seconds)
