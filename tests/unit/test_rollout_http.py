"""Rollouts whose users speak from a server: one that fails a third of all calls, and one that is slow."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import numpy as np
from fault_server import FAULTS, FaultServer
from scripted import ScriptedModel, says
from test_http import endpoint, quickly  # noqa: F401  the last is a fixture

from collab.chat.base import ChatModel, Sampling
from collab.chat.http import HttpChatModel
from collab.conversation import Conversation, Goal, Key, Message
from collab.rewards.reward import ConversationReward
from collab.simulation.rollout import Players, play_goals
from collab.simulation.user import UserTurn

MAX_TURNS = 2


class ModelUser:
    """A user that says whatever a chat model answers to the goal."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model

    async def respond(self, conversation: Conversation, key: Key) -> UserTurn:
        reply = await self.model.complete([Message("user", conversation.goal.prompt)], Sampling(8), key)
        return UserTurn(reply.text)


class Counted:
    """A metric that counts how often each conversation is scored."""

    def __init__(self) -> None:
        self.scored: Counter[str] = Counter()

    async def __call__(self, conversation: Conversation) -> float:
        self.scored[conversation.goal.id] += 1
        return 1.0


def rollout(model: HttpChatModel, count: int) -> tuple[list[Conversation], Counter[str], int, float]:
    """(conversations, how often each was scored, how many were reported as over, seconds)."""
    metric, over = Counted(), []
    players = Players(
        ScriptedModel(says("Which tone?", "Here it is.")),
        ModelUser(model),
        Sampling(8),
        MAX_TURNS,
        lambda: over.append(1),
    )
    goals = [Goal(f"g{number}", f"note {number}", "") for number in range(count)]
    reward = ConversationReward({"counted": (1.0, metric)})

    async def all_of_them() -> list[Conversation]:
        played = await play_goals(players, goals, "", Key(1, split="test"))
        await asyncio.gather(*(reward(conversation) for conversation in played))
        return played

    began = time.monotonic()
    played = asyncio.run(all_of_them())
    return played, metric.scored, len(over), time.monotonic() - began


def test_with_a_third_of_all_calls_failing_every_conversation_is_complete_and_scored_once():
    attempts: Counter[int] = Counter()

    def failures(seed: int) -> int:
        """How often the call with this seed fails: a third of all attempts do."""
        return int(np.random.default_rng(seed).geometric(2 / 3)) - 1

    def plan(number: int, call: dict[str, Any]) -> str:
        attempts[call["seed"]] += 1
        return FAULTS[number % len(FAULTS)] if attempts[call["seed"]] <= failures(call["seed"]) else "ok"

    told: list[str] = []
    with FaultServer(plan) as server:
        model = HttpChatModel(endpoint(server, max_concurrency=64), told.append)
        played, scored, over, _ = rollout(model, 200)
    assert over == 200 and scored == Counter({f"g{number}": 1 for number in range(200)})
    assert all(len(talk.turns) == MAX_TURNS and talk.ended_by == "max_turns" for talk in played)
    assert len({turn.user for talk in played for turn in talk.turns}) == 400  # each reply is that of its own request
    needed, failed = 200 * MAX_TURNS, sum(failures(seed) for seed in attempts)
    assert len(attempts) == needed and len(server.calls) == needed + failed
    assert 0.28 < failed / len(server.calls) < 0.38 and set(server.behaved) == {"ok", *FAULTS}
    user = model.ledger.spent["user"]
    assert (user.calls, user.retries, user.failed) == (needed, failed, 0)
    assert told == []  # and nothing was held


def test_conversations_take_little_more_than_the_latency_of_their_calls():
    with FaultServer(seconds=0.5) as server:
        model = HttpChatModel(endpoint(server, max_concurrency=96, read_timeout=30.0, connect_timeout=30.0))
        played, _, _, seconds = rollout(model, 96)
    print(f"96 conversations of {MAX_TURNS} calls of 0.5 s: {seconds:.2f} s")
    assert len(played) == 96 and len(server.calls) == 96 * MAX_TURNS
    assert server.most_in_flight <= 96 and server.connections <= 96
    assert 1.0 <= seconds < 2.0


def test_no_more_is_in_flight_than_allowed_whatever_waits():
    with FaultServer(seconds=0.1) as server:
        rollout(HttpChatModel(endpoint(server, max_concurrency=24, read_timeout=30.0)), 96)
    assert server.most_in_flight == 24 and server.connections == 24
