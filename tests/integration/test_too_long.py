"""Goals about which no conversation can begin are left out, for the models that a command plays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from composing import load_config

from collab.app.too_long import goals_that_fit
from collab.conversation import Goal
from collab.datamodules.goals import GoalSplits
from collab.util.errors import BadInput


class OneOfMany(Goal):
    """A goal that takes long to compare: among thousands, all with all would take seconds."""

    __hash__ = Goal.__hash__

    def __eq__(self, other: object) -> bool:
        return pytest.fail("goals were compared")


def goal(name: str, words: int) -> Goal:
    return OneOfMany(name, f"Write a notice for {name}.", "We bake.", {"title": "rye " * words, "form": "notice"})


def splits(*train: Goal) -> GoalSplits:
    return GoalSplits(list(train), [goal("val", 1)], [goal("test", 1)])


def kept(entry: str, given: GoalSplits, *overrides: str) -> tuple[list[str], list[str]]:
    config = load_config(entry, ["trainer.accelerator=cpu", "precision=fp32", *overrides])
    fitting, notes = goals_that_fit(config, given, entry)
    return [one.id for one in fitting.train], notes


@pytest.fixture(scope="module")
def short_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with 512 positions."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("short") / "short"))
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "max_position_embeddings": 512}))
    return folder


def test_goals_that_are_too_long_are_named_and_not_compared(tiny_model: Path) -> None:
    long = [goal(f"long-{number}", 3000) for number in range(7)]
    names, notes = kept("train", splits(goal("a", 1), *long, goal("b", 1)), f"model.path={tiny_model}")
    assert names == ["a", "b"]
    assert notes == [
        "7 of 9 train goals are left out (long-0, long-1, long-2, long-3, long-4, ...): their first prompt and a reply "
        "are longer than the positions of the model that reads them."
    ]
    with pytest.raises(BadInput, match=r"^1 of 1 train goals .*\(long-0\): .*\. Shorten the goals, lower"):
        kept("train", splits(long[0]), f"model.path={tiny_model}")


def test_programs_that_no_reply_can_hold_are_left_out_and_counted(tiny_model: Path) -> None:
    agenda = {"makes": "program", "opening": "I need a function.", "items": []}

    def program(name: str, lines: int) -> Goal:
        return Goal(name, "prompt", f"def {name}(a):\n" + "    a += 1\n" * lines, {"agenda": agenda})

    given = GoalSplits([program("a", 1), program("b", 200)], [program("c", 1)], [program("d", 2)], ("Some are alike.",))
    overrides = [f"model.path={tiny_model}", "task=code", "task.max_new_tokens=64"]
    names, notes = kept("train", given, *overrides)
    assert names == ["a"]
    assert notes == [
        "Some are alike.",
        "1 of 2 train goals are left out (b): their programs are longer than task.max_new_tokens (64), so that no "
        "reply can hold them.",
    ]
    with pytest.raises(BadInput, match=r"1 of 1 test goals .*\(d\): .* Raise task\.max_new_tokens\."):
        kept("train", GoalSplits(given.train, given.val, [program("d", 200)]), *overrides)
    assert kept("train", splits(goal("long", 1)), *overrides[:2], "task.max_new_tokens=2")[0] == ["long"]  # a text


@pytest.mark.parametrize(("entry", "names"), [("train", ["a", "b"]), ("synthesize", ["a", "b"]), ("evaluate", ["a"])])
def test_policies_are_those_of_an_evaluation(
    entry: str, names: list[str], tiny_model: Path, short_model: Path, tmp_path: Path
) -> None:
    given = splits(goal("a", 1), goal("b", 500))
    overrides = [f"model.path={tiny_model}", "task.max_new_tokens=16", f"policies=[base,{short_model}]"]
    assert kept(entry, given, *overrides)[0] == names
    if entry != "evaluate":  # its policies need not exist
        assert kept(entry, given, *overrides[:2], f"policies=[{tmp_path / 'none'}]")[0] == names
        assert kept(entry, given, *overrides[:2], "policies=[m@http://127.0.0.1:9/v1]")[0] == names
