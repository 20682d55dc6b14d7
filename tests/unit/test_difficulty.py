"""Users of different difficulty: vague, with typing errors; and a table with several users."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from composing import load_config

from collab.app.evaluate import against
from collab.config.checks import check
from collab.config.endpoints import users
from collab.config.schema import AgendaUserConfig
from collab.conversation import Conversation, Goal, Reply
from collab.parsing.agenda_items import OPENINGS_WITHOUT_TOPIC
from collab.randomness import RngKey
from collab.reports.results import baseline_of, summarise_rows, validate_results
from collab.reports.tables import results_table
from collab.simulation.agenda import AgendaUser
from collab.simulation.typos import mistyped
from collab.util.errors import BadInput

GOAL = Goal(
    "kiln",
    "A notice about the shared kiln.",
    "The shared kiln fires on Mondays.",
    {"title": "the shared kiln", "form": "notice", "notes": ["it fires on Mondays at 9", "ring Anna before coming"]},
)


def says(config: AgendaUserConfig, conversation: Conversation, seed: int = 1) -> str:
    user = AgendaUser(config, 4)
    return asyncio.run(user.respond(conversation, RngKey(seed, role="user", turn=conversation.turn))).text


def answered(opening: str, reply: str = "When does it fire?") -> Conversation:
    return Conversation(GOAL).with_user(opening).with_reply(Reply(reply))


def test_a_vague_user_tells_the_topic_in_its_second_message() -> None:
    vague = AgendaUserConfig(vagueness=1.0)
    opening = says(vague, Conversation(GOAL))
    assert opening in [template.format(form="a notice") for template in OPENINGS_WITHOUT_TOPIC]
    second = says(vague, answered(opening))
    assert "It is about the shared kiln." in second and "It fires on Mondays at 9." in second
    third = answered(opening).with_user(second).with_reply(Reply("Who is to be rung?"))
    assert "It is about" not in says(vague, third)
    assert "It is about" not in says(vague, answered("I need a notice about the shared kiln."))


def test_vagueness_is_a_share_of_conversations() -> None:
    half = AgendaUserConfig(vagueness=0.5)
    told = ["kiln" in says(half, Conversation(GOAL), seed) for seed in range(60)]
    assert 15 < sum(told) < 45


def test_without_vagueness_and_noise_the_user_says_what_it_said() -> None:
    plain, vague = AgendaUserConfig(), AgendaUserConfig(vagueness=1e-12, noise=1e-12)
    for seed in range(10):
        for talk in (Conversation(GOAL), answered("I need a notice about the shared kiln.")):
            assert says(plain, talk, seed) == says(vague, talk, seed)


def test_typing_errors_spare_names_numbers_and_short_words() -> None:
    text = "Anna fires it on Mondays at 9, before the kiln_door and don't opens"
    typed = mistyped(text, 1.0, np.random.default_rng(1), spared=["fires"])
    changed = [pair for pair in zip(text.split(), typed.split(), strict=True) if pair[0] != pair[1]]
    assert {before for before, _ in changed} <= {"before", "opens"} and changed
    for before, after in changed:
        assert (before[0], before[-1]) == (after[0], after[-1]) and abs(len(before) - len(after)) <= 1
    assert mistyped(text, 0.0, np.random.default_rng(1)) == text


def test_a_noisy_user_mistypes_and_keeps_the_topic() -> None:
    noisy = AgendaUserConfig(noise=1.0)
    for seed in range(10):
        assert "the shared kiln" in says(noisy, Conversation(GOAL), seed)
        second = says(noisy, answered("I need a notice about the shared kiln."), seed)
        assert "Mondays at 9" in second


# --- several users in one table --------------------------------------------------------------------------------------


def test_the_options_are_users_of_the_evaluation() -> None:
    config = load_config("evaluate", ["experiment=doc_edit", "users=difficulty"])
    check(config, "evaluate")
    assert list(config.evaluation.users) == ["impatient", "vague", "noisy"]
    assert users(config).keys() >= {"user", "evaluation.users.vague"}
    mix = load_config("train", ["experiment=doc_edit", "user=difficulty"]).user
    trained = {name for name, weight in mix.weights.items() if weight}
    tested = {name for name, weight in mix.test_weights.items() if weight}
    assert trained and tested and not trained & tested


def test_metrics_follow_the_user_that_plays() -> None:
    overrides = ["+user@evaluation.users.terse=agenda", "evaluation.users.terse.items_per_answer=1"]
    config = load_config("evaluate", ["experiment=doc_edit", *overrides])
    changed = against(config, "terse")
    assert changed.user.items_per_answer == changed.task.metrics["interactivity"].options["items_per_answer"] == 1
    assert config.task.metrics["interactivity"].options["items_per_answer"] == 2
    assert "items_per_answer" not in changed.task.metrics["bleu"].options
    assert against(config, "") is config


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["+evaluation.users.one=agenda"], r"evaluation.users.one must be a user"),
        (["+user@evaluation.users.one=mix", "evaluation.users.one.weights.llm=-1"], r"evaluation.users.one.weights"),
        (["policies=[base,'a@b:outputs']"], "@ stands between"),
        (["report.stored=[x/runs,y/runs]"], "runs is there twice"),
        (["+user@evaluation.users.one=agenda", "evaluation.users.one.noise=2"], "noise"),
    ],
)
def test_wrong_users_are_refused(overrides: list[str], told: str) -> None:
    config = load_config("evaluate", ["experiment=doc_edit", *overrides])
    with pytest.raises(BadInput, match=told):
        check(config, "evaluate")


def test_each_row_is_compared_with_the_baseline_of_its_user() -> None:
    def scores(value: float) -> dict[str, dict[str, list[float | None]]]:
        return {"reward": {"a": [value], "b": [value]}}

    played = {"base": scores(1), "base@vague": scores(5), "mine": scores(2), "mine@vague": scores(7)}
    results = summarise_rows(played, baseline="base", seed=1, aggregates={})
    assert {name: entry["reward"]["mean"] for name, entry in results["difference"].items()} == {
        "mine": 1,
        "mine@vague": 2,
    }
    whole = {**results, "config": {}, "seconds": {}}
    validate_results(whole)
    assert baseline_of(whole, "mine@vague") == "base@vague" and baseline_of(whole) == "base"
    assert results_table(whole)
    del results["difference"]["mine@vague"]
    with pytest.raises(BadInput, match="every policy but the baseline"):
        validate_results(whole)
