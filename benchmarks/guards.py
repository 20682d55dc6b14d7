"""Precision and recall of the guard against role confusion: `python -m benchmarks.guards`.

`data/user_messages.json` holds messages of users and of models that fell out of the role, each with its label. The
tuning half is what the rules were made from; the held-out half has other goals and other messages, and was written
before there were any rules. Only its figures say anything.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from collab.conversation import Agenda, Goal
from collab.simulation.guards import role_confusion

DATA = Path(__file__).parent / "data" / "user_messages.json"
HALVES = ("held-out", "tuning")


@dataclass(frozen=True)
class Figures:
    """Of one half: how many messages, how many of them are confused, and what the guard made of them."""

    messages: int
    confused: int
    caught: int
    false_alarms: int

    @property
    def precision(self) -> float:
        return self.caught / (self.caught + self.false_alarms)

    @property
    def recall(self) -> float:
        return self.caught / self.confused


def judged(half: str) -> list[tuple[dict[str, object], bool]]:
    """Each message of a half, and whether the guard takes it for the assistant's."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    goals = {
        name: Goal(
            name, entry["prompt"], entry["reference"], {"agenda": Agenda(entry["makes"], "I need help.", ()).entry()}
        )
        for name, entry in data["goals"].items()
    }
    rows = [row for row in data["messages"] if row["half"] == half]
    return [(row, role_confusion(goals[row["goal"]], row["heard"], row["message"])) for row in rows]


def figures(half: str) -> Figures:
    found = judged(half)
    return Figures(
        messages=len(found),
        confused=sum(bool(row["confused"]) for row, _ in found),
        caught=sum(bool(row["confused"]) and alarm for row, alarm in found),
        false_alarms=sum(not row["confused"] and alarm for row, alarm in found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, default="held-out")
    parser.add_argument("--errors", action="store_true", help="show the messages that it is wrong about")
    chosen = parser.parse_args()
    found = figures(chosen.half)
    print(
        f"{chosen.half}: {found.messages} messages, {found.confused} confused; precision "
        f"{found.precision:.3f} ({found.caught} of {found.caught + found.false_alarms} alarms), recall "
        f"{found.recall:.3f} ({found.caught} of {found.confused})"
    )
    for row, alarm in judged(chosen.half) if chosen.errors else ():
        if alarm != row["confused"]:
            print(f"{'false alarm' if alarm else 'missed'}, {row['goal']}: {row['message']!r}")


if __name__ == "__main__":
    main()
