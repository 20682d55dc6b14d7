"""Rollouts whose users speak from a server: one that fails a third of all calls, and one that is slow."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import numpy as np
from fault_server import FAULTS, FaultServer
from scripted import ModelUser, ScriptedModel, says
from test_http import endpoint, quickly  # noqa: F401  the last is a fixture

from collab.chat.base import Sampling
from collab.chat.http import HttpChatModel
from collab.conversation import Conversation, Goal
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play_goals

MAX_TURNS = 2


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
        played = await play_goals(players, goals, "", RngKey(1, split="test"))
        await asyncio.gather(*(reward(conversation) for conversation in played))
        return played

    began = time.monotonic()
    played = asyncio.run(all_of_them())
    return played, metric.scored, len(over), time.monotonic() - began


def test_with_a_third_of_all_calls_failing_every_conversation_is_complete_and_scored_once():
    attempts: Counter[int] = Counter()
    faults = [fault for fault in FAULTS if fault != "drip"]  # which only the limit on a whole call ends

    def failures(seed: int) -> int:
        """How often the call with this seed fails: a third of all attempts do."""
        return int(np.random.default_rng(seed).geometric(2 / 3)) - 1

    def plan(number: int, call: dict[str, Any]) -> str:
        attempts[call["seed"]] += 1
        return faults[number % len(faults)] if attempts[call["seed"]] <= failures(call["seed"]) else "ok"

    with FaultServer(plan) as server:
        model = HttpChatModel(endpoint(server, max_concurrency=64, read_timeout=2.0, connect_timeout=60.0))
        played, scored, over, _ = rollout(model, 200)
    assert over == 200 and scored == Counter({f"g{number}": 1 for number in range(200)})
    assert all(len(talk.turns) == MAX_TURNS and talk.ended_by == "max_turns" for talk in played)
    assert len({turn.user for talk in played for turn in talk.turns}) == 400  # each reply is that of its own request
    needed, failed = 200 * MAX_TURNS, sum(failures(seed) for seed in attempts)
    user = model.ledger.spent["user"]
    assert len(attempts) == needed and len(server.calls) == needed + user.retries
    assert (user.calls, user.failed) == (needed, 0)
    assert server.most_in_flight <= 64 and server.connections <= 64 + user.retries
    assert failed <= user.retries  # more only where this machine was too busy to answer in time
    assert 0.28 < failed / (needed + failed) < 0.38 and set(server.behaved) == {"ok", *faults}


def test_conversations_take_little_more_than_the_latency_of_their_calls():
    with FaultServer(seconds=0.5) as server:
        model = HttpChatModel(endpoint(server, max_concurrency=96, read_timeout=60.0, connect_timeout=60.0))
        worked = time.process_time()
        played, _, _, seconds = rollout(model, 96)
        worked = time.process_time() - worked
    print(f"96 conversations of {MAX_TURNS} calls of 0.5 s: {seconds:.2f} s, of which {worked:.2f} s of computing")
    assert len(played) == 96 and len(server.calls) == 96 * MAX_TURNS and server.connections <= 96
    assert 48 < server.most_in_flight <= 96  # one after the other they would take 96 s
    # The clock also counts what else this machine was doing; the work of both sides is all that may come on top.
    assert seconds >= 1.0 and worked < 2.0
