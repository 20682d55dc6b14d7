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

_TRIES = 2  # at loading an adapter that is in effect
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
        """Cancel the calls under way; the server stops when nobody listens."""
        for call in list(self._under_way):
            call.cancel()


class VLLMEngine:
    """A `ChatModel` over a vLLM server, which decodes with the adapter of `lm`; without an adapter, with the base.

    Args:
        lm: The policy, a transformers causal LM, with or without a peft adapter.
        tokenizer: Its tokenizer.
        config: Where the server is, and how it is checked.
        run: Folder of the run. Adapters are named after it, and are in it unless the config names another folder.
        temperature: Of rollouts, and of tokens that are sampled in a check.
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
        # All adapters of one run have this prefix: a run that was killed leaves some behind.
        self._prefix = f"collab-{hashlib.blake2b(str(run.absolute()).encode(), digest_size=4).hexdigest()}-"
        self._adapter = ""  # name of the current adapter at the server; "" without one
        self._live: list[str] = []  # names of loaded adapters, oldest first
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
        self, logprobs: LogProbs, broadcast: Callable[[Any], Any], state: Mapping[str, Any] | None = None
    ) -> None:
        """Have the server decode with the current adapter, and verify that it does. All processes call it.

        Args:
            logprobs: The policy's own log-probs, as the update computes them.
            broadcast: Sends a value of the first process to all.
            state: The model's state dict, where the adapter's weights are not all in this process.

        Raises:
            RunStopped: On all processes: the server has another base model or returns other log-probs, it cannot load
                the adapter, or the adapter was loaded twice and was not in effect.
        """
        if not self._base_checked:
            self._check_base(logprobs, broadcast)
            self._base_checked = True
        if not hasattr(self.lm, "disable_adapter"):
            return
        for number in range(1, _TRIES + 1):
            self._adapter = self._first(broadcast, lambda: self._load(state))
            problem = self._check_adapter(logprobs, broadcast)
            if not problem:
                return
            if number < _TRIES and rank() == 0:
                self._tell(f"{problem} It is loaded once more under another name.")
        raise RunStopped(
            f"{problem} It was loaded {_TRIES} times, each time under a fresh name. What the policy would learn from "
            "was sampled from another policy, so the run stops. Start the server anew with "
            f"`{start_command(self._served.root, self._rank())}` and resume, or take engine=local.",
            everywhere=True,
        )

    def clear_cache(self, weights: bool = False) -> None:
        """The rollout is over: cancel calls under way. The adapter stays until the next one."""
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

    def _first(self, broadcast: Callable[[Any], Any], work: Callable[[], T]) -> T:
        """Do `work` on the first process; all get its result, or fail with its message."""
        found: tuple[Any, str] = (None, "")
        if rank() == 0:
            try:
                found = work(), ""
            except (BadInput, RunStopped, OSError) as error:
                found = None, str(error)
        result, problem = broadcast(found)
        if problem:
            raise RunStopped(problem, everywhere=True)
        return result

    def _load(self, state: Mapping[str, Any] | None) -> str:
        """Write and load the adapter under a fresh name; returns it. At most the previous adapter stays loaded too."""
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

    def _check_base(self, logprobs: LogProbs, broadcast: Callable[[Any], Any]) -> None:
        """Raise `RunStopped` where the server has other weights or precision, or log-probs of something else."""
        prompt, temperature = self._prompt, self._temperature
        read, reply = self._first(broadcast, lambda: self._ask(self._served.name, _SAMPLED))
        adapter = not hasattr(self.lm, "disable_adapter")  # without one, the policy as it is
        of_prompt = gap(read, logprobs(prompt[:1], prompt[1:], 1.0, adapter))
        sampled = gap(reply.logprobs, logprobs(prompt, reply.token_ids, temperature, adapter))
        at_one = gap(reply.logprobs, logprobs(prompt, reply.token_ids, 1.0, adapter))
        self._first(broadcast, lambda: self._judge_base(of_prompt, sampled, at_one))

    def _judge_base(self, of_prompt: float, sampled: float, at_one: float) -> None:
        """Raise by the gaps of the prompt, of the sampled tokens, and of these tokens at temperature 1."""
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

    def _check_adapter(self, logprobs: LogProbs, broadcast: Callable[[Any], Any]) -> str:
        """What is wrong with the adapter that was loaded last; "" if it is in effect."""
        prompt = self._prompt
        read, _ = self._first(broadcast, lambda: self._ask(self._adapter, 1))
        ours = logprobs(prompt[:1], prompt[1:], 1.0, True)
        found: float = self._first(broadcast, lambda: gap(read, ours))
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
