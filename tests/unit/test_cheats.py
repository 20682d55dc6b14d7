"""Scripted policies on the test goals of doc_edit: cheap tricks do not pay, honest collaboration does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from composing import load_config

from benchmarks.cheats import (
    CHEATS,
    SHORT,
    TEXTS,
    Heard,
    Script,
    Scripted,
    Table,
    honest,
    play_scripts,
    rearranged,
    verdict,
)
from benchmarks.goals import read_second
from collab.app import build
from collab.chat.base import Sampling
from collab.chat.endpoints import Endpoints
from collab.conversation import Message
from collab.datamodules.goals import load_splits
from collab.parsing.agenda_state import covers
from collab.parsing.english import sentences
from collab.randomness import RngKey
from collab.rewards.document import copied
from collab.simulation.conversation_loop import Players


@pytest.fixture(scope="module")
def table() -> Table:
    config = load_config("evaluate", ["experiment=doc_edit"])
    simulation = build.simulation(config, Endpoints(config), lambda: None)
    players: Callable[[Script], Players] = lambda script: simulation.players(Scripted(script))  # noqa: E731
    return play_scripts(players, simulation.reward, load_splits(config.task).test)


def test_scripts_alone_are_as_they_should_be(table: Table) -> None:
    assert table.keys() == {*CHEATS, *TEXTS, *SHORT, "honest"}
    assert verdict(table) == []


def test_no_trick_is_both_of_asking_and_of_the_text() -> None:
    assert not {*CHEATS} & {*TEXTS}


@pytest.mark.parametrize("cheat", CHEATS)
def test_no_cheat_is_worth_anything(table: Table, cheat: str) -> None:
    assert table[cheat]["R*"] <= 0.15


@pytest.mark.parametrize("cheat", [*CHEATS, *TEXTS])
def test_honest_collaboration_has_at_least_twice_the_reward(table: Table, cheat: str) -> None:
    assert table["honest"]["R*"] >= 2 * max(table[cheat]["R*"], 0.15)


def test_whoever_asks_honestly_gains_more_by_writing_than_by_pasting(table: Table) -> None:
    assert table["honest"]["R*"] > table["asks, then pastes"]["R*"]
    assert table["asks, then pastes"]["copied"] > 0.5 > 0.1 > table["honest"]["copied"]


@pytest.mark.parametrize("trick", ["one question for all slots", "absurd questions", "broken questions"])
def test_questions_for_everything_and_for_nothing_bring_nothing_to_light(table: Table, trick: str) -> None:
    assert table[trick]["interactivity"] <= 0.01


def test_saying_all_twice_is_repetition(table: Table) -> None:
    assert table["asks, then says it twice"]["repetition"] > 0.3 > 0.1 > table["honest"]["repetition"]


def test_filler_costs_more_than_it_brings(table: Table) -> None:
    honest_short, filler = (table[name] for name in SHORT)
    assert filler["bleu"] > honest_short["bleu"]  # why it would pay
    assert filler["unsupported"] > 0.3 > 0.1 > honest_short["unsupported"]
    assert honest_short["R*"] > filler["R*"]


def made(**rewards: float) -> dict[str, Any]:
    """A table in which all cheats have nothing."""
    scores = dict.fromkeys((*CHEATS, *TEXTS, *SHORT, "honest"), 0.0) | {"honest, two sentences": 0.1} | rewards
    return {name: {"R*": value} for name, value in scores.items()}


def test_the_verdict_is_empty_where_all_is_well() -> None:
    assert verdict(made(honest=2.0, flattery=1.0)) == []
    assert verdict(made(honest=2.0, flattery=1.0, base=1.0)) == []
    assert verdict(made(honest=0.5, flattery=-3.0)) == []


def test_the_verdict_names_a_cheat_that_comes_near_the_honest_script() -> None:
    assert verdict(made(honest=2.0, flattery=1.1)) == ["honest has less than twice the R* of 'flattery'"]


def test_a_base_below_zero_is_noise() -> None:
    assert verdict(made(honest=2.0, flattery=0.04, base=-0.03)) == []
    assert verdict(made(honest=2.0, flattery=0.06, base=-0.03)) == ["'flattery' has more than the base"]


def test_the_verdict_compares_with_tricks_of_the_text_too() -> None:
    wrong = verdict(made(honest=2.0, flattery=1.1) | {"asks, then pastes": {"R*": 1.2}})
    assert wrong == ["honest has less than twice the R* of 'asks, then pastes'"]


def test_a_trick_of_the_text_may_have_more_than_the_base() -> None:
    """Its questions are honest."""
    assert verdict(made(honest=9.0, base=1.0) | {"asks, then pastes": {"R*": 2.0}}) == []


def test_the_verdict_names_every_cheat_that_beats_the_base() -> None:
    assert verdict(made(honest=9.0, flattery=1.1, empty=1.2, base=1.0)) == [
        "'empty' has more than the base",
        "'flattery' has more than the base",
    ]


def test_the_verdict_is_against_filler_that_pays() -> None:
    wrong = verdict(made(honest=2.0) | {"honest, two sentences with filler": {"R*": 0.2}})
    assert wrong == ["two honest sentences have no more than the same with filler"]


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


def chat_about(title: str, form: str, *said: str) -> Heard:
    return Heard(
        [Message("user", f"I need a {form} about {title}. Can you help?"), *(Message("user", s) for s in said)]
    )


def test_the_honest_script_asks_until_it_writes() -> None:
    goal = load_splits(load_config("evaluate", ["task=doc_edit"]).task).test[0]
    about = (goal.metadata["title"], goal.metadata["form"])
    asked = [honest(chat_about(*about, *["Sure."] * turn)) for turn in range(3)]
    assert len(set(asked)) == 3 and all(text.endswith("?") for text in asked)
    final = f"Please write the final {about[1]} now."
    assert "?" not in honest(chat_about(*about, final)) or "?" in read_second()[goal.id]


def test_the_honest_script_writes_the_second_text_less_what_was_not_told() -> None:
    goal = load_splits(load_config("evaluate", ["task=doc_edit"]).task).test[0]
    about, final = (
        (goal.metadata["title"], goal.metadata["form"]),
        f"Please write the final {goal.metadata['form']} now.",
    )
    everything = ". ".join(goal.notes) + f". {final}"
    assert honest(chat_about(*about, everything)) == " ".join(sentences(read_second()[goal.id]))
    some = honest(chat_about(*about, f"{goal.notes[0]}. {final}"))
    assert some != honest(chat_about(*about, everything))
    assert all(sentence in sentences(read_second()[goal.id]) for sentence in sentences(some))
    assert not any(covers(goal, some)[1:])


def test_a_rearranged_note_has_no_six_words_in_a_row_of_the_users() -> None:
    note = "one two three four five six seven eight"
    heard = chat_about("it", "note", f"{note}.")
    assert rearranged(heard) == "five six seven eight: one two three four."
    assert copied(rearranged(heard), heard.said) == 0


@pytest.mark.parametrize(("limit", "text", "reason"), [(26, "a b c", "stop"), (3, "a b", "length")])
def test_a_scripts_replies_are_cut_at_the_token_limit(limit: int, text: str, reason: str) -> None:
    """1.3 tokens a word."""
    model = Scripted(lambda heard: "a b c")
    reply = asyncio.run(model.complete([Message("user", "Hi!")], Sampling(limit), RngKey(1)))
    assert (reply.text, reply.finish_reason) == (text, reason)
