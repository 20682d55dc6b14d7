"""Figures of `collab judge-report`: agreement by hand arithmetic, shifts, what is missing; rubrics in the config."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from composing import load_config

from collab.app.judge_report import Rater, _judged, _positions, check_report
from collab.app.preflight import check_players
from collab.chat.base import Sampling
from collab.config.endpoints import endpoints_in
from collab.conversation import Conversation, Goal, Message, Reply
from collab.datamodules.goals import GoalSplits
from collab.randomness import RngKey
from collab.reports.judges import agreement, judge_tables, mean_of, moved_by, shifts
from collab.reports.tables import markdown
from collab.rewards.metrics import Judged
from collab.rewards.pairwise import QUESTIONS, PairwiseJudge
from collab.rewards.probes import PADDING, injections
from collab.util.errors import BadInput

LOCAL = ["experiment=doc_edit", "judge=local"]


def test_agreement_by_hand() -> None:
    # Levels 0, 0, 10, 10 against 0, 10, 10, 10. Observed disagreement 1/4; by chance (2*3 + 2*1) / 16 = 1/2.
    found = agreement([*"abcd"], [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], seed=1)
    assert found["kappa"]["mean"] == pytest.approx(1 - (1 / 4) / (1 / 2)) and found["kappa"]["n"] == 4
    assert found["spearman"]["mean"] == pytest.approx(1 / 3**0.5)
    low, high = found["kappa"]["ci95"]
    assert low <= 0.5 <= high <= 1
    same = agreement([*"abc"], [0.1, 0.5, 0.9], [0.1, 0.5, 0.9], seed=1)
    assert same["kappa"]["mean"] == same["spearman"]["mean"] == pytest.approx(1)


def test_goals_are_resampled_and_not_conversations() -> None:
    """Ten conversations of each of four goals, all alike: the interval is that of four."""
    one, other = [0.0, 0.4, 0.6, 1.0], [0.2, 0.4, 0.5, 0.7]
    once = agreement([*"abcd"], one, other, seed=1)["kappa"]
    often = agreement([*"abcd"] * 10, one * 10, other * 10, seed=1)["kappa"]
    assert often["mean"] == pytest.approx(once["mean"]) and often["ci95"] == pytest.approx(once["ci95"])
    assert (once["n"], often["n"]) == (4, 40)


def test_missing_verdicts_are_left_out_and_counted() -> None:
    found = agreement([*"abcd"], [0.0, None, 1.0, 0.4], [0.0, 0.2, 1.0, None], seed=1)
    assert found["kappa"]["mean"] == 1 and found["kappa"]["n"] == 2
    assert mean_of(["a", "a", "b"], [None, 0.4, 0.8], 1) == {
        "mean": pytest.approx(0.6),
        "ci95": [pytest.approx(0.4), pytest.approx(0.8)],
        "n": 2,
        "missing": 1,
        "asked": 3,
    }
    assert mean_of(["a"], [None], 1)["mean"] is None


@pytest.mark.parametrize("other", [[0.5, 0.5, 0.5], [None, None, None], [0.1, None, None]])
def test_agreement_with_constant_scores_is_not_defined(other: list[float | None]) -> None:
    found = agreement([*"abc"], [0.1, 0.5, 0.9], other, seed=1)
    assert found["spearman"]["mean"] is found["kappa"]["mean"] is None and found["kappa"]["n"] == 0


def test_shifts_have_a_mean_and_a_largest_one() -> None:
    found = shifts(["a", "b", "c"], [0.5, 0.5, None], [0.4, None, 0.9], seed=1)
    assert found["mean"] == found["largest"] == pytest.approx(-0.1)
    assert (found["n"], found["missing"], found["asked"]) == (1, 1, 3)
    assert moved_by([0.5, 0.5], {"x": [0.6, None], "y": [None, None]}) == {"x": pytest.approx(0.1), "y": None}


def report() -> dict[str, Any]:
    score, half = mean_of(["a", "b"], [0.2, None], 1), agreement([*"ab"], [0.0, 1.0], [0.0, 1.0], 1)
    moved = shifts(["a", "b"], [0.2, 0.4], [0.4, 0.4], 1)
    copies = {"padded": moved, "injected": moved, "control": moved}
    entry = {"score": score, "rule": half, **copies, "injections": {"texts": 28, "unmoved": 27, "shifts": {}}}
    bias = {name: score for name in ("first", "same", "padded")}
    return {
        "conversations": 2,
        "judges": {"judge": {"interactivity": entry}},
        "agreement": {"judge, other": {"interactivity": half}},
        "position": {"judge": {"asking": bias}},
    }


def test_tables_say_what_is_missing() -> None:
    scores, pairs, moved, position = (markdown(*table) for table in judge_tables(report()))
    assert "| judge: interactivity | 0.200 [0.200, 0.200] n=1 | 1.000" in scores and "| 1 of 2 |" in scores
    assert "| judge, other: interactivity | 1.000" in pairs
    assert "| +0.100 [0.000, 0.200] |" in moved and "| 27 of 28 | +0.200 | 0 of 2 |" in moved
    assert "| judge: asking |" in position
    alone = report() | {"agreement": {}, "position": {}}
    assert len(judge_tables(alone)) == 2


# --- judges with a known bias ----------------------------------------------------------------------------------------

TALKS = [
    Conversation(Goal(f"g{n}", "A notice about the kiln.", "Come."))
    .with_user("A notice, please.")
    .with_reply(Reply("When does it fire?"))
    .with_user("On Mondays.")
    .with_reply(Reply("It fires on Mondays."))
    for n in range(2)
]


@dataclass
class Rates:
    """A metric whose judge says what `rule` gives for the assistant's last message."""

    rule: Callable[[str], float]

    async def ask(self, conversation: Conversation) -> Judged:
        return Judged(self.rule(conversation.assistant_texts[-1]), ())


