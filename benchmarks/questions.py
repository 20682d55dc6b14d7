"""How well the agenda user tells questions that ask it something from others, on questions labelled by hand.

    python benchmarks/questions.py            # precision and recall on the held-out half, per task and per policy
    python benchmarks/questions.py --errors   # and what the rules get wrong in the other half

`data/questions.jsonl`: {task, policy, goal, opening, question, asks_user, held_out}. Questions come from base,
proactive and trained policies, and some were written by hand. The rules were made on the half that is not held out.

`data/answers.jsonl`: {goal, question, note, fits}. Questions of policies trained on other rules, each with a note that
the user gave then or gives now; `fits` says whether a person would answer with it. Some were looked at when the rules
were made. Who wrote the cues had seen none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/questions.py`

from benchmarks.cheats import Heard
from benchmarks.goals import FOLDER
from collab.conversation import Agenda, Goal, Message
from collab.datamodules.goals import SPLITS, load_goals
from collab.parsing.agenda_items import notes_of
from collab.parsing.agenda_state import asks_back, read, read_questions
from collab.parsing.english import questions

LABELLED = Path(__file__).with_name("data") / "questions.jsonl"
ANSWERS = LABELLED.with_name("answers.jsonl")
_MAKES: dict[str, Any] = {"math": "answer", "code": "program", "abg_coqa": "reply"}


@cache
def shipped() -> dict[str, Goal]:
    """The goals of doc_edit by id."""
    return {goal.id: goal for split in SPLITS for goal in load_goals(FOLDER / f"{split}.jsonl", split)}


def goal_of(row: dict[str, Any]) -> Goal:
    """The goal that was asked about, or one of which the user has said the row's opening and nothing else."""
    opening = row["opening"]
    if row["task"] == "doc_edit":
        if row.get("goal") in shipped():
            return shipped()[row["goal"]]
        heard = Heard([Message("user", opening)])
        return Goal("labelled", opening, "-", {"title": heard.topic, "form": heard.form})
    agenda = Agenda(_MAKES[row["task"]], opening, ())
    asked = questions(opening)
    return Goal("labelled", asked[-1] if asked else opening, "-", {"agenda": agenda.entry()})


def decide(row: dict[str, Any]) -> bool:
    """What the user would take the question for."""
    goal = goal_of(row)
    if row["task"] == "abg_coqa":
        return asks_back(goal, row["question"])
    return any(reading.asks for reading in read_questions(goal, row["question"]))


def rates(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Precision and recall of the decision "asks the user"; nan where nothing was taken, or nothing was to be taken."""
    both = sum(decide(row) and row["asks_user"] for row in rows)
    taken, right = sum(map(decide, rows)), sum(row["asks_user"] for row in rows)
    return both / taken if taken else float("nan"), both / right if right else float("nan")


def answers() -> tuple[float, float]:
    """Of the labelled notes that fit a question, and of those that don't: the share that the user gives to it."""
    given: dict[bool, list[bool]] = {True: [], False: []}
    for line in ANSWERS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        goal = shipped()[row["goal"]]
        given[row["fits"]].append(notes_of(goal).index(row["note"]) in read(goal, [row["question"]]).given)
    return fmean(given[True]), fmean(given[False])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true", help="list the errors of the half that is not held out")
    given = parser.parse_args()
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    if given.errors:
        for row in rows:
            if not row["held_out"] and decide(row) != row["asks_user"]:
                kind = "missed" if row["asks_user"] else "taken"
                print(f"{kind}: {row['task']}, {row['policy']}: {row['question']}")
    print("| questions | held out | asks | precision | recall | other half | asks | precision | recall |")
    print("| --- |" + " ---: |" * 8)
    groups = defaultdict(list)
    for row in rows:
        for name in ("all", f"task {row['task']}", row["policy"]):
            groups[name].append(row)
    for name in sorted(groups, key=lambda name: (name != "all", not name.startswith("task"), name)):
        held, other = ([row for row in groups[name] if row["held_out"] is half] for half in (True, False))
        cells: list[str] = []
        for half in (held, other):
            asks = sum(row["asks_user"] for row in half)
            cells += [f"{len(half)}", f"{asks}", *(f"{rate:.2f}" for rate in rates(half))]
        print(f"| {name} | " + " | ".join(cells) + " |")
    fitting, others = answers()
    print(f"\nnotes given to a question: {fitting:.2f} of those that fit it, {others:.2f} of those that don't")


if __name__ == "__main__":
    main()
