"""The study file, the statistics of a study and its export, without a server or a model."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from collab.datamodules.chats import load_chats
from collab.datamodules.conversations import load_groups
from collab.datamodules.goals import load_goals
from collab.study import assistants
from collab.study.export import export
from collab.study.main import parse
from collab.study.statistics import summarise_study, table
from collab.study.store import FINAL, Record, StoredReply, StoredTurn
from collab.study.study_file import ArmConfig, StudyConfig, fixed_settings, read_study
from collab.util.errors import BadInput

WHOLE = """
title: A study
consent: Do you agree?
completion_code: C1
documents: [post]
arms:
  base: {policy: base}
  hosted: {endpoint: {base_url: "http://127.0.0.1:1/v1", model: m}}
"""


def study(*arms):
    return StudyConfig("A study", "Yes?", {name: ArmConfig("base") for name in arms}, ["post", "story"], "C1")


def person(number, arm, document=None, interaction=None, during=(), document_type="post", texts=("Hi", "Bye")):
    """A record; with final ratings if `document` is given."""
    turns = [
        StoredTurn(text, 10.0 * n, {arm: StoredReply(f"reply {n}", "length" if n == 1 else "stop", 0, 10.0 * n + 4)})
        for n, text in enumerate(texts, 1)
    ]
    ratings = {(turn, "interaction"): value for turn, value in during}
    if document is not None:
        ratings |= {(FINAL, "document"): document, (FINAL, "interaction"): interaction}
    submitted = None if document is None else 120.0 + number
    drafts = {"document": ("=1+1 is the text", 3)}
    return Record(
        number, "", arm, document_type, "a topic", 0.0, 1.0, 100.0, submitted, turns, ratings=ratings, drafts=drafts
    )


def test_a_whole_study_file_is_read(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(WHOLE)
    found = read_study(file)
    assert list(found.arms) == ["base", "hosted"] and found.arms["hosted"].endpoint.model == "m"
    assert (found.min_turns, found.rate_every, found.arms["base"].policy) == (8, 3, "base")
    file.write_text(f"{WHOLE}\nbudget: {{max_usd: 5, prices: {{m: [1, 2]}}}}\n")
    capped = read_study(file)
    assert capped.budget.max_usd == 5 and capped.budget.prices.keys() > {"m", "gpt-4o"}
    assert fixed_settings(asdict(capped)) == fixed_settings(asdict(found))  # it may be raised later


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("min_turns", "min_turns: 0"), "min_turns (0) must be at least 1"),
        (("min_turns", "min_turns: 40"), "max_turns (30) must be at least min_turns (40)"),
        (("x", "min_turn: 4"), "Key 'min_turn' not in 'StudyConfig'"),
        (("x", "rate_every: often"), "rate_every"),
        (("title: A study", ""), "title"),
        (("C1", "''"), "completion_code is empty"),
        (("[post]", "[]"), "documents must list at least one"),
        (("[post]", "[post, post]"), "has one twice"),
        (("{policy: base}", "{}"), "arms.base must have either a policy or an endpoint"),
        (("{policy: base}", "{policy: ./nowhere}"), "arms.base.policy (./nowhere): there is no such folder"),
        (("{policy: base}", "{policy: base, temperature: -1}"), "arms.base.temperature (-1.0) must be at least 0"),
        (("{policy: base}", "{policy: base"), "is not YAML"),
        (("base: {", "b" * 101 + ": {"), "a name has 1 to 100 characters, and this one has 101"),
        (("x", "budget: {max_usd: -1}"), "budget.max_usd (-1.0) must be above 0"),
        (("x", "budget: {prices: {m: 1}}"), "budget.prices.m (1) must be two numbers"),
        (("[post]", "[" + "p" * 201 + "]"), "a type has at most 200 characters"),
    ],
)
def test_what_is_wrong_with_a_study_file_is_told(tmp_path, change, said):
    before, after = change
    file = tmp_path / "study.yaml"
    file.write_text(WHOLE.replace(before, after) if before in WHOLE else f"{WHOLE}\n{after}\n")
    with pytest.raises(BadInput) as error:
        read_study(file)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["sevre", "s.yaml"], "there are serve, export, forget"),
        (["serve"], "takes one study file, and 0 were given"),
        (["serve", "s.yaml", "prot=1"], "prot is no option here"),
        (["serve", "s.yaml", "port=high"], "port (high) must be a whole number"),
        (["export", "s.yaml", "port=1"], "port is no option here"),
        (["forget", "s.yaml"], "Name it: participant=NUMBER"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_told(typed, said):
    with pytest.raises(BadInput) as error:
        parse(typed)
    assert said in str(error.value)


def test_means_and_differences_are_those_of_hand_arithmetic():
    records = [
        person(1, "a", 4, 2, [(3, 2), (6, 4)]),
        person(2, "a", 6, 4, [(3, 6)]),
        person(3, "b", 9, 8),
        person(4, "b", 7, 8),
        person(5, "b"),  # has not finished, so it counts in `joined` alone
    ]
    found = summarise_study(records, study("a", "b", "c"))
    assert found["counts"]["b"] == {"joined": 3, "finished": 2}
    assert found["arms"]["a"]["rating_document"]["mean"] == 5
    assert found["arms"]["a"]["rating_turns"] == {"mean": 4.5, "ci95": [3.0, 6.0], "n": 2}  # of 3 and 6
    assert found["difference"]["b"]["rating_document"]["mean"] == 3  # 8 - 5
    low, high = found["difference"]["b"]["rating_document"]["ci95"]
    assert (low, high) == (1, 5)  # the means of two of (7, 9) less those of two of (4, 6)
    assert found["difference"]["b"]["rating_interaction"]["ci95"] == [4, 6]
    assert found["difference"]["c"]["rating_document"] == {"mean": None, "ci95": [None, None], "n": [0, 2]}
    assert found["arms"]["b"]["minutes"]["mean"] == pytest.approx((122 + 123) / 2 / 60)
    assert "| b | 3 | 2 | 8.00 [7.00, 9.00] |" in table(found)


def test_the_mixed_model_finds_the_effect_that_is_there_and_none_that_is_not():
    rng = np.random.default_rng(3)
    records = []
    for number in range(60):
        arm = "abc"[number % 3]
        own = rng.normal(0, 1)  # of the participant, shared by all of its ratings
        during = [(turn, float(5 + 2 * (arm == "c") + own + rng.normal(0, 0.5) + 0.1 * turn)) for turn in (3, 6, 9, 12)]
        records.append(
            person(number, arm, 5 + (number % 7 == 0), 6, during, document_type="post story".split()[number % 2])
        )
    model = summarise_study(records, study("a", "b", "c"))["models"][0]
    assert (model["n"], model["groups"], model["converged"]) == (240, 60, True)
    effect = model["effects"]
    assert effect["c"]["estimate"] == pytest.approx(2, abs=0.7) and effect["c"]["p"] < 0.001
    assert effect["turn"]["estimate"] == pytest.approx(0.1, abs=0.03)
    assert effect["b"]["ci95"][0] < 0 < effect["b"]["ci95"][1]
    assert model["group_variance"] == pytest.approx(1, abs=0.5)
    assert model["residual_variance"] == pytest.approx(0.25, abs=0.08)
    # As if ratings were independent, the interval of an arm would be half as wide.
    width = effect["c"]["ci95"][1] - effect["c"]["ci95"][0]
    assert width > 1.9 * 1.96 * np.sqrt(2 * 1.25 / 80)


def test_a_model_that_cannot_be_fitted_says_why():
    models = summarise_study([person(1, "b", 5, 5)], study("a", "b"))["models"]
    assert all("two arms with values are needed" in model["problem"] for model in models)


def test_training_reads_the_exported_conversations(tmp_path):
    records = [person(1, "a", 7, 5, [(1, 3)]), person(2, "b", texts=("Only this",)), person(3, "a", texts=())]
    files = export(records, study("a", "b"), tmp_path)
    assert all(file.is_file() and file.stat().st_size for file in files) and len(files) == 15

    groups = load_groups(tmp_path / "conversations.jsonl", "")
    assert [(g.context.pending, g.candidates[0].reply.text, g.candidates[0].mr) for g in groups] == [
        ("Hi", "reply 1", 0.6),
        ("Bye", "reply 2", 0.6),
    ]  # the second participant has not rated
    assert groups[0].candidates[0].reply.finish_reason == "length"
    assert groups[1].candidates[0].scores[0].parts == {"document": 0.7, "interaction": 0.5}
    (goal,) = load_goals(tmp_path / "conversations.jsonl", "train")
    assert (goal.prompt, goal.reference, goal.metadata["form"]) == ("a topic", "=1+1 is the text", "post")

    learned = [g.candidates[0].reply.text for g in load_groups(tmp_path / "user_chats.jsonl", "")]
    assert learned == ["Hi", "Bye", "Only this"]  # what people wrote
    assert (
        "a topic" in json.loads((tmp_path / "user_chats.jsonl").read_text().splitlines()[0])["messages"][0]["content"]
    )


def test_a_user_model_can_learn_from_the_exported_conversations(tmp_path):
    export([person(1, "a", 7, 5, [(1, 3)]), person(3, "a", texts=())], study("a", "b"), tmp_path)
    (chat,) = load_chats(tmp_path / "conversations.jsonl", "algorithm.data")
    assert [turn.user for turn in chat.turns] == ["Hi", "Bye"]  # what the person wrote
    assert chat.goal.prompt == "a topic"


def test_tables_are_the_same_in_every_format_and_hold_no_formula(tmp_path):
    import pandas as pd

    export([person(1, "a", 7, 5, [(1, 3)]), person(2, "b")], study("a", "b"), tmp_path)
    for name in ("participants", "ratings", "messages"):
        frames = [
            pd.read_parquet(tmp_path / f"{name}.parquet"),
            pd.read_json(tmp_path / f"{name}.jsonl", lines=True),
            pd.read_csv(tmp_path / f"{name}.csv"),
        ]
        assert len({tuple(frame.columns) for frame in frames}) == 1 and len({len(frame) for frame in frames}) == 1
    texts = [frame["document"][0] for frame in map(pd.read_csv, [tmp_path / "participants.csv"])]
    assert texts == ["'=1+1 is the text"]
    with pytest.raises(BadInput, match="Nobody has taken part yet"):
        export([], study("a"), tmp_path)


def test_a_missing_prompt_of_the_last_arm_is_told_before_a_policy_is_loaded(monkeypatch):
    monkeypatch.setattr(assistants, "check_policy", lambda policy: None)
    monkeypatch.setattr(assistants, "LocalModel", lambda policy: pytest.fail("a policy was loaded"))
    arms = {"base": ArmConfig("base"), "told": ArmConfig("base", system_prompt="file:///nowhere.txt")}
    with pytest.raises(BadInput, match=r"arms\.told: "):
        assistants.load_assistants(arms, 1)
