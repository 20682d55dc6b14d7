"""Checks an endpoint before the run: does it answer, accept the key and have the model?"""

from __future__ import annotations

import difflib

import httpx

from collab.chat.completions import error_message
from collab.chat.connection import request, scrubbed
from collab.config.schema import EndpointConfig
from collab.util.errors import BadInput

_HINT = (
    "Start the server, check the network, or correct base_url: it is what comes before /chat/completions, as in "
    "http://127.0.0.1:8000/v1."
)


def served_model(endpoint: EndpointConfig) -> str:
    """The name of an endpoint's model: the one that it names, or the only one that the server has.

    If the server has no `GET base_url/models`, the name is not checked. A server may have a model that it does not list
    (`transformers serve FOLDER` lists a cache), so it is asked for a reply of one token.

    Raises:
        BadInput: Key, certificates or proxy of the environment cannot be used; nothing answers at `base_url`; the
            server refuses the key; it does not have the model; it has several and none is named.
    """
    where = endpoint.base_url.rstrip("/")
    answer = request(endpoint, "GET", f"{where}/models", hint=_HINT)
    if answer.status_code in (404, 405) and not where.endswith("/v1"):
        if request(endpoint, "GET", f"{where}/v1/models", hint=_HINT).status_code == 200:
            raise BadInput(f"base_url={where} is wrong: the server answers at {where}/v1. Set base_url to {where}/v1.")
    # Some servers list their models for other kinds of keys alone.
    if answer.status_code in (401, 403) and not (endpoint.model and _speaks(endpoint, where)):
        message = error_message(scrubbed(answer.content, endpoint))[0] or "no message"
        raise BadInput(
            f"{where} refuses the key (HTTP {answer.status_code}: {message}). Check the environment variable "
            f"{endpoint.key_env}."
            if endpoint.key_env
            else f"{where} wants a key (HTTP {answer.status_code}: {message}). Name the environment variable that "
            "holds it in key_env."
        )
    listed = _model_names(answer)
    shown = ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
    if endpoint.model is None:
        if len(listed) == 1:
            return listed[0]
        raise BadInput(
            f"{where} has {len(listed)} models ({shown}), and none is named. Set model to one of them."
            if listed
            else f"{where} does not list its models, and none is named. Set model."
        )
    if listed and endpoint.model not in listed and not _speaks(endpoint, where):
        close = difflib.get_close_matches(endpoint.model, listed, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise BadInput(f"{where} has no model {endpoint.model}.{hint} It has: {shown}.")
    return endpoint.model


def _speaks(endpoint: EndpointConfig, where: str) -> bool:
    """Whether the model answers a request for one token."""
    messages = [{"role": "user", "content": "Hi"}]
    fields = {"model": endpoint.model, "messages": messages, endpoint.limit_field: 1, **endpoint.extra}
    body = {name: value for name, value in fields.items() if name not in endpoint.omit}
    return request(endpoint, "POST", f"{where}/chat/completions", body, hint=_HINT).status_code == 200


def _model_names(answer: httpx.Response) -> list[str]:
    """The models that the server lists. JSON allows half a surrogate pair in a name, which cannot be printed."""
    try:
        listed = [str(model["id"]) for model in answer.json()["data"]] if answer.status_code == 200 else []
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [name.encode(errors="replace").decode() for name in listed]
