"""Trees of conversations as HTML, and which section of W&B a metric is in."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from collab.conversation import Candidate, Conversation, Goal, Group, Reply, Score, as_record
from collab.reports.sections import PLOTS, SECTIONS, SUMMARIES, sectioned
from collab.reports.tree import best_and_worst, conversation_html, ends, group_html

BAD = "<script>alert(1)</script> & <img src=x onerror=alert(2)>"


class Tags(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text = list[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def group(name: str, *rewards: float, text: str = "hi") -> Group:
    goal = Goal(name, f"wants {text}", f"reference {text}")
    context = Conversation(goal, f"system {text}").with_user(f"asks {text}")
    candidates = []
    for number, reward in enumerate(rewards):
        reply = Reply(f"reply {number} {text}")
        future = context.with_reply(reply).with_user(f"then {text}").with_reply(Reply(f"end {number}"))
        score = Score(reward, {"bleu": 0.25, "tone": None})
        candidates.append(Candidate(reply, (future.with_end("window"),), (score,), reward))
    return Group(context, tuple(candidates))


def test_no_text_of_a_run_becomes_html() -> None:
    one = group(BAD, 1.0, text=BAD)
    future, score = one.candidates[0].futures[0], one.candidates[0].scores[0]
    goal = {"id": BAD, "prompt": BAD, "reference": BAD}
    allowed = {"meta", "style", "details", "summary", "p", "b", "small"}
    for page in (group_html(one), conversation_html(as_record(future, score), goal)):
        read = Tags(page)
        assert set(read.tags) <= allowed and read.text.count(BAD) >= 5
        assert "default-src 'none'" in page


def test_a_tree_has_the_context_once_and_the_candidates_best_first() -> None:
    page = Tags(group_html(group("g", 0.5, 2.0, -1.0))).text
    order = [page.index(f"reply {number} hi") for number in (1, 0, 2)]
    assert order == sorted(order) and page.count("asks hi") == 1 and page.count("then hi") == 3
    for shown in ("MR 2", "MR -1", "future 1: R* 0.5", "bleu 0.25, tone none", "ended by: window", "reference hi"):
        assert shown in page


def test_the_best_and_the_worst_group_are_chosen_by_the_mean() -> None:
    groups = [group("a", 1.0, 1.0), group("b", 0.0, 3.0), group("c", 0.5, 0.0)]
    assert [(which, one.context.goal.id) for which, one in best_and_worst(groups)] == [("best", "b"), ("worst", "c")]
    assert [which for which, _ in best_and_worst(groups[:1])] == ["best"] and best_and_worst([]) == []


def test_the_ends_of_many_conversations() -> None:
    records = [{"id": number, "reward": reward} for number, reward in enumerate((1.0, None, 3.0, 2.0, -1.0))]
    assert [(which, record["id"]) for which, record in ends(records, 2)] == [
        *(("best", 2), ("best", 3)),
        *(("worst", 4), ("worst", 1)),
    ]
    assert [record["id"] for _, record in ends(records[:3], 2)] == [2, 0, 1]  # none twice


@pytest.mark.parametrize(
    ("metric", "section"),
    [
        ("train/mr", "reward"),
        ("val/reward", "reward"),
        ("train/mr_spread", "reward"),
        ("train/tone", "reward"),
        ("train/tone_spread", "reward"),
        ("train/turns", "user"),
        ("train/user_leak", "user"),
        ("spend/user_usd", "user"),
        ("train/judge_missing", "judge"),
        ("spend/extractor_calls", "judge"),
        ("spend/policy_tokens", "engine"),
        ("train/rollout_tokens_per_s", "engine"),
        ("train/server_1_share", "engine"),
        ("train/lost_groups", "rollout"),
        ("train/loss", "optimiser"),
        ("train/of_my_own_algorithm", "optimiser"),
        ("spend/usd", "system"),
        ("epoch", "system"),
    ],
)
def test_a_metric_is_in_its_section_and_keeps_its_name(metric: str, section: str) -> None:
    assert sectioned(metric, {"tone"}) == f"{section}/{metric}"


def test_plots_and_summaries_are_where_their_metrics_are() -> None:
    assert PLOTS.keys() == SECTIONS.keys()
    for section, plots in PLOTS.items():
        for metric in (metric for metrics in plots for metric in metrics):
            assert sectioned(metric, ()) == f"{section}/{metric}"
    assert {sectioned(metric, ()).partition("/")[0] for metric in SUMMARIES} == {"reward"}
