"""A vLLM server as the rollout engine: token ids go there, sampled ids and their log-probs come back.

The server has the policy's base model. Before each rollout the current LoRA adapter is written into a fresh folder and
loaded there under a fresh name: under a known name a server may go on with what it has cached. Then the server's
log-probs of a short conversation are compared with those that the update computes. A mean distance of more than
`tolerance` nats a token means that another policy would speak, and the run stops. Smaller distances, over all tokens
that are learned from, are logged with each update (`train/logprob_gap`).

The same is done once for the base model, and for tokens that it samples: vLLM returns log-probs of the distribution
that is sampled, temperature included, only with `--logprobs-mode processed_logprobs`.

Of several processes the first one loads and asks; all of them take part in the comparison, since the policy's own
forward may need all of them. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import httpx

from collab.chat.base import Sampling
from collab.chat.completions import error_message, seed_of
from collab.chat.connection import client_options, scrubbed
from collab.chat.http import HttpChatModel
from collab.chat.retries import Failure
from collab.config.endpoints import engine_endpoint
from collab.config.schema import EndpointConfig, VLLMEngineConfig
from collab.conversation import Message, Reply, Usage
from collab.lm.chat_format import ChatFormat, check_fits, end_tokens
from collab.lm.inner import inner_of
from collab.randomness import RngKey
from collab.util.errors import BadInput, RunStopped
from collab.util.processes import rank

T = TypeVar("T")
# (prompt, reply, temperature, with the adapter or not) -> log-prob of each of the reply's tokens; all processes call it
LogProbs = Callable[[Sequence[int], Sequence[int], float, bool], list[float]]

TRIES = 2  # at loading an adapter that is in effect
_SAMPLED = 16  # tokens that the base model samples in a check

# What both sides read in a check.
CHECK_CONVERSATION = (
    Message("user", "Hello! I would like to put up a note in our hallway. Can you help me to write it?"),
    Message("assistant", "Gladly. What should the note say, and who is going to read it?"),
    Message("user", "It is for the neighbours. The lift will stand still on Monday, since its cables are replaced."),
    Message("assistant", "Thank you! Until when will it stand still? Is there a number that people can call?"),
    Message("user", "Until four in the afternoon. They can ring at my door, on the second floor, if they need help."),
    Message(
        "assistant",
        "Dear neighbours, the lift gets new cables on Monday and will not run until four in the afternoon. If you "
        "need help with your shopping or a pram, please ring at my door on the second floor.",
    ),
    Message("user", "That is good. Could you make it a little shorter, and say thank you at the end?"),
)


def start_command(model: str, rank: int | str = "R") -> str:
    """How to start a server for the policy over `model`, whose adapter has rank `rank`."""
    return (
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {model} --enable-lora --max-lora-rank {rank} "
        "--logprobs-mode processed_logprobs"
    )


class ServerRefused(Exception):
    """The server answered a request with an error.

    Args:
        status: Of HTTP.
        message: Its own; "" where it is no error of vLLM's, as for an address that the server does not have.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message or 'no message'}")
        self.status, self.message = status, message


@dataclass(frozen=True)
class Served:
    """The base model of a server: its name there, the path or hub id it was read from, the longest sequence."""

    name: str
    root: str
    positions: int | None


