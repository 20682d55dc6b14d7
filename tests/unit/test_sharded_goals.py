"""Goals in shards, the users that tell them, and how policies do under each condition."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import pickle
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import load_config
from rich.console import Console
from scripted import answering

from collab.config.checks import check
from collab.config.schema import ShardedLLMUserConfig, ShardedUserConfig
from collab.conversation import Agenda, AgendaItem, Conversation, Goal, Reply
from collab.datamodules.goals import load_goals
from collab.datamodules.math import MathGoals
from collab.datamodules.sharded import ShardedGoals
from collab.parsing.agenda_items import makes, shards_of
from collab.randomness import RngKey
from collab.reports.conditions import conditions_table, summarise_conditions
from collab.rewards.metrics import applies
from collab.rewards.sharded import ShardedAccuracy, ShardedBleu, ShardedCoverage, ShardedPassRate
from collab.simulation.sharded import ShardedLLMUser, ShardedUser
from collab.util.errors import BadInput

METRICS = (ShardedAccuracy(), ShardedPassRate(), ShardedCoverage(), ShardedBleu())

# -- goals that ship


def test_shipped_goals_are_of_four_tasks_in_turn_and_each_has_one_metric() -> None:
    goals = ShardedGoals().shipped("test")
    assert [makes(goal) for goal in goals[:4]] == ["answer", "program", "text", "text"]
    assert len({goal.id for goal in goals}) == len(goals) == 20 + 12 + 32 + 10
    for goal in goals:
        assert len(shards_of(goal)) >= 3 and all(map(str.strip, shards_of(goal)))
        assert len(set(shards_of(goal))) == len(shards_of(goal))
        assert sum(applies(metric, goal) for metric in METRICS) == 1


def test_the_shards_of_problems_have_all_numbers_of_the_whole_and_the_same_answer() -> None:
    whole = {goal.id: goal for goal in MathGoals().shipped("test")}
    for goal in ShardedGoals(["math"]).shipped("test"):
        assert (goal.prompt, goal.reference) == (whole[goal.id].prompt, whole[goal.id].reference)
        numbers = re.findall(r"\d+", goal.prompt)
        assert sorted(re.findall(r"\d+", " ".join(shards_of(goal)))) == sorted(numbers)
        assert max(len(re.findall(r"\d+", shard)) for shard in shards_of(goal)) < len(numbers)  # no shard has all


def test_the_shards_of_a_text_are_its_notes_and_its_preferences() -> None:
    (goal,) = (goal for goal in ShardedGoals(["doc_edit"]).shipped("test") if goal.id == "test-001-kiln")
    first, *others = shards_of(goal)
    assert first == "Please write a notice about the shared kiln."
    assert tuple(others[:5]) == goal.notes
    assert others[5:] == [
        "The tone should be orderly and friendly.",
        "The audience should be members of a craft cooperative.",
        "The length should be about 45 words.",
    ]


# -- the published file

MATH = {
    "task_id": "sharded-GSM8K/7",
    "task": "math",
    "question": "Ann has 2 pens and buys 1,000. How many has she?",
    "answer": "2 + 1000 = 1002\n#### 1,002",
    "shards": [
        {"shard_id": 1, "shard": "How many pens has Ann?"},
        {"shard_id": 2, "shard": "She has 2 at first."},
        {"shard_id": 3, "shard": "She buys 1,000."},
    ],
}
PRIVATE = json.dumps([{"input": "[3]\n4", "output": "[7]"}])
CODE = {
    "task_id": "sharded-livecodebench/1",
    "task": "code",
    "source": "lcb_easy",
    "question_content": "Add a number to each of a list.",
    "starter_code": "class Solution:\n    def addAll(self, numbers: List[int], more: int) -> List[int]:",
    "metadata": {"func_name": "addAll"},
    "public_test_cases": json.dumps([{"input": "[1, 2]\n1", "output": "[2, 3]", "testtype": "functional"}]),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(PRIVATE))).decode(),
    "shards": [{"shard_id": 1, "shard": "Change a list."}, {"shard_id": 2, "shard": "Add a number to each."}],
}
TABLE = {
    "task_id": "totto1",
    "task": "data2text",
    "references": ["Ada won the race in 1999.", "In 1999 Ada won the race."],
    "table_highlighted_html": "<table><td>Ada</td></table>",
    "fewshot_descriptions": "Bo lost.",
    "metadata": {"table_page_title": "Races"},
    "shards": [{"shard_id": 1, "shard": "<table></table>"}, {"shard_id": 2, "shard": "Use the row of Ada."}],
}
OTHER = {
    "task_id": "s1",
    "task": "database",
    "shards": [{"shard_id": 1, "shard": "museums"}],
    "reference_sql": "SELECT",
}


def published(folder: Path, *rows: dict[str, Any], **options: Any) -> list[Goal]:
    file = folder / "sharded_instructions_600.json"
    file.write_text(json.dumps(rows))
    return load_goals(str(file), "test", ShardedGoals(**options))


def said(goal: Goal, text: str) -> Conversation:
    return Conversation(goal).with_user("-").with_reply(Reply(text))


def test_the_published_file_is_read_by_its_schema(tmp_path: Path) -> None:
    math, code, table = published(tmp_path, OTHER, MATH, CODE, TABLE)
    assert (math.id, math.prompt, math.reference) == (MATH["task_id"], MATH["question"], "1,002")
    assert shards_of(math) == ["How many pens has Ann?", "She has 2 at first.", "She buys 1,000."]
    assert [makes(goal) for goal in (math, code, table)] == ["answer", "program", "text"]
    assert "Add a number to each of a list." in code.prompt and "class Solution" in code.prompt
    assert "<td>Ada</td>" in table.prompt and "table_page_title: Races" in table.prompt and "Bo lost." in table.prompt
    assert published(tmp_path, MATH, CODE, TABLE, tasks=["code"]) == [code]


def test_shards_named_as_in_the_published_readme_are_read(tmp_path: Path) -> None:
    shards = [{"shard_id": shard["shard_id"], "shard_text": shard["shard"]} for shard in MATH["shards"]]
    (goal,) = published(tmp_path, MATH | {"shards": shards})
    assert shards_of(goal) == [shard["shard"] for shard in MATH["shards"]]


def test_answers_and_texts_of_the_published_file_are_measured(tmp_path: Path) -> None:
    math, table = published(tmp_path, MATH, TABLE)
    assert asyncio.run(ShardedAccuracy()(said(math, "So it is \\boxed{1002}."))) == 1.0
    assert asyncio.run(ShardedAccuracy()(said(math, "So it is \\boxed{1003}."))) == 0.0
    bleu = ShardedBleu()
    assert asyncio.run(bleu(said(table, "In 1999 Ada won the race."))) == pytest.approx(1.0)  # the second reference
    assert asyncio.run(bleu(said(table, "Nobody knows who was the fastest."))) < 0.2


@pytest.mark.parametrize(
    ("program", "passes"),
    [
        ("def plus(numbers, more):\n    return [each + more for each in numbers]", 1.0),  # has another name
        ("def addAll(numbers: List[int], more):\n    return tuple(each + more for each in numbers)", 1.0),
        ("class Solution:\n    def add(self, numbers, more):\n        return [each + more for each in numbers]", 1.0),
        (
            "from __future__ import annotations\ndef addAll(numbers: List[int], more):\n"
            "    return [each + more for each in numbers]",
            1.0,
        ),
        (
            "class Solution:\n    def addAll(self, numbers, more):\n        return [each + more for each in numbers]\n"
            "    def other(self, x): return x\ndef main(): Solution()",
            1.0,
        ),
        ("plus = lambda numbers, more: [each + more for each in numbers]", 1.0),
        ("def addAll(numbers, more):\n    return [2, 3]", 0.0),  # the public case alone
        ("x = 1", 0.0),
    ],
)
def test_programs_of_the_published_file_are_tested_whatever_they_are_called(
    tmp_path: Path, program: str, passes: float
) -> None:
    (goal,) = published(tmp_path, CODE)
    assert asyncio.run(ShardedPassRate()(said(goal, f"```python\n{program}\n```"))) == passes


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("row", "change", "told"),
    [
        (MATH, {"task": "poetry"}, "task is 'poetry'; it must be one of math, code"),
        (MATH, {"shards": []}, "there are 0 shards"),
        (MATH, {"shards": [{"shard_id": 1, "words": "a"}]}, "shard 1: field shard is missing"),
        (MATH, {"answer": "#### dozens of them"}, "cannot be read as mathematics"),
        (CODE, {"metadata": {}}, "field func_name is missing"),
        (CODE, {"public_test_cases": "[]", "private_test_cases": None}, "no program could be tested"),
        (CODE, {"public_test_cases": '[{"input": "("}]'}, "field public_test_cases cannot be read"),
        (
            CODE,
            {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()},
            "it names builtins.print",
        ),
        (TABLE, {"references": []}, "references has no text"),
    ],
)
def test_published_rows_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadInput) as caught:
        published(tmp_path, row | change)
    assert told in str(caught.value) and "row 1" in str(caught.value)
    assert "run" not in capsys.readouterr().out  # what was pickled


@pytest.mark.parametrize(
    ("tasks", "told"), [(["summary"], "have no metric here"), ([], "must be a list"), ("math", "must be a list")]
)
def test_tasks_that_are_not_there_are_refused(tasks: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        ShardedGoals(tasks)


# -- users

GOAL = Goal(
    "pens",
    "Ann has 2 pens and buys 5 red ones. How many has she?",
    "7",
    {
        "agenda": Agenda(
            "answer",
            "How many pens has Ann?",
            (AgendaItem("shard", "She has 2 pens at first."), AgendaItem("shard", "Then she buys 5 red ones.")),
        ).entry()
    },
)
ASKS, ANSWERS = "How many does she buy?", "The answer is 7."


def played(user: ShardedUser, *replies: str, key: int = 1) -> tuple[list[str], str]:
    """What a user says to these replies, the last of which is given for ever, and why it leaves."""
    talk = Conversation(GOAL)
    while True:
        turn = asyncio.run(user.respond(talk, RngKey(key).at(turn=talk.turn)))
        if turn.end:
            return [each.user for each in talk.turns], turn.end
        reply = replies[min(len(talk.turns), len(replies) - 1)]
        talk = talk.with_user(turn.text, turn.user).with_reply(Reply(reply))


@pytest.mark.parametrize("replies", [(ASKS, ANSWERS), (ANSWERS,), ("Nonsense.", "More nonsense.", ANSWERS)])
def test_one_shard_a_turn_whatever_the_assistant_says(replies: tuple[str, ...]) -> None:
    user = ShardedUser(ShardedUserConfig(), 9)
    assert played(user, *replies) == (shards_of(GOAL), "satisfied")
    assert played(user, *replies, key=2) == played(user, *replies)


def test_the_other_conditions_tell_all_at_once() -> None:
    assert played(ShardedUser(ShardedUserConfig(told="full"), 9), ANSWERS) == ([GOAL.prompt], "satisfied")
    (told,), _ = played(ShardedUser(ShardedUserConfig(told="concat"), 9), ANSWERS)
    assert told == "How many pens has Ann?\n- She has 2 pens at first.\n- Then she buys 5 red ones."


@pytest.mark.parametrize("told", ["full", "concat", "sharded"])
def test_the_answer_is_asked_for_once_when_all_is_told(told: str) -> None:
    user = ShardedUser(ShardedUserConfig(told=told), 9)
    asked, end = played(user, ASKS)
    assert asked[-1] == "What is the final answer?" and asked.count(asked[-1]) == 1 and end == "patience"
    assert played(user, *[ASKS] * (len(asked) - 1), ANSWERS) == (asked, "satisfied")


def voice(*answers: object, retries: int = 1) -> tuple[ShardedLLMUser, Counter[str]]:
    problems = Counter[str]()
    model = answering(*(answer if isinstance(answer, str) else json.dumps(answer) for answer in answers))
    return ShardedLLMUser(ShardedLLMUserConfig(retries=retries), 9, model, problems), problems


def test_a_model_chooses_the_shard_and_words_it() -> None:
    buys = {"part": 3, "message": "oh, and she buys 5 more, red ones"}
    user, problems = voice(buys, {"part": 2, "message": "well she has 2 pens at first"})
    told, end = played(user, ASKS, ASKS, ANSWERS)
    assert told == ["How many pens has Ann?", buys["message"], "well she has 2 pens at first"] and end == "satisfied"
    assert not problems.total()


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ({"part": 2, "message": "she has some pens"}, "lost"),  # without the number
        ({"part": 2, "message": "She has 2 pens at first. Then she buys 5 red ones."}, "more"),
        ({"part": 1, "message": "How many pens has Ann?"}, "shape"),  # told already
        ({"part": 2, "message": "I am happy to help you. She has 2 pens at first."}, "role_confusion"),
        ("no idea", "shape"),
    ],
)
def test_a_shard_is_said_as_it_stands_if_the_model_cannot_say_it(bad: object, kind: str) -> None:
    user, problems = voice(bad)
    assert played(user, ASKS, ASKS, ANSWERS) == (shards_of(GOAL), "satisfied")
    assert problems[f"user_{kind}"] >= 2 and problems["user_fallback"] >= 1


# -- figures

SCORES = {  # row -> goal -> a score for each conversation
    "base": {"a": [0.0, 0.0, 1.0, 1.0, 0.5], "b": [0.2, 0.4, 0.6, 0.8, 1.0], "c": [0.0, None, None, None, 0.0]},
    "base@full": {"a": [1.0, 1.0, 1.0, 1.0, 0.0], "b": [0.5, 0.5, 0.5, 1.0, 1.0], "c": [1.0, 1.0, 1.0, 1.0, 1.0]},
    "mine": {"a": [1.0, 1.0, 0.0, 1.0, 1.0], "b": [0.6, 0.7, 0.8, 0.9, 1.0], "c": [None] * 5},
    "mine@full": {"a": [1.0] * 5, "b": [0.5, 1.0, 1.0, 1.0, 1.0], "c": [1.0] * 5},
}


def figures() -> dict[str, Any]:
    scores: Any = {row: {"reward": goals} for row, goals in SCORES.items()}
    return summarise_conditions(scores, {"": "sharded", "full": "full"}, metric="reward", baseline="base", seed=1)


def by_numpy(row: str, goals: str) -> tuple[float, float, float]:
    """Score, aptitude and unreliability over these goals."""
    arrays = [np.array([value for value in SCORES[row][goal] if value is not None]) for goal in goals]
    high, low = ([np.percentile(array, q) for array in arrays] for q in (90, 10))
    return (
        float(np.mean([array.mean() for array in arrays])),
        float(np.mean(high)),
        float(np.mean(np.subtract(high, low))),
    )


def test_figures_are_means_over_goals_of_percentiles_over_samples() -> None:
    base = figures()["policies"]["base"]
    for condition, row in (("sharded", "base"), ("full", "base@full")):
        found = [base[condition][name]["mean"] for name in ("score", "aptitude", "unreliability")]
        assert found == pytest.approx(by_numpy(row, "abc"))
    # By hand: means 0.5, 0.6 and 0 of sharded; 0.8, 0.7 and 1 of full.
    assert base["sharded"]["of_full"]["mean"] == pytest.approx(1.1 / 2.5)
    assert base["sharded"]["gap"]["mean"] == pytest.approx(1.4 / 3)
    assert base["sharded"]["score"]["n"] == 3 and "gap" not in base["full"]
    low, high = base["sharded"]["score"]["ci95"]
    assert 0.0 <= low < 1.1 / 3 < high <= 0.6


def test_only_goals_with_a_score_under_all_conditions_count_and_differences_are_paired() -> None:
    found = figures()
    mine = found["policies"]["mine"]
    assert mine["full"]["score"]["n"] == mine["sharded"]["score"]["n"] == 2  # c was never scored when it was sharded
    assert [mine["sharded"][n]["mean"] for n in ("score", "aptitude", "unreliability")] == pytest.approx(
        by_numpy("mine", "ab")
    )
    change = found["difference"]["mine"]["sharded"]
    # Over a and b. Mine: 0.8 and 0.8 sharded, 1 and 0.9 full. Base: 0.5 and 0.6 sharded, 0.8 and 0.7 full.
    assert change["score"]["mean"] == pytest.approx(0.25)
    assert change["gap"]["mean"] == pytest.approx(0.15 - 0.2)
    assert change["of_full"]["mean"] == pytest.approx(1.6 / 1.9 - 1.1 / 1.5)
    assert "base" not in found["difference"]


def test_a_share_of_nothing_is_missing() -> None:
    scores: Any = {"base": {"reward": {"a": [0.0]}}, "base@full": {"reward": {"a": [0.0]}}}
    told = {"": "sharded", "full": "full"}
    found = summarise_conditions(scores, told, metric="reward", baseline="base", seed=1)
    assert found["policies"]["base"]["sharded"]["of_full"] == {"mean": None, "ci95": [None, None], "n": 0}
    assert found["policies"]["base"]["sharded"]["gap"]["mean"] == 0


def test_the_table_has_a_row_for_each_policy_and_condition() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(conditions_table(figures(), "base", 5))
    text = console.export_text()
    for told in ("base sharded", "base full", "mine sharded", "mine full", "0.367", "0.440", "3 goals, 5 conv"):
        assert told in text, text


def test_two_users_of_one_condition_are_refused() -> None:
    with pytest.raises(BadInput, match="user.told=full and evaluation.users.full are one condition"):
        check(load_config("evaluate", ["experiment=lost", "user.told=full"]), "evaluate")
