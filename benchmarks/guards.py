"""Precision and recall of the guards on labelled messages.

    python -m benchmarks.guards             # a second, no model
    python -m benchmarks.guards --write     # writes the figures into docs/results/users.json

Two sets. `data/user_messages.jsonl` holds what two models said as `user=llm` (`benchmarks/user_messages.py`), each
message with all its labels: `confusion`, `leak`, `end`, `language`, `echo`, or none of them. `dev`, half of the goals,
is what the rules were made from; `test` is the other half. `data/LABELS.md` says what each label means. A kind with
fewer than `FEW` messages in `test` has no figure.

`data/user_messages.json`, the older set, is about role confusion alone. It holds messages of users and of models that
fell out of the role, each with its label, in four
parts. `tuning` is what the rules were first made from. `held-out` has other goals, and was written before there were
any rules; but one hand wrote both and the rules. So there are real ones: what SmolLM2 says to the same openings, told
in one sentence to play the user. A first draw of them showed what the rules missed and became `model-tuning`;
`model-held-out` is a second draw, labelled before the rules saw it. Only the held-out parts are figures of the guard.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.goals import FOLDER
from collab.conversation import Agenda, Goal
from collab.datamodules.goals import load_goals
from collab.simulation import transcript
from collab.simulation.guards import echoes, foreign, leaks, role_confusion, tells_too_much
from collab.simulation.llm import INSTRUCTIONS, VAGUE_TURNS, end_signal
from collab.util.files import write_json

DATA = Path(__file__).parent / "data" / "user_messages.json"
PARTS = ("held-out", "model-held-out", "tuning", "model-tuning")
SAID = DATA.with_suffix(".jsonl")
ROOT = Path(__file__).resolve().parent.parent
WRITTEN = ROOT / "docs" / "results" / "users.json"
PERSONAS = ROOT / "conf" / "user" / "llm.yaml"
FEW = 10

Row = dict[str, Any]


@cache
def personas() -> dict[str, str]:
    """Those of `user=llm`, which its model is told too."""
    found = OmegaConf.load(PERSONAS).personas
    return {str(name): str(text) for name, text in found.items()}


KINDS: dict[str, Callable[[Goal, Row], bool]] = {
    "confusion": lambda goal, row: role_confusion(goal, row["heard"], row["message"]),
    "leak": lambda goal, row: (
        row["turn"] <= VAGUE_TURNS
        and (leaks(goal, row["message"]) or tells_too_much(goal, row["message"], row["turn"]))
    ),
    "end": lambda goal, row: bool(end_signal(row["message"])),
    "language": lambda goal, row: foreign(row["message"], goal.prompt, row["heard"]),
    "echo": lambda goal, row: echoes(row["message"], [*INSTRUCTIONS, *transcript.INSTRUCTIONS, *personas().values()]),
}


@cache
def training_goals() -> dict[str, Goal]:
    """The training goals of `doc_edit` by id."""
    return {goal.id: goal for goal in load_goals(FOLDER / "train.jsonl", "train")}


def rows(split: str) -> list[Row]:
    """The labelled messages of `dev` or `test`."""
    found = map(json.loads, SAID.read_text(encoding="utf-8").splitlines())
    return [row for row in found if row["split"] == split]


def alarms(row: Row) -> set[str]:
    """The kinds that the guards see in a message."""
    goal = training_goals()[row["goal"]]
    return {kind for kind, guard in KINDS.items() if guard(goal, row)}


@dataclass(frozen=True)
class Figures:
    """Of some messages: how many, how many of them have a label, and what the guard made of them."""

    messages: int
    labelled: int
    caught: int
    false_alarms: int

    @classmethod
    def of(cls, pairs: list[tuple[bool, bool]]) -> Figures:
        """Of (label, alarm) of each message."""
        return cls(
            len(pairs),
            sum(label for label, _ in pairs),
            sum(label and alarm for label, alarm in pairs),
            sum(alarm and not label for label, alarm in pairs),
        )

    @property
    def precision(self) -> float:
        return self.caught / (self.caught + self.false_alarms)

    @property
    def recall(self) -> float:
        return self.caught / self.labelled


def by_kind(split: str) -> dict[str, Figures]:
    """The figures of each guard, and of all together: `any` label against `any` alarm."""
    pairs = [(set(row["labels"]), alarms(row)) for row in rows(split)]
    found = {kind: Figures.of([(kind in labels, kind in raised) for labels, raised in pairs]) for kind in KINDS}
    return {"any": Figures.of([(bool(labels), bool(raised)) for labels, raised in pairs]), **found}


def results() -> dict[str, Any]:
    """What `docs/results/users.json` has of the guards: the figures of the test half."""
    found = by_kind("test")
    return {
        "guard_command": "python -m benchmarks.guards",
        "guard_recall": found["any"].recall,
        "guard_precision": found["any"].precision,
        "guard_kinds": {
            kind: {"messages": one.labelled}
            | ({"recall": one.recall, "precision": one.precision} if one.labelled >= FEW else {})
            for kind, one in found.items()
            if kind != "any"
        },
    }


def line(kind: str, found: Figures) -> str:
    """A row of the table in docs/users.md."""
    if found.labelled < FEW:
        return f"| {kind} | {found.messages} | {found.labelled} | too few | too few |"
    alarms = found.caught + found.false_alarms
    return (
        f"| {kind} | {found.messages} | {found.labelled} | {found.precision:.3f} ({found.caught} of {alarms}) "
        f"| {found.recall:.3f} ({found.caught} of {found.labelled}) |"
    )


def judged(part: str) -> list[tuple[dict[str, object], bool]]:
    """Each message of a part, and whether the guard takes it for the assistant's."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    goals = {
        name: Goal(
            name, entry["prompt"], entry["reference"], {"agenda": Agenda(entry["makes"], "I need help.", ()).entry()}
        )
        for name, entry in data["goals"].items()
    }
    rows = [row for row in data["messages"] if row["part"] == part]
    return [(row, role_confusion(goals[row["goal"]], row["heard"], row["message"])) for row in rows]


def figures(part: str) -> Figures:
    return Figures.of([(bool(row["confused"]), alarm) for row, alarm in judged(part)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--part", choices=PARTS, action="append", help="of the older set; default: those held out")
    parser.add_argument("--errors", action="store_true", help="show the messages that the guards are wrong about")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/results/users.json")
    chosen = parser.parse_args()
    print("| part | messages | labelled | precision | recall |\n|---|---:|---:|---:|---:|")
    for kind, found in by_kind(chosen.split).items():
        print(line(kind, found))
    for part in chosen.part or PARTS[:2]:
        print(line(part, figures(part)))
    if chosen.errors:
        for row in rows(chosen.split):
            labels, raised = set(row["labels"]), alarms(row)
            if labels != raised:
                print(f"  labelled {sorted(labels)}, seen {sorted(raised)}, {row['goal']}: {row['message']!r}")
        for part in chosen.part or PARTS[:2]:
            for row, alarm in judged(part):
                if alarm != row["confused"]:
                    print(f"  {'false alarm' if alarm else 'missed'}, {row['goal']}: {row['message']!r}")
    if chosen.write:
        write_json(WRITTEN, json.loads(WRITTEN.read_text(encoding="utf-8")) | results())


if __name__ == "__main__":
    main()