@dataclass
class Prefers:
    """A model that compares two sides by `rule` and answers with a letter."""

    rule: Callable[[str, str], str]

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        sides = re.search(r" A:\n(.*?)\n\n\S+ B:\n(.*)", messages[-1].content, re.DOTALL)
        assert sides is not None
        return Reply(self.rule(*sides.groups()))


def test_a_judge_is_not_asked_about_goals_that_its_metric_leaves_out() -> None:
    class OfFirst(Rates):
        def applies(self, goal: Goal) -> bool:
            return goal.id == "g0"

    rater: Any = Rater(OfFirst(lambda text: 0.7), 1)  # type: ignore[arg-type]
    assert asyncio.run(rater.scores(TALKS)) == [0.7, None]


def rated(rule: Callable[[str], float]) -> dict[str, Any]:
    own, longer, entry = asyncio.run(_judged(Rater(Rates(rule), 1), TALKS))  # type: ignore[arg-type]
    assert own == [rule("It fires on Mondays.")] * 2
    assert longer == [rule(f"It fires on Mondays. {PADDING}")] * 2
    return entry


def test_a_judge_that_follows_the_text_is_moved_by_injections_alone() -> None:
    asked = sum("score" in text.lower() for text in injections())
    entry = rated(lambda text: 0.9 if "score" in text.lower() else 0.4)
    assert entry["injected"]["mean"] == pytest.approx(0.5 * asked / len(injections())) and asked > 10
    assert entry["injected"]["largest"] == pytest.approx(0.5)
    assert entry["injections"]["unmoved"] == len(injections()) - asked
    assert entry["control"]["mean"] == entry["padded"]["mean"] == 0


