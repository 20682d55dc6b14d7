"""`definitions=official` against the official package: every part and the MR of fixed conversations and contexts.

`python -m benchmarks.official_parity` records the package's figures. Tokens need tiktoken's table of cl100k_base; where
it is not to be had, MR is compared without their term.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from statistics import fmean

import pytest
from composing import load_config
from marks import slow

from benchmarks.environments import python_of
from benchmarks.official_cases import Case, Server, cases
from benchmarks.official_parity import RECORDED, SAMPLES, TOKENS, official, own
from benchmarks.steps import ROOT
from collab.rewards.official import Tokens
from collab.util.errors import BadInput

WITHOUT = tuple(f"~definitions.tasks.{task}.metrics.tokens_{side}" for task in TOKENS for side in ("read", "typed"))


def table() -> bool:
    try:
        Tokens()
    except BadInput:
        return False
    return True


@pytest.fixture(autouse=True)
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.official_parity.load_config", load_config)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Server() as server:
        yield server.url


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def agree(case: Case, theirs: dict[str, list[float]], url: str) -> None:
    counted = table()
    scores = own(case, url, *(() if counted else WITHOUT))
    assert len(scores) == (SAMPLES if case.is_context else 1)
    names = theirs.keys() - {"MR"} - (set() if counted else {"tokens_read"})
    assert names == {name for name in scores[0].parts if name != "tokens_typed"}
    for name in names:
        assert [score.parts[name] for score in scores] == pytest.approx(theirs[name], abs=1e-6), name
    mr = fmean(theirs["MR"]) - (0 if counted else TOKENS[case.task] * fmean(theirs["tokens_read"]))
    assert fmean(score.reward or 0.0 for score in scores) == pytest.approx(mr, abs=1e-6)


# Of each task and of contexts, one of four in every run.
@pytest.mark.parametrize(
    "case", [case if case.name[-1] == "1" else slow(case) for case in cases()], ids=lambda case: case.name
)
def test_parts_and_mr_are_those_that_the_official_package_gave(
    case: Case, recorded: dict[str, dict[str, list[float]]], url: str
) -> None:
    agree(case, recorded[case.name], url)


def test_the_cases_tell_metrics_apart(recorded: dict[str, dict[str, list[float]]]) -> None:
    for name in ("bleu", "pass_rate", "accuracy", "interactivity", "tokens_read"):
        values = {value for parts in recorded.values() for value in parts.get(name, ())}
        assert len(values) > 1, name


def test_the_page_has_the_recorded_mr(recorded: dict[str, dict[str, list[float]]]) -> None:
    page = (ROOT / "docs/method/official.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (\w+ \d) \| \d \| ([\d.]+) \| \2 \|", page, re.MULTILINE))
    assert told == {name: f"{fmean(parts['MR']):.6f}" for name, parts in recorded.items()}


@pytest.mark.slow
@pytest.mark.skipif("COLLABLLM_EXAMPLES" not in os.environ, reason="needs the folder examples of microsoft/CollabLLM")
def test_the_record_is_what_the_official_package_gives(recorded: dict[str, dict[str, list[float]]]) -> None:
    python = os.environ.get("COLLABLLM_PYTHON") or python_of("collabllm")
    for name, parts in official(os.environ["COLLABLLM_EXAMPLES"], python):
        assert parts == {part: pytest.approx(values, abs=1e-9) for part, values in recorded[name].items()}, name
