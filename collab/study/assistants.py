"""The assistants of a study: each answers a conversation, and tells its reply while it is written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from collab.app.chat import check_policy, load_engine, run_system_prompt
from collab.chat.base import ChatFailed, Sampling
from collab.chat.budget import Ledger
from collab.chat.probe import served_model
from collab.chat.streaming import StreamingModel
from collab.config.schema import BudgetConfig
from collab.conversation import Message, Reply
from collab.randomness import RngKey
from collab.study.study_file import ArmConfig
from collab.util.errors import BadInput
from collab.util.prompts import prompt_text
from collab.util.text import is_blank

Tell = Callable[[str], None]


class Model(Protocol):
    """Whatever writes a reply and tells its text so far."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey, tell: Tell) -> Reply: ...


class LocalModel:
    """A policy in this process. It decodes in a thread of its own, so that pages are served meanwhile.

    Args:
        policy: As in `collab chat`.
        max_batch: Largest number of replies that are written at once; others wait.

    Raises:
        BadInput: There is no such model, or it has no chat template.
    """

    def __init__(self, policy: str, max_batch: int = 16) -> None:
        self._engine: Any = load_engine(policy, max_batch)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"policy {policy}", daemon=True).start()

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey, tell: Tell) -> Reply:
        loop, empty = asyncio.get_running_loop(), Reply("")

        def on_token(ids: Sequence[int]) -> None:
            text = self._engine.format.read(replace(empty, token_ids=tuple(ids)), sampling).text
            # A character of several tokens is incomplete until the last of them.
            loop.call_soon_threadsafe(tell, text.rstrip("\N{REPLACEMENT CHARACTER}"))

        call = self._engine.complete(messages, sampling, key, on_token)
        reply: Reply = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))
        return reply


class Assistant:
    """An arm, ready to speak.

    Args:
        name: Of the arm.
        model: Who writes.
        system_prompt: Its instruction; "" for none.
        sampling: How replies are drawn.
        seed: The same seed, participant and messages give the same reply of a local policy.
    """

    def __init__(self, name: str, model: Model, system_prompt: str, sampling: Sampling, seed: int) -> None:
        self.name, self._model, self.system_prompt = name, model, system_prompt
        self._sampling, self._seed = sampling, seed

    async def reply(
        self, turns: Sequence[tuple[str, str]], message: str, participant: int, tell: Tell, attempt: int = 0
    ) -> Reply:
        """The reply to a message.

        Args:
            turns: (message, reply) of each earlier turn.
            message: To answer.
            participant: Who wrote it.
            tell: Gets the reply's text so far.
            attempt: Replies to this message that failed.

        Raises:
            ChatFailed: No reply, or an empty one; ContextFull: the conversation is too long for the model.
            BudgetExhausted: The reply could cost more than is left of the budget.
        """
        messages = [Message("system", self.system_prompt)] if self.system_prompt else []
        for user, reply in turns:
            messages += [Message("user", user), Message("assistant", reply)]
        turn = len(turns) + 1
        key = RngKey(self._seed, role="policy", split="study", goal=str(participant), turn=turn, round=attempt)
        written = await self._model.complete([*messages, Message("user", message)], self._sampling, key, tell)
        if is_blank(written.text):
            raise ChatFailed("an empty reply")
        return written


def load_assistants(arms: dict[str, ArmConfig], seed: int, ledger: Ledger | None = None) -> dict[str, Assistant]:
    """Name -> assistant. Servers are asked for their models, all prompts and policies checked, before one is loaded.

    Arms with the same policy share its weights.

    Args:
        arms: Of the study.
        seed: Of the replies.
        ledger: Counts what replies of servers cost, by arm, and stops those that its budget does not allow.

    Raises:
        BadInput: A server does not answer, refuses the key or lacks the model; a policy cannot be loaded; there is a
            cap in dollars, and a model has no price.
    """
    ledger = ledger or Ledger(BudgetConfig())
    hosted: dict[str, Model] = {}
    prompts: dict[str, str] = {}
    for name, arm in arms.items():
        prompt = arm.system_prompt
        try:
            if prompt is None:
                prompt = run_system_prompt(arm.policy) if arm.policy else ""
            prompts[name] = prompt_text(prompt, "system_prompt")
            if arm.policy:
                check_policy(arm.policy)
            else:
                served = served_model(arm.endpoint)
                if ledger.budget.max_usd is not None and served not in ledger.budget.prices:
                    raise BadInput(
                        f"budget.max_usd is set, and budget.prices has no price for {served}. Add it to the study file "
                        "in dollars per million tokens of prompts and of replies, as in "
                        f"budget: {{prices: {{{served}: [0.15, 0.6]}}}}, or as [0, 0] if it costs nothing."
                    )
                hosted[name] = StreamingModel(replace(arm.endpoint, model=served), ledger, name)
        except BadInput as error:
            raise BadInput(f"arms.{name}: {error}") from None
    local: dict[str, LocalModel] = {}
    assistants = {}
    for name, arm in arms.items():
        if arm.policy and arm.policy not in local:
            local[arm.policy] = LocalModel(arm.policy)
        model = local[arm.policy] if arm.policy else hosted[name]
        sampling = Sampling(arm.max_new_tokens, arm.temperature)
        assistants[name] = Assistant(name, model, prompts[name], sampling, seed)
    return assistants
