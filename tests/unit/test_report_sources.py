"""Conversations that reports play: how they end with stored replies, and what is built for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from collab.app.report_sources import heard_out
from collab.conversation import Conversation, Goal, Refusal, Reply
from collab.randomness import RngKey
from collab.simulation.user import UserTurn


@dataclass
class Answers:
    """A user that answers `turn`, once the assistant has said "The text."."""

    turn: UserTurn

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        assert (conversation.turns[-1].reply.text, key.turn, key.role) == ("The text.", 2, "user")
        return self.turn


@pytest.mark.parametrize(
    "turn, ended_by",
    [(UserTurn("", "satisfied"), "satisfied"), (UserTurn("", "patience"), "patience"), (UserTurn("And when?"), "")],
)
def test_the_user_reads_the_last_stored_reply(turn: UserTurn, ended_by: str) -> None:
    played = Conversation(Goal("g", "A notice.", "Come.")).with_user("Hi.").with_reply(Reply("The text."))
    turn = replace(turn, refused=(("shape", "raw"),))
    done = asyncio.run(heard_out(Answers(turn), played.with_end("max_turns"), RngKey(1)))
    assert done.ended_by == ended_by and done.turns == played.turns and done.pending is None
    assert done.refused == (Refusal(2, "shape", "raw"),)
