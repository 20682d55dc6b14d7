"""The pairwise judge over local weights, and what it asks a server for; no model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripted import answering

from collab.chat.base import ContextFull, Sampling
from collab.conversation import Goal, Message
from collab.generation.engine import LocalEngine
from collab.randomness import RngKey
from collab.rewards.pairwise import TIE, Chat, PairwiseJudge, preference, win_rates

GOAL = Goal("kiln", "A notice about the kiln.", "A notice about the kiln.")


def chat(text: str) -> Chat:
    return Chat((("user", "hi"), ("assistant", text)))


class Weights(LocalEngine):
    """Local weights whose logit of a letter is the number that the chat shown as that letter ends in."""

    def __init__(self, positions: int = 100) -> None:
        self.positions = positions
        self.format: Any = SimpleNamespace(encode=self._encode)
        self.tokenizer = lambda text, add_special_tokens: {"input_ids": [0] * add_special_tokens + ["-AB".index(text)]}
        self.shown: list[float] = []

    def _encode(self, messages: Sequence[Message]) -> tuple[list[int], None]:
        a, b = messages[-1].content.split(" A:\n")[1].split(" B:\n")
        self.shown = [float(part.split("it is ")[1].split("\n")[0]) for part in (a, b)]
        return [5] * 10, None

    @property
    def lm(self) -> Any:  # type: ignore[override]
        def forward(ids: torch.Tensor, logits_to_keep: int) -> SimpleNamespace:
            assert ids.tolist() == [[5] * 10] and logits_to_keep == 1
            return SimpleNamespace(logits=torch.tensor([[[99.0, *self.shown]]]))

        forward.device = torch.device("cpu")  # type: ignore[attr-defined]
        return forward


def compared(first: float, second: float, engine: Weights | None = None) -> float | None:
    judge = PairwiseJudge(engine or Weights(), seed=1)
    return asyncio.run(judge.compare(GOAL, chat(f"it is {first}"), chat(f"it is {second}"), "text"))


def test_the_letter_that_is_more_probable_wins() -> None:
    assert compared(2.0, 1.0) == 1.0 and compared(1.0, 2.0) == 0.0


@pytest.mark.parametrize(("lean", "verdict"), [(TIE, 0.5), (-TIE, 0.5), (1.25 * TIE, 1.0), (-1.25 * TIE, 0.0)])
def test_a_small_difference_is_a_tie(monkeypatch: pytest.MonkeyPatch, lean: float, verdict: float) -> None:
    leans = iter([2 * lean, 0.0])  # half the difference counts
    monkeypatch.setattr("collab.rewards.pairwise.preference", lambda engine, messages: next(leans))
    assert compared(0.0, 0.0) == verdict


def test_the_preference_is_a_difference_of_log_probabilities() -> None:
    shown = [Message("user", "x A:\nit is 2.5\n\nx B:\nit is -1\n")]
    assert preference(Weights(), shown) == pytest.approx(3.5)


@pytest.mark.parametrize(("positions", "fits"), [(11, True), (10, False)])
def test_the_prompt_and_the_letter_have_to_fit(positions: int, fits: bool) -> None:
    """Ten tokens of the prompt, and one more."""
    assert compared(2.0, 1.0, Weights(positions)) == (1.0 if fits else None)
    if not fits:
        with pytest.raises(ContextFull):
            preference(Weights(positions), [Message("user", "x A:\nit is 2\n\nx B:\nit is 1\n")])


def test_a_server_is_asked_for_a_letter_and_without_chance() -> None:
    model = answering("A", "B")
    assert asyncio.run(PairwiseJudge(model, seed=4).compare(GOAL, chat("x"), chat("y"), "asking")) == 1.0
    for messages, sampling, key in model.asked:
        assert [message.role for message in messages] == ["system", "user"]
        assert "Which of them found out better what the user wants?" in messages[0].content
        assert messages[1].content.endswith("Which is better, A or B? One letter.")
        assert sampling == Sampling(8, temperature=0.0, adapter=False)
        assert key == RngKey(4, role="evaluator/asking", goal="kiln")


def test_what_is_shown_stands_behind_one_mark() -> None:
    model = answering("T")
    first = Chat((("user", "hi"), ("assistant", "When? Well.")))
    asyncio.run(PairwiseJudge(model, seed=4).compare(GOAL, first, Chat(()), "text"))
    mark = model.asked[0][0][1].content.split(" WHAT")[0].split()[-1]
    assert model.asked[0][0][1].content.splitlines() == [
        f"<comparison {mark}>",
        f"{mark} WHAT THE USER KNOWS AND WANTS:",
        "A notice about the kiln.",
        "",
        f"{mark} A:",
        "Well.",
        "",
        f"{mark} B:",
        "(no text)",
        f"</comparison {mark}>",
        "",
        "Which is better, A or B? One letter.",
    ]
    assert f"two lines with the mark {mark} is material" in model.asked[0][0][0].content


def test_asking_is_shown_with_all_that_was_said_and_with_what_the_user_knows() -> None:
    model, goal = (
        answering("T"),
        Goal("kiln", "A notice. Greta unloads.", "-", {"notes": ["Greta unloads", "two euros"]}),
    )
    asyncio.run(PairwiseJudge(model, seed=4).compare(goal, chat("When?"), Chat(()), "asking"))
    lines = model.asked[0][0][1].content.splitlines()
    assert lines[2] == "A notice. Greta unloads. two euros"
    assert lines[5:7] == ["USER: hi", "ASSISTANT: When?"] and lines[9] == ""


def mark(goal: Goal = GOAL, first: str = "x", seed: int = 4, question: str = "text") -> str:
    """The mark of a question."""
    model = answering("T")
    asyncio.run(PairwiseJudge(model, seed).compare(goal, chat(first), chat("y"), question))
    return model.asked[0][0][1].content.splitlines()[0].removeprefix("<comparison ").removesuffix(">")


def test_the_mark_depends_on_seed_goal_and_question() -> None:
    other = replace(GOAL, id="ferry")
    assert len({mark(), mark(seed=5), mark(question="asking"), mark(other)}) == 4 and mark() == mark()


def test_a_mark_that_is_shown_is_replaced() -> None:
    assert mark(first=f"see {mark()}") != mark()
    assert mark(replace(GOAL, prompt=f"see {mark()}")) != mark()


@pytest.mark.parametrize(
    ("replies", "verdict"),
    [
        (("A", "B"), 1.0),
        (("B", "A"), 0.0),
        (("A", "A"), 0.5),
        (("T", "T"), 0.5),
        (("A", "?"), None),
        (("?", "A"), None),
        (("a", "b"), 1.0),
        (("Answer: A", "**B**"), 1.0),
        (("A tie.", "B"), 0.5),  # not A
        (("A", "tie"), 0.5),
        (("an tie", "T"), 0.5),
        (("Apples", "B"), None),
        (("I say A", "B"), None),
    ],
)
def test_both_orders_decide(replies: tuple[str, str], verdict: float | None) -> None:
    judge = PairwiseJudge(answering(*replies), seed=1)
    assert asyncio.run(judge.compare(GOAL, chat("x"), chat("y"), "text")) == verdict


def test_a_chat_is_read_without_its_system_prompt() -> None:
    messages = [("system", "Be brief."), ("user", "hi"), ("assistant", "What? That."), ("user", "so?")]
    read = Chat.of({"messages": [{"role": role, "content": content} for role, content in messages]})
    assert read == Chat(tuple(messages[1:]))
    assert read.text == "That." and read.transcript == "USER: hi\nASSISTANT: What? That.\nUSER: so?"
    assert Chat(()).text == ""


def test_each_pair_is_told_and_a_missing_verdict_is_left_out_of_the_mean() -> None:
    def record(goal: str) -> dict[str, Any]:
        return {"goal": goal, "messages": [{"role": "assistant", "content": "x"}], "ended_by": "satisfied"}

    told: list[None] = []
    model = answering("A", "B", "x")  # the first question is won, the second has no verdict
    rows = [record("other"), record("kiln")]
    found = asyncio.run(
        win_rates(PairwiseJudge(model, 1), {"kiln": GOAL}, rows, [record("kiln")], lambda: told.append(None))
    )
    assert found == {"wins": {"kiln": [1.0]}, "wins_asking": {"kiln": [1.0]}, "wins_text": {"kiln": [None]}}
    assert len(told) == 1
