"""Rows on forward sampling: w further turns after each candidate of each context, several times over."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import httpx
import torch

from benchmarks.measure import TEMPERATURE, Figures, Setting, compare, exactly, in_turn, seconds
from collab.app.compose import load_config
from collab.config.schema import AgendaUserConfig
from collab.conversation import Conversation, Reply
from collab.datamodules.goals import load_splits
from collab.generation.engine import LocalEngine
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.agenda import AgendaUser
from collab.simulation.conversation_loop import Players, sample_candidates
from collab.simulation.multiturn import multiturn_reward
from collab.simulation.user import UserSimulator, UserTurn

_WINDOW = 2
_MAX_TURNS = 8  # never reached
_TOKENS = 48  # of a turn


class _Nothing:
    """A metric that costs nothing: what is measured is talking and waiting."""

    async def __call__(self, conversation: Conversation) -> float:
        return 0.0


class _LateUser:
    """The agenda user behind a delay."""

    def __init__(self, delay: float) -> None:
        self.user, self.delay = AgendaUser(AgendaUserConfig(), max_turns=_MAX_TURNS), delay

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        await asyncio.sleep(self.delay)
        return await self.user.respond(conversation, key)


class _ServedUser:
    """The user of `peers/user_server.py`, asked as the official package asks it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages()]
        answer = await self.client.post("/chat/completions", json={"model": "user", "messages": messages})
        return UserTurn(json.loads(answer.json()["choices"][0]["message"]["content"])["response"])


@dataclass(frozen=True)
class _Start:
    """Contexts, and the candidates of each."""

    engine: LocalEngine
    chats: list[Conversation]
    candidates: list[list[Reply]]


def _start(setting: Setting, contexts: int, candidates: int) -> _Start:
    task = load_config("train", ["experiment=doc_edit"]).task
    goals = load_splits(task).train[:contexts]
    chats = [
        Conversation(goal, task.system_prompt, pending=f"Hi, I need a text about {goal.metadata['title']}.")
        for goal in goals
    ]
    engine = setting.engine()
    players = Players(engine, _LateUser(0.0), exactly(min(setting.tokens, _TOKENS)), _MAX_TURNS)

    async def draw() -> list[list[Reply]]:
        keys = (RngKey(1, goal=goal.id) for goal in goals)
        return [
            await sample_candidates(players, chat, candidates, key) or [] for chat, key in zip(chats, keys, strict=True)
        ]

    return _Start(engine, chats, asyncio.run(draw()))


def _futures(
    setting: Setting, start: _Start, samples: int, user: Callable[[], AbstractAsyncContextManager[UserSimulator]]
) -> Callable[[], list[Conversation]]:
    """Plays all futures from an empty cache."""
    reward = ConversationReward({"nothing": (1.0, _Nothing())})

    async def everything() -> list[Conversation]:
        async with user() as person:
            players = Players(start.engine, person, exactly(min(setting.tokens, _TOKENS)), _MAX_TURNS)
            scored = await asyncio.gather(
                *(
                    multiturn_reward(
                        chat,
                        replies,
                        players=players,
                        reward=reward,
                        window=_WINDOW,
                        num_samples=samples,
                        key=RngKey(1, goal=chat.goal.id),
                    )
                    for chat, replies in zip(start.chats, start.candidates, strict=True)
                )
            )
        return [future for group in scored for candidate in group for future in candidate.futures]

    def work() -> list[Conversation]:
        start.engine.clear_cache()
        return asyncio.run(everything())

    return work


# --- against the official package ------------------------------------------------------------------------------------


def _against_official(setting: Setting, environment: str, mode: str) -> Figures:
    candidates, samples = 2, 3
    count = setting.contexts * candidates * samples
    tokens = min(setting.tokens, _TOKENS)
    server = setting.peer(None, "user_server", latency=0.25)
    official = setting.peer(
        environment,
        "official",
        mode=mode,
        model=setting.model,
        dtype=setting.named_dtype,
        device=str(setting.device),
        threads=torch.get_num_threads(),
    )
    start = _start(setting, setting.contexts, candidates)
    histories = [
        [{"role": message.role, "content": message.content} for message in chat.with_reply(reply).messages()]
        for chat, replies in zip(start.chats, start.candidates, strict=True)
        for reply in replies
    ]

    @contextlib.asynccontextmanager
    async def served() -> AsyncIterator[UserSimulator]:
        async with httpx.AsyncClient(base_url=server.told["url"], trust_env=False, timeout=60) as client:
            yield _ServedUser(client)

    futures = _futures(setting, start, samples, served)

    def checked(side: Callable[[], float]) -> Callable[[], float]:
        """Both sides ask the user as often: w times in each conversation."""

        def work() -> float:
            before = server.ask("answered")["answered"]
            took = side()
            asked = server.ask("answered")["answered"] - before
            assert asked == count * _WINDOW, f"the user was asked {asked} times, and should be {count * _WINDOW} times"
            return count / took

        return work

    def ours() -> float:
        return seconds(lambda: _check(futures(), count, tokens))

    def theirs() -> float:
        found = official.ask(
            "forward",
            histories=histories,
            samples=samples,
            messages=2 * _WINDOW,
            tokens=tokens,
            temperature=TEMPERATURE,
            url=server.told["url"],
        )
        return float(found["seconds"])

    return compare(setting, checked(ours), checked(theirs))


def _check(futures: list[Conversation], count: int, tokens: int) -> None:
    assert len(futures) == count
    replies = [turn.reply for future in futures for turn in future.turns]
    assert len(replies) == count * (_WINDOW + 1) and all(len(reply.token_ids) == tokens for reply in replies)


def forward_vs_official(setting: Setting) -> Figures:
    return _against_official(setting, "collabllm", "local")


def forward_vs_official_vllm(setting: Setting) -> Figures:
    return _against_official(setting, "vllm", "vllm")


# --- against itself --------------------------------------------------------------------------------------------------


def _agenda(delay: float) -> Callable[[], AbstractAsyncContextManager[UserSimulator]]:
    return lambda: contextlib.nullcontext(_LateUser(delay))


def samples_1_to_8(setting: Setting) -> Figures:
    start = _start(setting, 4, 2)
    eight, one = (_futures(setting, start, samples, _agenda(0.0)) for samples in (8, 1))
    return compare(setting, lambda: seconds(eight), lambda: seconds(one))


def user_latency(setting: Setting) -> Figures:
    start = _start(setting, 8, 2)
    late, prompt = (_futures(setting, start, 4, _agenda(delay)) for delay in (1.0, 0.0))
    slow, fast = in_turn(setting.runs, lambda: seconds(late), lambda: seconds(prompt))
    added = [a - b for a, b in zip(slow, fast, strict=True)]
    return Figures.of(added, [float(_WINDOW)] * len(added))
