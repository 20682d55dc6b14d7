"""A vLLM server as the rollout engine: token ids go there, sampled ids and their log-probs come back.

The server has the policy's base model. Before each rollout the current LoRA adapter is written into a fresh folder and
loaded there under a fresh name, since a server may cache what it has under a known name. Then the server's log-probs of
a short conversation are compared with those that the update computes. A mean gap of more than `tolerance` nats a token
means that the server speaks with another policy, and the run stops. Each update logs the gap over all tokens that it
learns from (`train/logprob_gap`).

The base model is compared once, and so are tokens that it samples: vLLM returns log-probs of the distribution that is
sampled, temperature included, only with `--logprobs-mode processed_logprobs`.

Of several processes, the first one loads the adapter and asks the server. All of them take part in the comparison,
since the policy's own forward may need all of them. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from collab.chat.base import Sampling
from collab.chat.completions import seed_of
from collab.chat.http import HttpChatModel
from collab.chat.retries import Failure
from collab.config.endpoints import engine_endpoint
from collab.config.schema import VLLMEngineConfig
from collab.conversation import Message, Reply, Usage
from collab.generation.vllm_server import (
    ServerRefused,
    VLLMServer,
    completion_request,
    read_completion,
    start_command,
)
from collab.lm.chat_format import ChatFormat, check_fits, end_tokens
from collab.lm.inner import inner_of
from collab.randomness import RngKey
from collab.util.errors import BadInput, RunStopped
from collab.util.processes import rank

T = TypeVar("T")
# (prompt, reply, temperature, with the adapter or not) -> log-prob of each of the reply's tokens; all processes call it
LogProbs = Callable[[Sequence[int], Sequence[int], float, bool], list[float]]

_SAMPLED = 16  # tokens that the base model samples in a check

# Both sides compute log-probs of it in a check.
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
        """Cancel the calls under way; the server then stops decoding them."""
        for call in list(self._under_way):
            call.cancel()


class VLLMEngine:
    """A `ChatModel` over a vLLM server, which decodes with the adapter of `lm`, or with the base if there is none.

    Args:
        lm: The policy, a transformers causal LM, with or without a peft adapter.
        tokenizer: Its tokenizer.
        config: Address of the server, and how it is checked.
        run: Folder of the run. Adapters are named after it, and are in it unless the config names another folder.
        temperature: Of rollouts, and of tokens that are sampled in a check.
        tell: Prints a line for the user while the run goes on.

    Attributes:
        new_tokens: Number of tokens sampled so far.

    Raises:
        BadInput: The server cannot be reached or lacks the model.
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
        self.lm, self.config = lm, config
        self.format = ChatFormat(tokenizer)
        self._server = VLLMServer(engine_endpoint(config))
        self._served = self._server.base()
        self._http = _Completions(replace(engine_endpoint(config), model=self._served.name), tell)
        self._stops = sorted(end_tokens(lm, self.format))
        self._temperature = temperature or 1.0
        self._folder = Path(config.adapters).expanduser().absolute() if config.adapters else run.absolute() / "adapters"
        # All adapters of one run have this prefix. A run that was killed leaves some behind.
        self._prefix = f"collab-{hashlib.blake2b(str(run.absolute()).encode(), digest_size=4).hexdigest()}-"
        self._adapter = ""  # name of the current adapter at the server; "" without one
        self._loaded: list[str] = []  # names of the loaded adapters, oldest first
        self._prompt = self.format.encode(CHECK_CONVERSATION)[0]
        self._base_checked = False
        self.new_tokens = 0

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        """One reply; see `ChatModel`. The server gets a seed made from `key`.

        Raises:
            BadInput: The prompt is empty.
            ContextFull: Prompt and `max_new_tokens` are more than the server reads.
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
                raise RunStopped(f"{error} If the server was started anew, its adapters are gone: resume.") from None
            raise
        self.new_tokens += len(reply.token_ids)
        return self.format.read(replace(reply, usage=None), sampling)

    # --- adapters ------------------------------------------------------------------------------------------------

    def sync_weights(
        self, logprobs: LogProbs, broadcast: Callable[[Any], Any], state: Mapping[str, Any] | None = None
    ) -> None:
        """Have the server decode with the current adapter, and verify that it does. All processes call it.

        Args:
            logprobs: The policy's own log-probs, as the update computes them.
            broadcast: Sends a value of the first process to all.
            state: The model's state dict, where the adapter's weights are not all in this process.

        Raises:
            RunStopped: On all processes: the server has another base model, returns other log-probs, cannot load the
                adapter or does not decode with it.
        """
        if not self._base_checked:
            self._check_base(logprobs, broadcast)
            self._base_checked = True
        if not hasattr(self.lm, "disable_adapter"):
            return
        self._adapter = self._first(broadcast, lambda: self._load(state))
        theirs, _ = self._first(broadcast, lambda: self._ask(self._adapter, 1))
        distance = broadcast(gap(theirs, logprobs(self._prompt[:1], self._prompt[1:], 1.0, True)))
        if not distance <= self.config.tolerance:
            raise RunStopped(
                f"engine=vllm: the adapter {self._adapter}, loaded at {self._server.url}, is not in effect: its "
                f"log-probs of a short conversation are {distance:.3f} nats a token from ours, more than "
                f"{self.config.tolerance} (engine.tolerance). The policy would learn from the conversations of another "
                f"policy, so the run stops. Start the server anew, `{start_command(self._served.root, self._rank())}`, "
                "and resume, or set engine=local.",
                everywhere=True,
            )

    def clear_cache(self, weights: bool = False) -> None:
        """Cancel the calls under way at the end of a rollout. The adapter stays until the next one."""
        self._http.drop()

    def close(self) -> None:
        """Unload all adapters and delete their files. Call it when no process asks the server any more."""
        self._http.drop()
        while self._loaded:
            self._remove(self._loaded.pop())
        self._adapter = ""
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # unless another run's are in it

    def _remove(self, name: str) -> None:
        self._server.unload(name)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _rank(self) -> int:
        return max((c.r for c in getattr(self.lm, "peft_config", {}).values()), default=0)

    def _first(self, broadcast: Callable[[Any], Any], work: Callable[[], T]) -> T:
        """Do `work` on the first process; all get its result, or fail with its message."""
        outcome: tuple[Any, str] = (None, "")
        if rank() == 0:
            try:
                outcome = work(), ""
            except (BadInput, RunStopped, OSError) as error:
                outcome = None, str(error)
        result, problem = broadcast(outcome)
        if problem:
            raise RunStopped(problem, everywhere=True)
        return result

    def _load(self, state: Mapping[str, Any] | None) -> str:
        """Write and load the adapter; returns its fresh name. Of the earlier adapters only the last stays loaded."""
        if not self._loaded:
            for name in self._server.adapters():
                if name.startswith(self._prefix):
                    self._server.unload(name)
            for left in self._folder.glob(f"{self._prefix}*"):
                shutil.rmtree(left, ignore_errors=True)
        while len(self._loaded) > 1:
            self._remove(self._loaded.pop(0))
        name = f"{self._prefix}{uuid.uuid4().hex[:12]}"
        self._loaded.append(name)
        folder = self._folder / name
        folder.mkdir(parents=True)
        # The base's embeddings are no part of the adapter, and a check of them would ask the hub.
        self.lm.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        self._server.load(name, folder)
        return name

    # --- checks --------------------------------------------------------------------------------------------------

    def _ask(self, name: str, num_tokens: int) -> tuple[list[float], Reply]:
        """The server's log-probs of the check's conversation, and a reply to it of `num_tokens` tokens."""
        sampling = Sampling(num_tokens, self._temperature, ignore_eos=True)
        body = completion_request(name, self._prompt, sampling, seed=1) | {"prompt_logprobs": 0}
        try:
            data = self._server.complete(body)
            reply, read = read_completion(data, body), json.loads(data)["choices"][0]["prompt_logprobs"]
            values = [place[str(token)]["logprob"] for place, token in zip(read[1:], self._prompt[1:], strict=True)]
            return [float(value) for value in values], reply
        except (ServerRefused, Failure, LookupError, TypeError, ValueError, OverflowError) as error:
            raise RunStopped(
                f"engine=vllm: the server at {self._server.url} does not give the log-probs of a check ({error})."
            ) from None

    def _check_base(self, logprobs: LogProbs, broadcast: Callable[[Any], Any]) -> None:
        """Raise `RunStopped` if the server has other weights or precision, or samples from another distribution."""
        prompt, temperature, tolerance = self._prompt, self._temperature, self.config.tolerance
        theirs, reply = self._first(broadcast, lambda: self._ask(self._served.name, _SAMPLED))
        adapter = not hasattr(self.lm, "disable_adapter")  # a policy without an adapter is compared as it is
        of_prompt = broadcast(gap(theirs, logprobs(prompt[:1], prompt[1:], 1.0, adapter)))
        of_reply = broadcast(gap(reply.logprobs, logprobs(prompt, reply.token_ids, temperature, adapter)))
        base = str(inner_of(self.lm).config._name_or_path)
        if not of_prompt <= tolerance:
            raise RunStopped(
                f"engine=vllm: the server at {self._server.url} has {self._served.name} ({self._served.root}), and "
                f"its log-probs of a short conversation are {of_prompt:.3f} nats a token from those "
                f"of the policy's base {base}, more than engine.tolerance={tolerance} allows: it is another model, or "
                f"it computes in another precision than {self.lm.dtype}. Start it with the policy's base, "
                f"`{start_command(base, self._rank() or 'R')}`.",
                everywhere=True,
            )
        # The reply has few tokens, and the temperature divides their logits: rounding weighs more.
        tolerance = 2 * tolerance / min(1.0, temperature)
        if not of_reply <= tolerance:
            raise RunStopped(
                f"engine=vllm: the log-probs of tokens that the server at {self._server.url} samples at temperature "
                f"{temperature} are {of_reply:.3f} nats a token from ours, more than {tolerance:.3f} (engine.tolerance "
                "and the temperature), though those of a prompt agree: it samples from another distribution, or "
                "returns log-probs of another. Start it with --logprobs-mode processed_logprobs --generation-config "
                "vllm.",
                everywhere=True,
            )


def gap(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Mean absolute difference of log-probs, in nats a token."""
    return fmean(abs(a - b) for a, b in zip(theirs, ours, strict=True))
