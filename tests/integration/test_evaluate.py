"""`python evaluate.py` plays what `train.py` exported, and finds what `train.py` found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run, Runner

# Runs of the real model: on a busy machine one test may take longer than tests otherwise may.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def evaluated(trained: Run, runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Run:
    policies = f"policies=[base,proactive,'mine:{trained.folder / 'policy'}']"
    return runner("evaluate.py", tmp_path_factory.mktemp("evaluation") / "run", policies)


def test_a_policy_scores_as_it_did_behind_its_training(evaluated: Run, trained: Run) -> None:
    found, before = evaluated.results, trained.results
    assert list(found["policies"]) == ["base", "proactive", "mine"]
    for ours, theirs in (("base", "base"), ("proactive", "proactive"), ("mine", "trained")):
        assert found["policies"][ours] == before["policies"][theirs]
    assert found["difference"] == {name.replace("trained", "mine"): d for name, d in before["difference"].items()}


def test_the_conversations_are_those_of_the_training_run(evaluated: Run, trained: Run) -> None:
    def talks(run: Run, policy: str) -> list[object]:
        return [r["messages"] for r in run.transcripts if (r["phase"], r["policy"]) == ("test", policy)]

    assert talks(evaluated, "base") == talks(trained, "base") and talks(evaluated, "mine") == talks(trained, "trained")
    assert talks(evaluated, "mine") != talks(evaluated, "base")
    assert len(evaluated.transcripts) == 3 * 2


def test_it_leaves_results_and_transcripts(evaluated: Run) -> None:
    files = {path.name for path in evaluated.folder.iterdir() if path.is_file()}
    assert {"results.json", "transcripts.jsonl", "config.yaml"} <= files
    assert not (evaluated.folder / "policy").exists()
    for name in ("base", "proactive", "mine"):
        assert name in evaluated.output and name in evaluated.results["seconds"]
