"""vLLM servers as the rollout engine: token ids go there, sampled ids and their log-probs come back.

A server has the policy's base model. Before each rollout the current LoRA adapter is written into a fresh folder and
loaded there under a fresh name, since a server may cache what it has under a known name. Then the server's log-probs of
a short conversation are compared with those that the update computes. A mean gap of more than `tolerance` nats a token
means that the server speaks with another policy, and it is left out. If no server is left, the run stops. Each update
logs the gap over all tokens that it learns from (`train/logprob_gap`).

The base model is compared once, and so are tokens that it samples: vLLM returns log-probs of the distribution that is
sampled, temperature included, only with `--logprobs-mode processed_logprobs`. A server that returns during a rollout is
compared with log-probs that were computed before it, since a forward may need all processes.

Of several processes, the first one loads the adapter and asks the servers. All of them take part in the comparison,
since the policy's own forward may need all of them. During a rollout each process has its own view of which servers
answer (`replicas.py`). Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from collab.chat.base import Sampling
from collab.chat.completions import seed_of
from collab.chat.retries import Failure
from collab.config.endpoints import engine_endpoints
from collab.config.schema import VLLMEngineConfig
from collab.conversation import Message, Reply
from collab.generation.replicas import Replica, Replicas, reason
from collab.generation.vllm_server import Served, ServerRefused, completion_request, read_completion, start_command
from collab.lm.chat_format import ChatFormat, check_fits, end_tokens
from collab.lm.inner import inner_of
from collab.randomness import RngKey
from collab.util.errors import BadInput, RunStopped
from collab.util.network import within
from collab.util.processes import rank

T = TypeVar("T")
# (prompt, reply, temperature, with the adapter or not) -> log-prob of each of the reply's tokens; all processes call it
LogProbs = Callable[[Sequence[int], Sequence[int], float, bool], list[float]]

_SAMPLED = 16  # tokens that the base model samples in a check
_GRACE = 30.0  # seconds that a server gets to unload adapters at the end

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


class VLLMEngine:
    """A `ChatModel` over vLLM servers, which decode with the adapter of `lm`, or with the base if there is none.

    Args:
        lm: The policy, a transformers causal LM, with or without a peft adapter.
        tokenizer: Its tokenizer.
        config: Addresses of the servers, and how they are checked.
        run: Folder of the run. Adapters are named after it, and are in it unless the config names another folder.
        temperature: Of rollouts, and of tokens that are sampled in a check.
        tell: Prints a line for the user while the run goes on.

    Attributes:
        new_tokens: Number of tokens sampled so far.

    Raises:
        BadInput: No server can be reached and has the model.
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
        self._replicas = Replicas(engine_endpoints(config), self._verify, tell)
        self._stops = sorted(end_tokens(lm, self.format))
        self._temperature = temperature or 1.0
        self._folder = Path(config.adapters).expanduser().absolute() if config.adapters else run.absolute() / "adapters"
        # All adapters of one run have this prefix. A run that was killed leaves some behind.
        self._prefix = f"collab-{hashlib.blake2b(str(run.absolute()).encode(), digest_size=4).hexdigest()}-"
        self._loads = rank() == 0  # this process writes adapters and loads them at the servers
        self._kept: list[str] = []  # names of the last two adapters, oldest first; the first process has them
        self._prompt = self.format.encode(CHECK_CONVERSATION)[0]
        self._base: list[float] = []  # our log-probs of the check's conversation, without the adapter
        self._ours: list[float] = []  # and with the current one
        self._positions: int | None = None  # maximum tokens of a sequence at all servers
        self._reach()
        self.new_tokens = 0

    def _reach(self) -> None:
        refusals: list[BadInput] = []
        for replica in self._replicas.all:
            try:
                replica.served = replica.server.base()
            except BadInput as error:
                refusals.append(error)
                self._replicas.leave_out(replica, str(error))
                continue
            found = [number for number in (self._positions, replica.served.positions) if number is not None]
            self._positions = min(found, default=None)
        if len(refusals) == len(self._replicas.all):
            raise BadInput(" ".join(map(str, refusals)))

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        """One reply; see `ChatModel`. The server, whichever it is, gets a seed made from `key`.

        Raises:
            BadInput: The prompt is empty.
            ContextFull: Prompt and `max_new_tokens` are more than the server reads.
            ChatFailed: No reply after all retries, or the server refuses this request.
            RunStopped: All servers are down for too long, or refuse everything.
        """
        prompt, _ = self.format.encode(messages)
        check_fits(prompt, sampling.max_new_tokens, self._positions)
        adapter = self._replicas.current if sampling.adapter else ""
        body = completion_request(adapter, prompt, sampling, seed_of(key), self._stops)
        reply = await self._replicas.reply(body, key.role.partition("/")[0] or "other", key.at(turn=0))
        self.new_tokens += len(reply.token_ids)
        return self.format.read(replace(reply, usage=None), sampling)

    # --- adapters ------------------------------------------------------------------------------------------------

    def sync_weights(
        self, logprobs: LogProbs, broadcast: Callable[[Any], Any], state: Mapping[str, Any] | None = None
    ) -> None:
        """Have the servers decode with the current adapter, and verify that they do. All processes call it.

        A server that fails is left out.

        Args:
            logprobs: The policy's own log-probs, as the update computes them.
            broadcast: Sends a value of the first process to all.
            state: The model's state dict, where the adapter's weights are not all in this process.

        Raises:
            RunStopped: On all processes, if no server is left: each has another base model, returns other log-probs,
                cannot load the adapter or does not decode with it.
        """
        adapter = hasattr(self.lm, "disable_adapter")
        name = self._first(broadcast, lambda: self._write(state)) if adapter else ""
        self._replicas.begin(name)
        tried: list[Replica] = []
        problems: dict[Replica, str] = {}
        for group in self._groups(broadcast):
            tried += group
            problems |= self._compare_base(group, logprobs, broadcast)
            if adapter:
                good = [replica for replica in group if replica not in problems]
                problems |= self._compare_adapter(good, name, logprobs, broadcast)
            if len(problems) < len(tried):
                break
        else:
            raise RunStopped(" ".join(problems.values()), everywhere=True)
        for replica in tried:
            if replica in problems:
                self._replicas.leave_out(replica, problems[replica])
            else:
                self._replicas.take_up(replica, name, replica.gap)

    def _compare_base(
        self, tried: Sequence[Replica], logprobs: LogProbs, broadcast: Callable[[Any], Any]
    ) -> dict[Replica, str]:
        """What is wrong with the base models of servers, and with what they sample; each is compared once."""
        fresh = [replica for replica in tried if not replica.compared]
        if not fresh:
            return {}
        adapter = not hasattr(self.lm, "disable_adapter")  # a policy without an adapter is compared as it is
        self._base = logprobs(self._prompt[:1], self._prompt[1:], 1.0, adapter)

        def gaps(served: Served, theirs: list[float], reply: Reply) -> tuple[float, float]:
            ours = logprobs(self._prompt, reply.token_ids, self._temperature, adapter)
            return gap(theirs, self._base), gap(reply.logprobs, ours)

        answers = self._asked(broadcast, fresh, self._ask_base)
        found = broadcast([None if isinstance(answer, str) else gaps(*answer) for answer in answers])
        problems = {}
        for replica, answer, apart in zip(fresh, answers, found, strict=True):
            if isinstance(answer, str):
                problems[replica] = answer
            else:
                replica.served, replica.gap = answer[0], apart[0]
                problems[replica] = self._base_problem(replica, apart[0]) or self._sampled_problem(replica, apart[1])
        return {replica: problem for replica, problem in problems.items() if problem}

    def _compare_adapter(
        self, replicas: Sequence[Replica], name: str, logprobs: LogProbs, broadcast: Callable[[Any], Any]
    ) -> dict[Replica, str]:
        """Load an adapter; returns where it is not in effect, and why."""
        self._ours = logprobs(self._prompt[:1], self._prompt[1:], 1.0, True)
        answers = self._asked(broadcast, replicas, lambda replica: self._ask_adapter(replica, name))
        found = broadcast([None if isinstance(answer, str) else gap(answer, self._ours) for answer in answers])
        problems = {}
        for replica, answer, distance in zip(replicas, answers, found, strict=True):
            if isinstance(answer, str):
                problems[replica] = answer
            else:
                replica.gap = distance
                problems[replica] = self._adapter_problem(replica, name, distance)
        return {replica: problem for replica, problem in problems.items() if problem}

    def clear_cache(self, weights: bool = False) -> None:
        """Cancel the calls under way at the end of a rollout. The adapter stays until the next one."""
        self._replicas.drop()

    def close(self) -> None:
        """Unload all adapters and delete their files. Call it when no process asks the servers any more."""
        self._replicas.drop()
        self._replicas.begin("")
        names, self._kept = self._kept, []
        for replica in self._replicas.all if names else ():
            with contextlib.suppress(BadInput, TimeoutError):
                within(_GRACE, partial(self._tidy, replica))
        for name in names:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # unless another run's are in it

    def logged(self) -> dict[str, float]:
        """What there is to log of the last rollout, of each of several servers; see `Replicas.logged`."""
        return self._replicas.logged()

    def _groups(self, broadcast: Callable[[Any], Any]) -> list[list[Replica]]:
        """The servers in the order in which they get new weights: first those that the first process has not left out.

        The others get them if all of the first fail.
        """
        known = broadcast([(r.problem, r.served, r.compared) for r in self._replicas.all])
        there: list[Replica] = []
        out: list[Replica] = []
        for replica, (problem, served, compared) in zip(self._replicas.all, known, strict=True):
            replica.served, replica.compared = served, compared
            (out if problem else there).append(replica)
            if problem and not replica.problem:
                self._replicas.leave_out(replica, problem)  # so that this process tries it again too
        return [group for group in (there, out) if group]

    def _first(self, broadcast: Callable[[Any], Any], work: Callable[[], T]) -> T:
        """Do `work` on the first process; all get its result, or fail with its message."""
        outcome: tuple[Any, str] = (None, "")
        if self._loads:
            try:
                outcome = work(), ""
            except (BadInput, RunStopped, OSError) as error:
                outcome = None, str(error)
        result, problem = broadcast(outcome)
        if problem:
            raise RunStopped(problem, everywhere=True)
        return result

    def _asked(
        self, broadcast: Callable[[Any], Any], replicas: Sequence[Replica], ask: Callable[[Replica], T]
    ) -> list[T | str]:
        """What each server answers the first process, which asks all at once, or why it does not; for all processes."""

        def run(replica: Replica, outcome: Future[T | str]) -> None:
            try:
                outcome.set_result(ask(replica))
            except (BadInput, RunStopped, OSError) as error:
                outcome.set_result(reason(error))
            except BaseException as error:
                outcome.set_exception(error)

        outcomes: list[Future[T | str]] = [Future() for _ in replicas if self._loads]
        for pair in zip(replicas, outcomes, strict=False):
            # A daemon, since a server may hang when the run is stopped.
            threading.Thread(target=run, args=pair, daemon=True).start()
        answers: list[T | str] = broadcast([outcome.result() for outcome in outcomes])
        return answers

    def _write(self, state: Mapping[str, Any] | None) -> str:
        """Write the adapter; returns its fresh name. Of the earlier adapters only the last is kept."""
        if not self._kept:
            for left in self._folder.glob(f"{self._prefix}*"):
                shutil.rmtree(left, ignore_errors=True)
        while len(self._kept) > 1:
            shutil.rmtree(self._folder / self._kept.pop(0), ignore_errors=True)
        name = f"{self._prefix}{uuid.uuid4().hex[:12]}"
        self._kept.append(name)
        folder = self._folder / name
        folder.mkdir(parents=True)
        # The base's embeddings are no part of the adapter, and a check of them would ask the hub.
        self.lm.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        return name

    def _tidy(self, replica: Replica) -> list[str]:
        """Unload the run's adapters, also those of a run that was killed, but for the kept ones; returns what is left.

        Raises:
            BadInput: The server cannot be reached.
        """
        there = replica.server.adapters()
        old = [name for name in there if name.startswith(self._prefix) and name not in self._kept]
        for name in old:
            replica.server.unload(name)
        return [name for name in there if name not in old]

    # --- checks --------------------------------------------------------------------------------------------------

    def _ask(self, replica: Replica, name: str, num_tokens: int) -> tuple[list[float], Reply]:
        """The server's log-probs of the check's conversation, and a reply to it of `num_tokens` tokens."""
        sampling = Sampling(num_tokens, self._temperature, ignore_eos=True)
        body = completion_request(name, self._prompt, sampling, seed=1) | {"prompt_logprobs": 0}
        try:
            data = replica.server.complete(body)
            reply, read = read_completion(data, body), json.loads(data)["choices"][0]["prompt_logprobs"]
            values = [place[str(token)]["logprob"] for place, token in zip(read[1:], self._prompt[1:], strict=True)]
            return [float(value) for value in values], reply
        except (ServerRefused, Failure, LookupError, TypeError, ValueError, OverflowError) as error:
            raise RunStopped(
                f"engine=vllm: the server at {replica.url} does not give the log-probs of a check ({error})."
            ) from None

    def _ask_base(self, replica: Replica) -> tuple[Served, list[float], Reply]:
        served = replica.server.base()
        if self._positions is not None and served.positions is not None and served.positions < self._positions:
            raise BadInput(
                f"engine=vllm: the server at {replica.url} takes sequences of {served.positions} tokens, and those of "
                f"{self._positions} were taken so far. Start it with --max-model-len {self._positions}."
            )
        return served, *self._ask(replica, served.name, _SAMPLED)

    def _ask_adapter(self, replica: Replica, name: str) -> list[float]:
        """Load the adapter, which the first process does for all, and ask for the log-probs with it."""
        if self._loads and name not in self._tidy(replica):
            replica.server.load(name, self._folder / name)
        return self._ask(replica, name, 1)[0]

    def _verify(self, replica: Replica, name: str) -> float:
        """Bring a server that was left out up to date, during a rollout; returns its gap. No forward is run for it.

        Raises:
            BadInput, RunStopped: It does not speak with the policy, or cannot be reached.
        """
        replica.served, theirs, _ = self._ask_base(replica)
        distance = gap(theirs, self._base)
        problem = self._base_problem(replica, distance)
        if not problem and not replica.server.returns_sampled_logprobs(replica.served, self._prompt):
            problem = (
                f"engine=vllm: the server at {replica.url} returns log-probs of another distribution than the one "
                "that it samples from. Start it with --logprobs-mode processed_logprobs."
            )
        if not problem and name:
            distance = gap(self._ask_adapter(replica, name), self._ours)
            problem = self._adapter_problem(replica, name, distance)
        replica.gap = distance
        if problem:
            raise RunStopped(problem)
        return distance

    def _base_problem(self, replica: Replica, distance: float) -> str:
        """Whether the server has other weights or precision; "" if not."""
        if distance <= self.config.tolerance:
            return ""
        assert replica.served is not None
        base = str(inner_of(self.lm).config._name_or_path)
        return (
            f"engine=vllm: the server at {replica.url} has {replica.served.name} ({replica.served.root}), and "
            f"its log-probs of a short conversation are {distance:.3f} nats a token from those "
            f"of the policy's base {base}, more than engine.tolerance={self.config.tolerance} allows: it is another "
            f"model, or it computes in another precision than {self.lm.dtype}. Start it with the policy's base, "
            f"`{start_command(base, self._rank() or 'R')}`."
        )

    def _sampled_problem(self, replica: Replica, distance: float) -> str:
        """Whether the server samples from another distribution; "" if not."""
        # The reply has few tokens, and the temperature divides their logits: rounding weighs more.
        tolerance = 2 * self.config.tolerance / min(1.0, self._temperature)
        if distance <= tolerance:
            return ""
        return (
            f"engine=vllm: the log-probs of tokens that the server at {replica.url} samples at temperature "
            f"{self._temperature} are {distance:.3f} nats a token from ours, more than {tolerance:.3f} "
            "(engine.tolerance and the temperature), though those of a prompt agree: it samples from another "
            "distribution, or returns log-probs of another. Start it with --logprobs-mode processed_logprobs "
            "--generation-config vllm."
        )

    def _adapter_problem(self, replica: Replica, name: str, distance: float) -> str:
        """Whether the adapter is not in effect at the server; "" if it is."""
        if distance <= self.config.tolerance:
            return ""
        assert replica.served is not None
        return (
            f"engine=vllm: the adapter {name}, loaded at {replica.url}, is not in effect: its "
            f"log-probs of a short conversation are {distance:.3f} nats a token from ours, more than "
            f"{self.config.tolerance} (engine.tolerance). The policy would learn from the conversations of another "
            f"policy, so it gets no requests. Start the server anew, "
            f"`{start_command(replica.served.root, self._rank())}`, and resume if the run has stopped, or set "
            "engine=local."
        )

    def _rank(self) -> int:
        return max((c.r for c in getattr(self.lm, "peft_config", {}).values()), default=0)


def gap(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Mean absolute difference of log-probs, in nats a token."""
    return fmean(abs(a - b) for a, b in zip(theirs, ours, strict=True))
