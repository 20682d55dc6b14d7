"""Precision and recall of the guard against role confusion: `python -m benchmarks.guards`.

`data/user_messages.json` holds messages of users and of models that fell out of the role, each with its label, in four
parts. `tuning` is what the rules were first made from. `held-out` has other goals, and was written before there were
any rules; but one hand wrote both and the rules. So there are real ones: what SmolLM2 says to the same openings, told
in one sentence to play the user. A first draw of them showed what the rules missed and became `model-tuning`;
`model-held-out` is a second draw, labelled before the rules saw it. Only the held-out parts are figures of the guard.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from collab.conversation import Agenda, Goal
from collab.simulation.guards import role_confusion

DATA = Path(__file__).parent / "data" / "user_messages.json"
PARTS = ("held-out", "model-held-out", "tuning", "model-tuning")


@dataclass(frozen=True)
class Figures:
    """Of one part: how many messages, how many of them are confused, and what the guard made of them."""

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
    found = judged(part)
    return Figures(
        messages=len(found),
        confused=sum(bool(row["confused"]) for row, _ in found),
        caught=sum(bool(row["confused"]) and alarm for row, alarm in found),
        false_alarms=sum(not row["confused"] and alarm for row, alarm in found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: those that are held out")
    parser.add_argument("--errors", action="store_true", help="show the messages that it is wrong about")
    chosen = parser.parse_args()
    for part in chosen.part or PARTS[:2]:
        found = figures(part)
        print(
            f"{part}: {found.messages} messages, {found.confused} confused; precision "
            f"{found.precision:.3f} ({found.caught} of {found.caught + found.false_alarms} alarms), recall "
            f"{found.recall:.3f} ({found.caught} of {found.confused})"
        )
        for row, alarm in judged(part) if chosen.errors else ():
            if alarm != row["confused"]:
                print(f"  {'false alarm' if alarm else 'missed'}, {row['goal']}: {row['message']!r}")


if __name__ == "__main__":
    main()
