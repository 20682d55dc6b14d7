"""Do the goals of doc_edit need writing? Pasting the user's notes against a second text that somebody else wrote.

    python benchmarks/goals.py

`data/second_texts.jsonl` has for each goal a text that was written from its notes, form, tone, reader and length alone,
without sight of the reference. Exit status 1 where pasting scores more than half of that text's BLEU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/goals.py`

from collab.conversation import Conversation, Goal
from collab.datamodules.goals import SPLITS, load_goals
from collab.parsing.agenda_state import coverage
from collab.rewards.document import copied
from collab.rewards.metrics import Bleu

FOLDER = Path(__file__).resolve().parent.parent / "collab" / "datamodules" / "data" / "doc_edit"
SECOND = Path(__file__).with_name("data") / "second_texts.jsonl"


@dataclass(frozen=True)
class Text:
    """What a text scores as the end of a conversation in which the user told all notes."""

    bleu: float
    coverage: float
    copied: float


def scored(goal: Goal, text: str) -> Text:
    return Text(Bleu().of(text, Conversation(goal)), coverage(goal, text), copied(text, list(goal.notes)))


def pasted(goal: Goal) -> str:
    """All notes, one after the other, as sentences."""
    return " ".join(f"{note[0].upper()}{note[1:]}." for note in goal.notes)


def read_second() -> dict[str, str]:
    """Goal id -> the second text."""
    rows = map(json.loads, SECOND.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["text"] for row in rows}


def compare(goals: Sequence[Goal]) -> dict[str, Text]:
    """Means over goals: notes pasted, second text, reference."""
    second = read_second()
    texts = {
        "notes, pasted": [scored(goal, pasted(goal)) for goal in goals],
        "second text": [scored(goal, second[goal.id]) for goal in goals],
        "reference": [scored(goal, goal.reference) for goal in goals],
    }
    return {
        name: Text(*(fmean(getattr(one, part) for one in found) for part in ("bleu", "coverage", "copied")))
        for name, found in texts.items()
    }


def main() -> None:
    splits = {split: load_goals(FOLDER / f"{split}.jsonl", split) for split in SPLITS}
    goals = [goal for found in splits.values() for goal in found]
    second = read_second()
    print(
        f"{len(goals)} goals ({', '.join(f'{name} {len(found)}' for name, found in splits.items())}), "
        f"{len({goal.metadata['form'] for goal in goals})} forms, {fmean(len(g.notes) for g in goals):.1f} notes each"
    )
    print("| text | BLEU | coverage | copied |\n| --- | ---: | ---: | ---: |")
    means = compare(goals)
    for name, text in means.items():
        print(f"| {name} | {text.bleu:.3f} | {text.coverage:.3f} | {text.copied:.3f} |")
    ratio = means["notes, pasted"].bleu / means["second text"].bleu
    half = sum(scored(g, pasted(g)).bleu <= scored(g, second[g.id]).bleu / 2 for g in goals)
    print(f"pasting the notes has {ratio:.2f} of the second text's BLEU; at most half in {half} of {len(goals)} goals")
    sys.exit(ratio > 0.5)


if __name__ == "__main__":
    main()
