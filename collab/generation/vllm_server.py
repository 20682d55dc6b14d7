"""The routes of a vLLM server: its models, adapters and completions, with a way out for each of its errors.

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

from collab.chat.base import Sampling
from collab.chat.completions import error_message, schema_fields
from collab.chat.connection import client_options, request, scrubbed
from collab.chat.retries import Failure
from collab.config.schema import EndpointConfig
from collab.conversation import Reply, Usage
from collab.util.errors import BadInput, RunStopped


def start_command(model: str, rank: int | str = "R") -> str:
    """The command that starts a server for a base model and adapters of this rank."""
    return (
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {model} --enable-lora --max-lora-rank {rank} "
        "--logprobs-mode processed_logprobs"
    )


class ServerRefused(Exception):
    """The server answered a request with an error.

    Args:
        status: HTTP status.
        message: vLLM's message; "" if there is none, as for a route that does not exist.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message or 'no message'}")
        self.status, self.message = status, message


@dataclass(frozen=True)
class Served:
    """The base model of a server."""

    name: str  # at the server
    root: str  # path or hub id that the server has read it from
    positions: int | None  # maximum tokens of a sequence


class VLLMServer:
    """A vLLM server, for anything but the replies of a rollout, which `vllm.VLLMEngine` asks for.

    Args:
        endpoint: Address, key and timeouts.
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
        for card in cards:
            if wanted in (None, card["id"]):
                return Served(card["id"], str(card.get("root") or card["id"]), card.get("max_model_len"))
        raise BadInput(
            f"engine.model={wanted}: {self.url} has no such base model. It has: "
            f"{', '.join(card['id'] for card in cards) or 'none'}. Set engine.model to one of them, or to null."
        )

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
        """The token ids of `text`, without special tokens around it; None if the server does not return them."""
        body = {"prompt": text, "add_special_tokens": False}
        with contextlib.suppress(ServerRefused, ValueError, LookupError, TypeError):
            return list(json.loads(self._request("POST", f"{self.url.removesuffix('/v1')}/tokenize", body))["tokens"])
        return None

    def complete(self, body: dict[str, Any]) -> bytes:
        """The body of the answer to a completion request, which is sent once.

        Raises:
            ServerRefused: The server answers with an error.
            BadInput: The server cannot be reached.
        """
        return self._request("POST", f"{self.url}/completions", body)

    def returns_sampled_logprobs(self, served: Served, prompt: Sequence[int]) -> bool:
        """Whether log-probs are those of the sampled distribution: with `top_k=1`, a sampled token has probability 1.

        Raises:
            BadInput: The server refuses the request, or returns no token ids.
        """
        body = completion_request(served.name, prompt, Sampling(4, top_k=1, ignore_eos=True), seed=1)
        try:
            return max(map(abs, read_completion(self.complete(body), body).logprobs)) < 1e-3
        except (ServerRefused, Failure, RunStopped) as error:
            raise BadInput(
                f"engine=vllm: the server at {self.url} gives no reply to a prompt of token ids. {error}"
            ) from None

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter in `folder` under a name that the server does not have.

        Raises:
            BadInput: The server refuses; the message says what to do.
        """
        try:
            self._load(name, folder)
        except ServerRefused as error:
            raise BadInput(self._not_loaded(error, folder)) from None

    def check_adapters(self) -> None:
        """Check that the server takes adapters, by asking for one in a folder that does not exist.

        Raises:
            BadInput: The server refuses for another reason than the missing folder.
        """
        nowhere = Path(f"/nowhere-{uuid.uuid4().hex[:12]}")
        try:
            self._load(nowhere.name, nowhere)
        except ServerRefused as error:
            if "no adapter found" not in error.message.lower():
                raise BadInput(self._not_loaded(error, nowhere)) from None

    def _load(self, name: str, folder: Path) -> None:
        self._request("POST", f"{self.url}/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

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
                f"engine=vllm: the server at {self.url} does not find the adapter in {folder} ({error}). It needs to "
                "see that folder under the same path, with the right to read it. Set engine.adapters to a folder that "
                "both machines share."
            )
        return (
            f"engine=vllm: the server at {self.url} cannot load the policy's adapter ({error}). If the error names "
            "layers, leave them out of model.lora.target_modules; if not, set engine=local."
        )

    def unload(self, name: str) -> None:
        """Unload an adapter; errors are ignored."""
        with contextlib.suppress(ServerRefused, BadInput):
            self._request("POST", f"{self.url}/unload_lora_adapter", {"lora_name": name})

    def _request(self, method: str, url: str, body: dict[str, Any] | None = None) -> bytes:
        hint = f"Start the server (`{start_command('MODEL')}`), or set engine.base_url to where it is."
        answer = request(self.endpoint, method, url, body, hint=hint)
        data = scrubbed(answer.content, self.endpoint)
        if answer.status_code != 200:
            raise ServerRefused(answer.status_code, error_message(data)[0] if b'"error"' in data else "")
        return data


def read_completion(data: bytes, body: dict[str, Any]) -> Reply:
    """The reply in the answer to the request `body`: ids, log-probs and prompt, without the text.

    Raises:
        Failure: The answer is no completion.
        RunStopped: The server returns no token ids, or has read another prompt than that of `body`.
    """
    try:
        choice = json.loads(data)["choices"][0]
        ids, prompt, reason = choice.get("token_ids"), choice.get("prompt_token_ids"), choice["finish_reason"]
        logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        if not all(part is None or _are_ids(part) for part in (ids, prompt)):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Failure(f"an answer that is no completion with log-probs ({data[:40]!r})") from None
    if ids is None or prompt is None:
        raise RunStopped(
            "engine=vllm: the server returns no token ids (return_token_ids), and a policy learns from the tokens "
            "that were sampled. Use vLLM 0.10.2 or later."
        )
    if prompt != body["prompt"]:
        raise RunStopped(
            f"engine=vllm: the server has read another prompt than the one it was sent ({len(prompt)} tokens for "
            f"{len(body['prompt'])}): something between here and the model cuts or rewrites it."
        )
    whole = reason in ("stop", "length") and ids and len(ids) == len(logprobs)
    if not whole or not all(map(math.isfinite, logprobs)):
        raise Failure(f"a completion that ended by {reason!r:.40}, of {len(ids)} tokens and {len(logprobs)} log-probs")
    return Reply(
        "",
        token_ids=tuple(ids),
        logprobs=tuple(logprobs),
        finish_reason=reason,
        prompt_ids=tuple(prompt),
        usage=Usage(len(prompt), len(ids)),
    )


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(index) is int and 0 <= index < 2**31 for index in value)


def completion_request(
    model: str, prompt: Sequence[int], sampling: Sampling, seed: int, stops: Sequence[int] = ()
) -> dict[str, Any]:
    """The body of a request. It has every sampling field: vLLM takes missing ones from the model's generation config.

    Args:
        model: Name of the base model or of an adapter.
        prompt: Token ids.
        sampling: How to draw; `sampling.adapter` is ignored.
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
    if sampling.schema:
        body |= schema_fields(sampling.schema)
    return body