class VLLMServer:
    """The routes of a vLLM server besides that which replies come from.

    Args:
        endpoint: Where it is.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint, self.url = endpoint, endpoint.base_url.rstrip("/")
        client_options(endpoint)  # which refuses what cannot be sent

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
        """Whether log-probs are those of the distribution that was sampled: the likeliest token alone has all of it.

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
            BadInput: The server does not; in words of what to do.
        """
        try:
            self._request("POST", f"{self.url}/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except ServerRefused as error:
            raise BadInput(self._not_loaded(error, folder)) from None

    def check_adapters(self) -> None:
        """Raise `BadInput` where no adapter at all would be loaded; none is."""
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
        """Have the server forget an adapter, where it is there and can be told."""
        with contextlib.suppress(ServerRefused, BadInput):
            self._request("POST", f"{self.url}/unload_lora_adapter", {"lora_name": name})

    def _request(self, method: str, url: str, body: dict[str, Any] | None = None) -> bytes:
        endpoint, problem = self.endpoint, ""
        try:
            answer = httpx.request(method, url, json=body, **client_options(endpoint))
        except httpx.HTTPError as error:
            problem = type(error).__name__
        if problem:  # raised out here, so that no httpx exception, which knows its request, hangs on ours
            raise BadInput(
                f"engine.base_url: nothing answers at {url} ({problem}). Start the server "
                f"(`{start_command('MODEL')}`), or set engine.base_url to where it is."
            )
        data = scrubbed(answer.content, endpoint)
        if answer.status_code != 200:
            raise ServerRefused(answer.status_code, error_message(data)[0] if b'"error"' in data else "")
        return data


class _Completions(HttpChatModel):
    """The client for `POST base_url/completions`, of token ids to token ids."""

    route = "completions"

    async def sample(self, body: dict[str, Any], role: str) -> Reply:
        """Raises as `HttpChatModel.complete` does."""
        most = Usage(len(body["prompt"]), body["max_tokens"])
        return await self._outcome(self._with_retries(body, most, role))

    def read(self, data: bytes, body: dict[str, Any]) -> Reply:
        return read_completion(data, body)

    def drop(self) -> None:
        """Break off the calls under way; the server stops when nobody listens."""
        for call in list(self._under_way):
            call.cancel()


def read_completion(data: bytes, body: dict[str, Any]) -> Reply:
    """The reply in the body of a completion: ids, log-probs and prompt; the text is left to whoever decodes.

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
    """The request, with every sampling field: those left out would be taken from the model's generation config.

    Args:
        model: Name of the base model or of an adapter.
        prompt: Its token ids.
        sampling: How to draw; `adapter` is in the name.
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


class VLLMEngine:
    """A `ChatModel` over a vLLM server that speaks with the adapter of `lm`, or where it has none with the base alone.

    Args:
        lm: The policy, a transformers causal LM, with or without a peft adapter.
        tokenizer: Its tokenizer.
        config: Where the server is, and how it is checked.
        run: Folder of the run: it names the adapters, and has them where the config names no other folder.
        temperature: That rollouts sample at; the check does too.
        tell: Gets what a person should know while the run goes on, a line each.

    Attributes:
        new_tokens: Sampled so far.

    Raises:
        BadInput: The server cannot be reached or has no such model.
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        config: VLLMEngineConfig,
        run: Path,
        temperature: float,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.lm, self.tokenizer, self.config, self._tell = lm, tokenizer, config, tell
        self.format = ChatFormat(tokenizer)
        self._server = VLLMServer(engine_endpoint(config))
        self._served = self._server.base()
        self._http = _Completions(replace(engine_endpoint(config), model=self._served.name), tell)
        self._stops = sorted(end_tokens(lm, tokenizer))
        self._temperature = temperature or 1.0
        self._folder = Path(config.adapters).expanduser().absolute() if config.adapters else run.absolute() / "adapters"
        # Adapters of one run are known by the beginning of their names: a run that was killed leaves some behind.
        self._prefix = f"collab-{hashlib.blake2b(str(run.absolute()).encode(), digest_size=4).hexdigest()}-"
        self._adapter = ""  # the name that the policy speaks under, where it has an adapter
        self._live: list[str] = []  # all that this engine has loaded
        self._prompt = self.format.encode(CHECK_CONVERSATION)[0]
        self._base_checked = False
        self.new_tokens = 0

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        """One reply; see `ChatModel`. Its randomness is a seed made of `key`.

        Raises:
            BadInput: The prompt is empty, or does not fit the server's longest sequence.
            ChatFailed: No reply after all retries, or the server refuses this request.
            RunStopped: The server is down for too long, or refuses everything.
        """
        prompt, _ = self.format.encode(messages)
        check_fits(prompt, sampling.max_new_tokens, self._served.positions)
        name = (sampling.adapter and self._adapter) or self._served.name
        body = completion_request(name, prompt, sampling, seed_of(key), self._stops)
        try:
            reply = await self._http.sample(body, key.role.partition("/")[0] or "other")
        except RunStopped as error:
            if name == self._adapter:
                raise RunStopped(f"{error} Where the server was started anew, its adapters are gone: resume.") from None
            raise
        self.new_tokens += len(reply.token_ids)
        return replace(reply, text=self.format.decode(reply.token_ids, sampling.stop), usage=None)

    # --- adapters ------------------------------------------------------------------------------------------------

    def sync_weights(
        self, logprobs: LogProbs, share_out: Callable[[Any], Any], state: Mapping[str, Any] | None = None
    ) -> None:
        """Have the server speak with the weights as they are now, and verify that it does. All processes call it.

        Args:
            logprobs: The policy's own log-probs, as the update computes them.
            share_out: Takes a value of the first process to all.
            state: The model's state dict, where the adapter's weights are not all in this process.

        Raises:
            RunStopped: On all processes: the server is of another base or returns other log-probs, it cannot load the
                adapter, or it has loaded it twice and it was not in effect.
        """
        if not self._base_checked:
            self._check_base(logprobs, share_out)
            self._base_checked = True
        if not hasattr(self.lm, "disable_adapter"):
            return
        for number in range(1, TRIES + 1):
            self._adapter = self._first(share_out, lambda: self._load(state))
            problem = self._check_adapter(logprobs, share_out)
            if not problem:
                return
            if number < TRIES and rank() == 0:
                self._tell(f"{problem} It is loaded once more under another name.")
        raise RunStopped(
            f"{problem} It was loaded {TRIES} times, each time under a fresh name. What the policy would learn from "
            "was sampled from another policy, so the run stops. Start the server anew with "
            f"`{start_command(self._served.root, self._rank())}` and resume, or take engine=local.",
            everywhere=True,
        )

    def clear_cache(self) -> None:
        """The rollout is over: break off what nobody waits for any more. The adapter stays until the next one."""
        self._http.drop()

    def close(self) -> None:
        """Unload what was loaded and delete its files. Call it when no process asks the server any more."""
        self._http.drop()
        while self._live:
            self._remove(self._live.pop())
        self._adapter = ""
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # unless another run's are in it

    def _remove(self, name: str) -> None:
        self._server.unload(name)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _rank(self) -> int:
        return max((c.r for c in getattr(self.lm, "peft_config", {}).values()), default=0)

    def _first(self, share_out: Callable[[Any], Any], work: Callable[[], T]) -> T:
        """What the first process makes of `work`, on all of them; where it fails, all fail with its message."""
        found: tuple[Any, str] = (None, "")
        if rank() == 0:
            try:
                found = work(), ""
            except (BadInput, RunStopped, OSError) as error:
                found = None, str(error)
        result, problem = share_out(found)
        if problem:
            raise RunStopped(problem, everywhere=True)
        return result

    def _load(self, state: Mapping[str, Any] | None) -> str:
        """Write and load the adapter under a fresh name; at most the one before stays beside it."""
        if not self._live:
            for name in self._server.adapters():
                if name.startswith(self._prefix):
                    self._server.unload(name)
            for left in self._folder.glob(f"{self._prefix}*"):
                shutil.rmtree(left, ignore_errors=True)
        while len(self._live) > 1:
            self._remove(self._live.pop(0))
        name = f"{self._prefix}{uuid.uuid4().hex[:12]}"
        self._live.append(name)
        folder = self._folder / name
        folder.mkdir(parents=True)
        # The base's embeddings are no part of the adapter, and looking after them asks the hub.
        self.lm.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        self._server.load(name, folder)
        return name

    # --- checks --------------------------------------------------------------------------------------------------

    def _ask(self, name: str, num_tokens: int) -> tuple[list[float], Reply]:
        """The server's log-probs of the check's conversation, and tokens that it samples after it."""
        sampling = Sampling(num_tokens, self._temperature, ignore_eos=True)
        body = completion_request(name, self._prompt, sampling, seed=1) | {"prompt_logprobs": 0}
        try:
            data = self._server.complete(body)
            reply, read = read_completion(data, body), json.loads(data)["choices"][0]["prompt_logprobs"]
            values = [place[str(token)]["logprob"] for place, token in zip(read[1:], self._prompt[1:], strict=True)]
            return [float(value) for value in values], reply
        except (ServerRefused, Failure, LookupError, TypeError, ValueError) as error:
            raise RunStopped(
                f"engine=vllm: the server at {self._server.url} does not give the log-probs of a check ({error})."
            ) from None

    def _check_base(self, logprobs: LogProbs, share_out: Callable[[Any], Any]) -> None:
        """Raise `RunStopped` where the server has other weights or precision, or log-probs of something else."""
        prompt, temperature = self._prompt, self._temperature
        read, reply = self._first(share_out, lambda: self._ask(self._served.name, _SAMPLED))
        adapter = not hasattr(self.lm, "disable_adapter")  # without one, the policy as it is
        of_prompt = gap(read, logprobs(prompt[:1], prompt[1:], 1.0, adapter))
        sampled = gap(reply.logprobs, logprobs(prompt, reply.token_ids, temperature, adapter))
        at_one = gap(reply.logprobs, logprobs(prompt, reply.token_ids, 1.0, adapter))
        self._first(share_out, lambda: self._judge_base(of_prompt, sampled, at_one))

    def _judge_base(self, of_prompt: float, sampled: float, at_one: float) -> None:
        """From the gaps of the prompt, of sampled tokens, and of these at temperature 1, to what is wrong."""
        tolerance, base = self.config.tolerance, str(inner_of(self.lm).config._name_or_path)
        if not of_prompt <= tolerance:
            raise RunStopped(
                f"engine=vllm: the server at {self._server.url} has {self._served.name} ({self._served.root}), and "
                f"its log-probs of a short conversation are {of_prompt:.3f} nats a token from those "
                f"of the policy's base {base}, more than engine.tolerance={tolerance} allows: it is another model, or "
                f"it computes in another precision than {self.lm.dtype}. Start it with the policy's base, "
                f"`{start_command(base, self._rank() or 'R')}`."
            )
        # Fewer tokens, whose logits are divided by the temperature: rounding weighs more.
        tolerance_of_sampled = 2 * tolerance / min(1.0, self._temperature)
        if sampled <= tolerance_of_sampled:
            return
        if at_one <= tolerance_of_sampled:
            raise RunStopped(
                f"engine=vllm: the server at {self._server.url} returns log-probs at temperature 1, where "
                f"{self._temperature} was asked for: the policy would learn from ratios that are wrong. Start it "
                "with --logprobs-mode processed_logprobs."
            )
        raise RunStopped(
            f"engine=vllm: the log-probs of the tokens that the server at {self._server.url} samples are "
            f"{sampled:.3f} nats a token from ours at temperature {self._temperature}, more "
            f"than {tolerance_of_sampled:.3f} (engine.tolerance and the temperature), though those of a "
            "prompt agree: it samples from another distribution. Start it with --logprobs-mode "
            "processed_logprobs --generation-config vllm."
        )

    def _check_adapter(self, logprobs: LogProbs, share_out: Callable[[Any], Any]) -> str:
        """What is wrong with the adapter that was loaded last; "" if it is in effect."""
        prompt = self._prompt
        read, _ = self._first(share_out, lambda: self._ask(self._adapter, 1))
        ours = logprobs(prompt[:1], prompt[1:], 1.0, True)
        found: float = self._first(share_out, lambda: gap(read, ours))
        if found <= self.config.tolerance:
            return ""
        return (
            f"engine=vllm: the adapter {self._adapter}, loaded at {self._server.url}, is not in effect: its log-probs "
            f"of a short conversation are {found:.3f} nats a token from ours, more than {self.config.tolerance} "
            "(engine.tolerance)."
        )


def gap(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Mean distance of log-probs, in nats a token."""
    return fmean(abs(a - b) for a, b in zip(theirs, ours, strict=True))
