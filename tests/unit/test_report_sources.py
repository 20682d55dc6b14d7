"""Conversations that reports play: how they end with stored replies, and what is built for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from composing import load_config

from collab.app import build
from collab.app.report_sources import Played, Sources, check_sources, heard_out, unjudged
from collab.app.simulator_report import figures
from collab.chat.budget import Spend
from collab.chat.endpoints import Endpoints
from collab.conversation import Conversation, Goal, Refusal, Reply
from collab.randomness import RngKey
from collab.simulation.user import UserTurn
from collab.util.errors import BadInput


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


def test_a_user_report_needs_no_judge_and_no_evaluator(tmp_path: Path) -> None:
    """Neither is loaded, so a missing folder of one is no error; a judge report refuses it."""
    missing = [f"{key}.endpoint.model={tmp_path / 'none'}" for key in ("judge", "evaluator")]
    overrides = ["experiment=doc_edit", "judge=local", "evaluator=local", *missing]
    config = load_config("simulator-report", overrides, str(tmp_path / "out"))
    goals = [Goal("g", "A notice.", "Come.")]
    check_sources(config, Sources([], {}, goals, [["Hi."]]), "simulator-report", playing=True)
    with Endpoints(config) as endpoints:
        assert build.simulation(unjudged(config), endpoints, lambda: None).reward.metrics == {}
    with pytest.raises(BadInput, match="cannot speak"):
        check_sources(config, Sources([], {}, goals, [["Hi."]]), "judge-report", playing=True)


def totals(user: str, spent: Spend, *overrides: str) -> list[float | None]:
    """Seconds, calls, tokens and dollars a message, of two messages."""
    typed = ["experiment=doc_edit", f"user={user}", *overrides]
    config = load_config("simulator-report", typed, "outputs/nowhere")
    talk = Conversation(Goal("g", "A notice.", "Come.")).with_user("Hi.").with_reply(Reply("When?")).with_user("At 9.")
    sources = Sources([], {}, [talk.goal], [["When?"]])
    found = figures(config, sources, {"user": Played([talk], seconds=3.0, spent=spent)})["totals"]["user"]
    return [found[f"{what}_per_message"] for what in ("seconds", "calls", "tokens", "dollars")]


def test_costs_that_were_not_measured_are_missing_and_never_zero() -> None:
    asked = Spend(calls=4, prompt_tokens=90, completion_tokens=10, usd=0.5)
    priced = ["user.endpoint.model=m", "+budget.prices.m=[1,2]"]
    assert totals("agenda", Spend()) == [1.5, 0, 0, 0]  # rules ask no server
    assert totals("local", Spend()) == [1.5, None, None, None]  # a model on this machine
    assert totals("openai", asked, *priced) == [1.5, 2, 50, 0.25]
    assert totals("openai", asked, *priced, "judge=openai", "judge.endpoint.model=unpriced")[3] == 0.25
    assert totals("openai", asked, "user.endpoint.model=m") == [1.5, 2, 50, None]
    assert totals("openai", replace(asked, cached=1), *priced) == [None] * 4