def test_a_judge_that_likes_padding_rates_padded_copies_higher() -> None:
    entry = rated(lambda text: 0.7 if text.endswith(PADDING) else 0.5)
    assert entry["padded"]["mean"] == pytest.approx(0.2) and entry["injected"]["mean"] == 0
    entry = rated(lambda text: 0.3 if text.endswith(PADDING) else 0.5)
    assert entry["padded"]["mean"] == pytest.approx(-0.2)


def longer(one: str, other: str) -> str:
    return "A" if len(one) > len(other) else "B"


@pytest.mark.parametrize(
    "rule, first, same, won",
    [
        (lambda one, other: "A", 1, 0, 0.5),
        (lambda one, other: "B", 0, 0, 0.5),
        (longer, 0.5, 1, 1),
        (lambda one, other: longer(other, one), 0.5, 1, 0),
        (lambda one, other: "T", 0.5, 1, 0.5),
    ],
)
def test_position_and_length_bias(rule: Callable[[str, str], str], first: float, same: float, won: float) -> None:
    found = asyncio.run(_positions(PairwiseJudge(Prefers(rule), 1), TALKS))
    assert found.keys() == set(QUESTIONS)
    for bias in found.values():
        assert (bias["first"]["mean"], bias["same"]["mean"], bias["padded"]["mean"]) == (first, same, won)
        assert bias["first"]["asked"] == 2


def test_an_answer_without_a_letter_is_missing() -> None:
    found = asyncio.run(_positions(PairwiseJudge(Prefers(lambda one, other: "Hm."), 1), TALKS))
    assert all(part["mean"] is None and part["missing"] == 2 for bias in found.values() for part in bias.values())


def test_all_pairs_are_asked_at_once() -> None:
    class Waits(Prefers):
        under_way = most = 0

        async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await asyncio.sleep(0)
            self.under_way -= 1
            return await super().complete(messages, sampling, key)

    model = Waits(longer)
    asyncio.run(_positions(PairwiseJudge(model, 1), TALKS))
    assert model.most == 2 * len(TALKS)  # both orders of each


# --- the config ------------------------------------------------------------------------------------------------------


def test_a_rubric_is_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rubric.txt"
    file.write_text("Near 1: kind.\n", encoding="utf-8")
    typed = [*LOCAL, f"+judge.rubrics.interactivity='file://{file}'", "+judge@report.judges.other=local"]
    config = load_config("judge-report", [*typed, "+report.judges.other.rubrics.interactivity='Near 1: short.'"])
    assert config.judge.rubrics == {"interactivity": "Near 1: kind."}  # type: ignore[attr-defined]
    assert config.report.judges["other"].rubrics == {"interactivity": "Near 1: short."}
    assert {"judge.endpoint", "report.judges.other.endpoint"} <= endpoints_in(config).keys()
    with pytest.raises(BadInput, match="there is no file"):
        load_config("judge-report", [*LOCAL, "+judge.rubrics.interactivity='file://nowhere.txt'"])


def test_a_rubric_that_nothing_asks_is_refused() -> None:
    config = load_config("judge-report", [*LOCAL, "+judge.rubrics.tone=x"])
    with pytest.raises(BadInput, match="judge.rubrics has tone.*by a rubric is interactivity"):
        check_players(config, GoalSplits([], [], []), policy_here=False)


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["judge=none"], "judge is no language model"),
        (["judge=local", "+judge@report.judges.two=none"], "report.judges.two is no language model"),
        (["judge=local", "+judge@report.judges.judge=local"], "the name of the first judge"),
        (["judge=local", "report.chats=nowhere.jsonl"], "no file nowhere.jsonl.*report.chats"),
        (["judge=local", "report.replies=nowhere.jsonl"], "no file nowhere.jsonl.*report.replies"),
    ],
)
def test_wrong_judges_and_sources_are_refused(overrides: list[str], told: str) -> None:
    config = load_config("judge-report", ["experiment=doc_edit", *overrides], "outputs/nowhere")
    with pytest.raises(BadInput, match=told):
        check_report(config)
