"""The shipped goals of doc_edit: enough of them, apart from each other, and written so that pasting does not pay."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
from composing import load_config

from benchmarks.cheats import Heard
from benchmarks.demonstrations import goal_of, read_topics
from collab.conversation import Conversation, Goal, Group, Message, Reply
from collab.datamodules.conversations import load_groups
from collab.datamodules.goals import load_splits
from collab.parsing.agenda_items import form_of, openings, topic_of
from collab.parsing.agenda_state import coverage
from collab.parsing.english import questions, words
from collab.rewards.document import copied, repetition
from collab.rewards.metrics import Bleu

SECOND = Path(__file__).parents[2] / "benchmarks" / "data" / "second_texts.jsonl"
SPLITS = load_splits(load_config("evaluate", ["task=doc_edit"]).task)
BY_SPLIT = {"train": SPLITS.train, "val": SPLITS.val, "test": SPLITS.test}
GOALS = [goal for goals in BY_SPLIT.values() for goal in goals]
SECOND_TEXTS = {row["id"]: row["text"] for row in map(json.loads, SECOND.read_text(encoding="utf-8").splitlines())}


def bleu(goal: Goal, text: str) -> float:
    return asyncio.run(Bleu()(Conversation(goal).with_user("-").with_reply(Reply(text)).with_end("max_turns")))


def pasted(goal: Goal) -> str:
    return ". ".join(goal.notes) + "."


def test_there_are_many_goals_of_many_forms() -> None:
    assert len(GOALS) >= 150
    assert len({form_of(goal) for goal in GOALS}) >= 35


def test_each_goal_has_four_or_five_notes_and_as_many_cues() -> None:
    for goal in GOALS:
        assert len(goal.notes) in (4, 5), goal.id
        assert len(goal.metadata["cues"]) == len(goal.notes), goal.id


def test_each_goal_has_all_its_preferences() -> None:
    for goal in GOALS:
        assert goal.metadata.keys() == {"title", "form", "preferences", "notes", "cues"}, goal.id
        assert goal.metadata["preferences"].keys() == {"tone", "audience", "length"}, goal.id
        assert all(goal.metadata.values()) and all(goal.metadata["preferences"].values()), goal.id


SHARED: dict[str, Callable[[Goal], list[str]]] = {
    "id": lambda goal: [goal.id],
    "title": lambda goal: [topic_of(goal).lower()],
    "text": lambda goal: [" ".join(words(goal.reference)), " ".join(words(SECOND_TEXTS[goal.id]))],
    "note": lambda goal: [" ".join(words(note)) for note in goal.notes],
    "prompt": lambda goal: [" ".join(words(goal.prompt))],
}


@pytest.mark.parametrize("name", SHARED)
def test_splits_share_nothing(name: str) -> None:
    found = {split: {text for goal in goals for text in SHARED[name](goal)} for split, goals in BY_SPLIT.items()}
    assert not {text for one, other in combinations(found.values(), 2) for text in one & other}


@pytest.mark.parametrize("name", ["id", "title", "note", "text"])
def test_no_two_goals_share(name: str) -> None:
    texts = [text for goal in GOALS for text in SHARED[name](goal)]
    assert len(set(texts)) == len(texts)


def test_no_reference_shares_six_words_in_a_row_with_its_notes() -> None:
    assert not [goal.id for goal in GOALS if copied(goal.reference, list(goal.notes))]


def test_no_reference_says_anything_twice() -> None:
    """Three words in a row may come back once: 1 in 40."""
    assert not [goal.id for goal in GOALS if repetition(goal.reference) > 1 / 40]


def test_the_prompt_says_all_notes() -> None:
    assert not [goal.id for goal in GOALS if not all(note in goal.prompt for note in goal.notes)]


def test_references_cover_their_notes() -> None:
    assert fmean(coverage(goal, goal.reference) == 1 for goal in GOALS) >= 0.95


def test_each_goal_has_a_second_text_that_covers_its_notes_in_other_words() -> None:
    assert SECOND_TEXTS.keys() == {goal.id for goal in GOALS}
    assert fmean(coverage(goal, SECOND_TEXTS[goal.id]) for goal in GOALS) >= 0.8
    assert all(SECOND_TEXTS[goal.id] != goal.reference for goal in GOALS)


def test_notes_of_another_goal_cover_nothing_much() -> None:
    others = [*GOALS[1:], GOALS[0]]
    assert fmean(coverage(goal, other.reference) for goal, other in zip(GOALS, others, strict=True)) <= 0.02


def test_pasting_all_notes_scores_at_most_half_the_bleu_of_a_second_text() -> None:
    pasting = fmean(bleu(goal, pasted(goal)) for goal in GOALS)
    writing = fmean(bleu(goal, SECOND_TEXTS[goal.id]) for goal in GOALS)
    assert pasting <= writing / 2, (pasting, writing)


def test_scripts_read_topic_and_form_off_every_opening() -> None:
    """Those of benchmarks/cheats.py are honest only if they hear what they write about."""
    for goal in GOALS:
        for opening in openings(goal):
            heard = Heard([Message("user", opening)])
            assert (heard.form, heard.topic) == (form_of(goal), topic_of(goal)), opening


def is_topic(group: Group) -> bool:
    return group.context.goal.prompt not in {goal.prompt for goal in SPLITS.train}


def test_the_demonstrations_ask_then_write() -> None:
    """About four conversations for each training goal, then those about further topics, some with questions in vain."""
    groups = load_groups(load_config("train", ["experiment=doc_edit_sft"]).algorithm.data, "")
    about_goals = Counter(group.context.turn for group in groups if not is_topic(group))
    about_topics = Counter(group.context.turn for group in groups if is_topic(group))
    assert about_goals[4] > 400 and min(about_goals[turn] for turn in (1, 2, 3)) > 250
    assert about_topics[4] > 750 and min(about_topics[turn] for turn in (1, 2, 3)) > 150
    for group in groups:
        assert group.context.turn == 4 or len(questions(group.candidates[0].reply.text)) == 2
        assert group.candidates[0].mr >= 0.35  # SFT leaves none out (algorithm.minimum_value)


def test_the_texts_of_the_demonstrations_say_what_was_told_and_nothing_else() -> None:
    groups = load_groups(load_config("train", ["experiment=doc_edit_sft"]).algorithm.data, "")
    for group in (group for group in groups if group.context.turn == 4):
        goal, text = group.context.goal, group.candidates[0].reply.text
        heard = " ".join([turn.user for turn in group.context.turns] + [group.context.pending or ""])
        told = [note for note in goal.notes if note.lower() in heard.lower()]
        assert told and round(coverage(goal, text) * len(goal.notes)) >= len(told), (goal.id, text)
        assert not any(passing in text for passing in ("been there", "Ask me", "nothing on that", "to mind")), text
        assert copied(text, told) <= 0.1, (goal.id, text)  # hardly ever six words in a row
        if is_topic(group):
            assert coverage(goal, text) == len(told) / len(goal.notes)


def test_the_demonstrations_hear_what_the_user_says_to_questions_in_vain() -> None:
    groups = load_groups(load_config("train", ["experiment=doc_edit_sft"]).algorithm.data, "")
    heard = [turn.user for group in groups if group.context.turn == 4 for turn in group.context.turns]
    assert sum("ask" in said.lower() or "know that already" in said for said in heard) > 50


def test_topics_of_the_demonstrations_are_not_those_of_any_goal() -> None:
    topics = [goal_of(topic) for topic in read_topics().values()]
    for name in ("title", "note"):
        found = [text for goal in topics for text in SHARED[name](goal)]
        assert len(set(found)) == len(found)
        assert not {text for goal in GOALS for text in SHARED[name](goal)} & set(found)
