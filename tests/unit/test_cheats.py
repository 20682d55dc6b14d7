"""Scripted policies on the test goals of doc_edit: cheap tricks do not pay, honest collaboration does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.cheats import CHEATS, OTHERS, Heard, Script, Scripted, Table, play_scripts, verdict
from collab import build
from collab.chat.base import Sampling
from collab.chat.endpoints import Endpoints
from collab.compose import load_config
from collab.conversation import Key, Message
from collab.datamodules.goals import load_splits
from collab.simulation.rollout import Players


@pytest.fixture(scope="module")
def table() -> Table:
    config = load_config("evaluate", ["experiment=doc_edit"])
    simulation = build.simulation(config, Endpoints(config), lambda: None)
    players: Callable[[Script], Players] = lambda script: simulation.players(Scripted(script))  # noqa: E731
    return play_scripts(players, simulation.reward, load_splits(config.task).test)


def test_scripts_alone_are_as_they_should_be(table: Table) -> None:
    assert table.keys() == CHEATS.keys() | OTHERS.keys()
    assert verdict(table) == []


@pytest.mark.parametrize("cheat", CHEATS)
def test_no_cheat_is_worth_anything(table: Table, cheat: str) -> None:
    assert table[cheat]["R*"] <= 0.15


@pytest.mark.parametrize("cheat", CHEATS)
def test_honest_collaboration_has_at_least_twice_the_reward(table: Table, cheat: str) -> None:
    assert table["honest"]["R*"] >= 2 * max(table[cheat]["R*"], 0.15)


def test_whoever_asks_honestly_gains_more_by_writing_than_by_pasting(table: Table) -> None:
    assert table["honest"]["R*"] > table["asks, then pastes"]["R*"]
    assert table["asks, then pastes"]["copied"] > 0.5 > table["honest"]["copied"]


def made(**rewards: float) -> dict[str, Any]:
    """A table in which all cheats have nothing."""
    return {name: {"R*": 0.0} for name in (*CHEATS, *OTHERS)} | {name: {"R*": value} for name, value in rewards.items()}


def test_the_verdict_is_empty_where_all_is_well() -> None:
    assert verdict(made(honest=2.0, flattery=1.0)) == []
    assert verdict(made(honest=2.0, flattery=1.0, base=1.0)) == []
    assert verdict(made(honest=0.5, flattery=-3.0)) == []


def test_the_verdict_names_a_cheat_that_comes_near_the_honest_script() -> None:
    assert verdict(made(honest=2.0, flattery=1.1)) == ["honest has less than twice the R* of 'flattery'"]


def test_the_verdict_names_every_cheat_that_beats_the_base() -> None:
    assert verdict(made(honest=9.0, flattery=1.1, empty=1.2, base=1.0)) == [
        "'empty' has more than the base",
        "'flattery' has more than the base",
    ]


def test_the_verdict_is_against_an_honest_script_that_loses() -> None:
    assert verdict(made(honest=-0.5)) != []


# --- the speakers ----------------------------------------------------------------------------------------------------


def test_a_script_hears_form_topic_and_what_was_told() -> None:
    told = "It should say this: oak, the old one, at noon. cup, red, everybody brings one. The tone should be warm."
    messages = [
        Message("user", "I need an invitation about the picnic. Can you help?"),
        Message("assistant", "What should it say?"),
        Message("user", told),
    ]
    heard = Heard(messages)
    assert (heard.form, heard.topic, heard.turn, heard.last) == ("invitation", "the picnic", 2, False)
    assert heard.told == ["oak, the old one, at noon", "cup, red, everybody brings one"]
    assert Heard([*messages, Message("user", "Please write the final invitation now.")]).last


@pytest.mark.parametrize(("limit", "text", "reason"), [(26, "a b c", "stop"), (3, "a b", "length")])
def test_a_scripts_replies_are_cut_at_the_token_limit(limit: int, text: str, reason: str) -> None:
    """1.3 tokens a word."""
    model = Scripted(lambda heard: "a b c")
    reply = asyncio.run(model.complete([Message("user", "Hi!")], Sampling(limit), Key(1)))
    assert (reply.text, reply.finish_reason) == (text, reason)
