"""Talking to a vLLM server: its models, loading adapters, completions, and what to do about its errors.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from collab.chat.base import Sampling
from collab.chat.completions import error_message
from collab.chat.connection import client_options, scrubbed
from collab.chat.retries import Failure
from collab.config.schema import EndpointConfig
from collab.conversation import Reply, Usage
from collab.util.errors import BadInput, RunStopped


def start_command(model: str, rank: int | str = "R") -> str:
    """How to start a server for a policy whose base is `model` and whose adapter has rank `rank`."""
    return (
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {model} --enable-lora --max-lora-rank {rank} "
        "--logprobs-mode processed_logprobs"
    )


class ServerRefused(Exception):
    """The server answered a request with an error.

    Args:
        status: HTTP status.
        message: vLLM's message; "" if the answer has none, as for a route that does not exist.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message or 'no message'}")
        self.status, self.message = status, message


@dataclass(frozen=True)
class Served:
    """The base model of a server."""

    name: str  # at the server
    root: str  # the path or hub id it was read from
    positions: int | None  # tokens of a sequence at most


class VLLMServer:
    """The routes of a vLLM server; replies of a rollout come from `vllm.VLLMEngine`.

    Args:
        endpoint: Where it is.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint, self.url = endpoint, endpoint.base_url.rstrip("/")
        client_options(endpoint)  # refuses a key or a proxy that cannot be used

    def base(self) -> Served:
        """The model that `endpoint.model` names, or the first one.

        Raises:
            BadInput: The server lists no such model.
        """
        cards = [card for card in self._models() if not card.get("parent")]
        wanted = self.endpoint.model
        found = next((card for card in cards if wanted in (None, card["id"])), None)
        if found is None:
            raise BadInput(
                f"engine.model={wanted}: {self.url} has no such base model. It has: "
                f"{', '.join(card['id'] for card in cards) or 'none'}. Set engine.model to one of them, or to null."
            )
        return Served(found["id"], str(found.get("root") or found["id"]), found.get("max_model_len"))

    def adapters(self) -> list[str]:
        """Names of the adapters that are loaded."""
        return [card["id"] for card in self._models() if card.get("parent")]

    def _models(self) -> list[dict[str, Any]]:
        try:
            data = self._request("GET", f"{self.url}/models")
        except ServerRefused as error:
            hint = "Set engine.base_url to what comes before /models, as in http://127.0.0.1:8000/v1"
            if error.status in (401, 403):
                hint = f"Check the key: engine.key_env is {self.endpoint.key_env or 'null, and no key is sent'}"
            raise BadInput(f"engine.base_url: {self.url}/models answers {error}. {hint}.") from None
        try:
            return [{**card, "id": str(card["id"])} for card in json.loads(data)["data"]]
        except (ValueError, LookupError, TypeError):
            raise BadInput(
                f"engine.base_url: {self.url}/models answers with no list of models: it is no vLLM server. Set "
                "engine.base_url to the address of one, as in http://127.0.0.1:8000/v1."
            ) from None

    def tokenise(self, text: str) -> list[int] | None:
        """The token ids of `text`, without special tokens around it; None where the server does not tell."""
        body = {"prompt": text, "add_special_tokens": False}
        with contextlib.suppress(ServerRefused, ValueError, LookupError, TypeError):
            return list(json.loads(self._request("POST", f"{self.url.removesuffix('/v1')}/tokenize", body))["tokens"])
        return None

    def complete(self, body: dict[str, Any]) -> bytes:
        """The body of the answer to a completion request; nothing is tried again.

        Raises:
            ServerRefused: It is refused.
            BadInput: The server cannot be reached.
        """
        return self._request("POST", f"{self.url}/completions", body)

    def returns_sampled_logprobs(self, served: Served, prompt: Sequence[int]) -> bool:
        """Whether log-probs are those of the distribution that is sampled: with `top_k=1` every probability is 1.

        Raises:
            BadInput: The server refuses the request, or returns no token ids.
        """
        body = completion_request(served.name, prompt, Sampling(4, top_k=1, ignore_eos=True), seed=1)
        try:
            return max(map(abs, read_completion(self.complete(body), body).logprobs)) < 1e-3
        except (ServerRefused, Failure, RunStopped) as error:
            raise BadInput(
                f"engine=vllm: the server at {self.url} does not take token ids as it should. {error}"
            ) from None

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter in `folder` under a name that the server does not have.

        Raises:
            BadInput: The server cannot; the message says what to do.
        """
        try:
            self._request("POST", f"{self.url}/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except ServerRefused as error:
            raise BadInput(self._not_loaded(error, folder)) from None

    def check_adapters(self) -> None:
        """Check that adapters can be loaded: asked for a folder that does not exist, the server may only miss that.

        Raises:
            BadInput: It has another reason.
        """
        nowhere = Path(f"/nowhere-{uuid.uuid4().hex[:12]}")
        try:
            self._request(
                "POST", f"{self.url}/load_lora_adapter", {"lora_name": nowhere.name, "lora_path": str(nowhere)}
            )
        except ServerRefused as error:
            if "no adapter found" not in error.message.lower():
                raise BadInput(self._not_loaded(error, nowhere)) from None

    def _not_loaded(self, error: ServerRefused, folder: Path) -> str:
        if not error.message or error.status == 405:
            return (
                f"engine=vllm: the server at {self.url} does not take adapters while it runs (POST /load_lora_adapter "
                f"answers HTTP {error.status}). Start it with the environment variable "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and with --enable-lora."
            )
        if "lora is not enabled" in error.message.lower():
            return (
                f"engine=vllm: LoRA is switched off at the server at {self.url} ({error}). Start it with --enable-lora."
            )
        if "max_lora_rank" in error.message:
            return (
                f"engine=vllm: the adapter's rank is more than the server at {self.url} takes ({error}). Start it with "
                "--max-lora-rank of at least model.lora.r, or lower model.lora.r."
            )
        if "no adapter found" in error.message.lower():
            return (
                f"engine=vllm: the server at {self.url} does not find the adapter in {folder} ({error}). It has to "
                "see that folder under the same path, and may read it. Set engine.adapters to a folder that both "
                "machines share."
            )
        return (
            f"engine=vllm: the server at {self.url} cannot load the policy's adapter ({error}). Where it names layers, "
            "leave them out of model.lora.target_modules; else take engine=local."
        )

    def unload(self, name: str) -> None:
        """Unload an adapter; errors are ignored."""
        with contextlib.suppress(ServerRefused, BadInput):
            self._request("POST", f"{self.url}/unload_lora_adapter", {"lora_name": name})

    def _request(self, method: str, url: str, body: dict[str, Any] | None = None) -> bytes:
        endpoint, problem = self.endpoint, ""
        try:
            answer = httpx.request(method, url, json=body, **client_options(endpoint))
        except httpx.HTTPError as error:
            problem = type(error).__name__
        if problem:  # raised out here: as its context, an httpx exception would keep the request and its key
            raise BadInput(
                f"engine.base_url: nothing answers at {url} ({problem}). Start the server "
                f"(`{start_command('MODEL')}`), or set engine.base_url to where it is."
            )
        data = scrubbed(answer.content, endpoint)
        if answer.status_code != 200:
            raise ServerRefused(answer.status_code, error_message(data)[0] if b'"error"' in data else "")
        return data


# --- completions ------------------------------------------------------------------------------------------------------


def read_completion(data: bytes, body: dict[str, Any]) -> Reply:
    """The reply in the body of a completion: ids, log-probs and prompt, without the text.

    Raises:
        Failure: It is no completion.
        RunStopped: The server returns no token ids, or has read another prompt than that of `body`.
    """
    try:
        choice = json.loads(data)["choices"][0]
        ids, prompt, reason = choice.get("token_ids"), choice.get("prompt_token_ids"), choice["finish_reason"]
        logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failure(f"an answer that is no completion with log-probs ({data[:40]!r})") from None
    if ids is None or prompt is None:
        raise RunStopped(
            "engine=vllm: the server returns no token ids (return_token_ids), and a policy learns from the tokens "
            "that were sampled. Take vLLM 0.10.2 or later."
        )
    if prompt != body["prompt"]:
        raise RunStopped(
            f"engine=vllm: the server has read another prompt than the one it was sent ({len(prompt)} tokens for "
            f"{len(body['prompt'])}): something between here and the model cuts or rewrites it."
        )
    if (
        reason not in ("stop", "length")
        or not ids
        or len(ids) != len(logprobs)
        or not all(map(math.isfinite, logprobs))
    ):
        raise Failure(f"a completion that ended by {reason}, of {len(ids)} tokens and {len(logprobs)} log-probs")
    return Reply(
        "",
        token_ids=tuple(ids),
        logprobs=tuple(logprobs),
        finish_reason=reason,
        prompt_ids=tuple(prompt),
        usage=Usage(len(prompt), len(ids)),
    )


def completion_request(
    model: str, prompt: Sequence[int], sampling: Sampling, seed: int, stops: Sequence[int] = ()
) -> dict[str, Any]:
    """The request, with every sampling field: vLLM takes missing ones from the model's generation config.

    Args:
        model: Name of the base model or of an adapter.
        prompt: Its token ids.
        sampling: How to draw; its `adapter` is ignored, since `model` names it.
        seed: Of the draws.
        stops: Tokens that end a reply.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": 0,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(sampling.stop),
        "stop_token_ids": [] if sampling.ignore_eos else list(stops),
        "ignore_eos": sampling.ignore_eos,
        "seed": seed,
        "n": 1,
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
    }
    if sampling.response_format == "json":
        body["response_format"] = {"type": "json_object"}
    return body
