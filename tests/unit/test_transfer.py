"""Several tasks in one evaluation: which configs they have, what is refused, what the table shows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from composing import load_config
from rich.console import Console

from collab.app.estimate import Calls, Estimate, together
from collab.config.checks import check
from collab.config.tasks import about_task, further_tasks
from collab.conversation import Agenda, AgendaItem, Conversation, Goal, Reply
from collab.reports.transfer import shown_metrics, transfer_markdown, transfer_table
from collab.rewards.asking import OverAsking
from collab.util.errors import BadInput


def test_the_experiment_plays_four_tasks_with_one_limit():
    config = load_config("evaluate", ["experiment=transfer", "task.num_test=3", "sandbox=strict"], "here")
    check(config, "evaluate")
    others = further_tasks(config)
    assert list(others) == ["abg_coqa", "math", "code"]
    assert {one.task.num_test for one in others.values()} == {3}
    assert [one.output_dir for one in others.values()] == [f"here/tasks/{name}" for name in others]
    assert all(not one.evaluation.tasks and one.policies == config.policies for one in others.values())
    assert others["code"].task.metrics["pass_rate"].options == {"sandbox": "strict"}
    assert all("over_asking" in one.task.metrics for one in (config, *others.values()))
    alone = load_config("evaluate", ["task=abg_coqa"]).task
    assert others["abg_coqa"].task.proactive_prompt == alone.proactive_prompt


def test_the_list_of_tasks_can_be_set():
    config = load_config("evaluate", ["experiment=transfer", "tasks=[math,ask_or_act]", "task=abg_coqa"])
    assert config.task.name == "abg_coqa" and list(config.evaluation.tasks) == ["math", "ask_or_act"]


def test_a_judge_judges_every_task():
    config = load_config("evaluate", ["experiment=transfer", "judge=openai"])
    for task in (config.task, config.evaluation.tasks["math"]):
        assert task.metrics["interactivity"].target == config.judge.replaces["interactivity"]


@pytest.mark.parametrize(
    ("entry", "overrides", "said"),
    [
        ("train", [], "evaluation.tasks (abg_coqa, math, code) are played by evaluate.py alone. Set tasks=none here"),
        ("evaluate", ["task=math"], "evaluation.tasks has math, which is the task already. Leave it out by ~"),
    ],
)
def test_tasks_that_cannot_be_played_are_refused(entry, overrides, said):
    with pytest.raises(BadInput) as caught:
        check(load_config(entry, ["experiment=transfer", *overrides]), entry)
    assert said in str(caught.value)


def test_a_name_that_is_no_folder_is_refused():
    config = load_config("evaluate", ["experiment=transfer"])
    config.evaluation.tasks["../math"] = config.evaluation.tasks["math"]
    with pytest.raises(BadInput, match=r"evaluation.tasks.../math: a name may have letters"):
        check(config, "evaluate")


def test_an_error_names_the_task_and_how_to_leave_it_out():
    with pytest.raises(BadInput) as caught, about_task("code"):
        raise BadInput("task.data=x is not there.")
    assert str(caught.value).startswith("evaluation.tasks.code: task.data=x is not there.")
    assert str(caught.value).endswith("~evaluation.tasks.code leaves the task out.")


def test_the_estimates_of_tasks_add_up():
    one = Estimate([Calls("user", "m", 2, 10, 4)], [Calls("user", "m", 1, 5, 2)], "conversation", [])
    other = Estimate([Calls("user", "m", 3, 9, 9)], [Calls("user", "m", 1, 3, 3)], "conversation", [])
    both = together([one, other])
    assert both.total == [Calls("user", "m", 5, 19, 13)] and both.unit == one.unit


def results(task: dict[str, Any], **policies: dict[str, tuple[float, int]]) -> dict[str, Any]:
    """A results.json in which each policy but the base differs from it by a tenth."""

    def estimate(mean: float, n: int) -> dict[str, Any]:
        return {"mean": mean, "ci95": [mean - 0.25, mean + 0.25], "n": n}

    found = {policy: {m: estimate(*value) for m, value in metrics.items()} for policy, metrics in policies.items()}
    others = {name: {m: estimate(0.1, e["n"]) for m, e in of.items()} for name, of in found.items() if name != "base"}
    return {"policies": found, "difference": others, "config": {"task": task}, "seconds": {}}


MATH = results(
    {"metrics": {"accuracy": {"weight": 1.0}, "token_penalty": {"weight": -1.0}, "pertinent": {"weight": 0.0},
                 "over_asking": {"weight": 0.0}}, "aggregates": {}},
    base={"reward": (0.5, 8), "accuracy": (0.5, 8), "pertinent": (0.1, 3), "over_asking": (0.25, 8)},
    mine={"reward": (0.6, 8), "accuracy": (0.6, 8), "pertinent": (0.2, 3), "over_asking": (0.35, 8)},
)  # fmt: skip
STORIES = results(
    {"metrics": {"asks": {"weight": 1.0}}, "aggregates": {"macro_f1": "f"}},
    base={"reward": (0.5, 4), "asks": (0.0, 2), "macro_f1": (0.2, 4), "assistant_tokens": (12.4, 4)},
    mine={"reward": (0.6, 4), "asks": (0.1, 2), "macro_f1": (0.3, 4), "assistant_tokens": (20.6, 4)},
)


def test_what_is_watched_is_left_out_but_for_over_asking():
    assert shown_metrics(MATH) == ["reward", "accuracy", "over_asking"]
    assert shown_metrics(STORIES) == ["reward", "asks", "macro_f1", "assistant_tokens"]


def test_a_line_is_a_figure_of_a_task_beside_its_difference():
    lines = transfer_markdown({"math": MATH, "stories": STORIES}).splitlines()
    assert lines[0] == "| task (n), figure | base | mine | mine − base |"
    assert lines[4] == "| math (8) over asking | 0.250 [0.000, 0.500] | 0.350 [0.100, 0.600] | +0.100 [-0.150, 0.350] |"
    assert lines[6].startswith("| stories (4) asks | 0.000 [-0.250, 0.250] n=2 |")
    assert lines[8].startswith("| stories (4) assistant tokens | 12 ") and len(lines) == 11
    console = Console(width=80, record=True)
    console.print(transfer_table({"math": MATH, "stories": STORIES}))
    text = console.export_text()
    assert "stories (4) macro F1" in text and "+0.100" in text


def talk(goal: Goal, *replies: str) -> float | None:
    conversation = Conversation(goal)
    for text in replies:
        conversation = conversation.with_user("yes").with_reply(Reply(text))
    metric = OverAsking()
    return asyncio.run(metric(conversation)) if metric.applies(goal) else None


AGENDA = Agenda(
    "answer", "Ann buys apples.", (AgendaItem("number", "She buys 6 apples.", cues="how many apples number"),)
)
PROBLEM = Goal("p", "How much?", "12", {"agenda": AGENDA.entry()})


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (["How many apples does she buy?"], 0.0),
        (["How many apples does she buy?", "How many apples does she buy?"], 0.5),  # it has been told
        (["What is an apple?", "The answer is 12."], 0.5),  # asks for nothing that only the user knows
        (["The answer is 12."], 0.0),
        ([], None),
    ],
)
def test_over_asking_is_the_share_of_messages_that_ask_for_nothing_new(replies, expected):
    assert talk(PROBLEM, *replies) == expected


def test_over_asking_on_questions_about_stories_is_asking_back_on_clear_ones():
    reply = "Do you mean the dog or the cat?"
    agenda = Agenda("reply", "Story: a dog and a cat. Question: Who barked?", ()).entry()
    assert talk(Goal("s", "Who barked?", "The dog", {"ambiguous": False, "agenda": agenda}), reply) == 1.0
    assert talk(Goal("s", "Who barked?", "The dog", {"ambiguous": False, "agenda": agenda}), "The dog.") == 0.0
    assert talk(Goal("s", "Who barked?", "Which?", {"ambiguous": True, "agenda": agenda}), reply) is None
