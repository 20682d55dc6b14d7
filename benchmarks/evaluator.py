"""Does the pairwise judge agree with verdicts made by hand?

    python benchmarks/evaluator.py --model FOLDER_OR_ID     # a judge with local weights

`data/verdicts.jsonl`: {goal, first, second, asking, text}: two conversations about a goal, and for each question
whether the first, the second or neither is better. Prints for each question the share of equal verdicts, Cohen's kappa,
how often both pick the same side, and how often the judge calls a tie.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/evaluator.py`

from collab.datamodules.goals import SPLITS, load_goals

VERDICTS = Path(__file__).with_name("data") / "verdicts.jsonl"
_SIDES = {"first": 1.0, "tie": 0.5, "second": 0.0}


def kappa(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Cohen's kappa: agreement beyond what the two shares of each verdict give by chance."""
    n = len(ours)
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True)) / n
    a, b = Counter(ours), Counter(theirs)
    chance = sum(a[value] * b[value] for value in a) / n**2
    return (equal - chance) / (1 - chance) if chance < 1 else 1.0


def agreement(ours: Sequence[float | None], theirs: Sequence[float]) -> dict[str, float]:
    """Of pairs that the judge has a verdict of."""
    known = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    decided = [(a, b) for a, b in known if a != 0.5 and b != 0.5]
    return {
        "pairs": len(known),
        "equal": sum(a == b for a, b in known) / len(known),
        "kappa": kappa([a for a, _ in known], [b for _, b in known]),
        "same side where both decide": sum(a == b for a, b in decided) / len(decided) if decided else float("nan"),
        "ties of the judge": sum(a == 0.5 for a, _ in known) / len(known),
        "ties by hand": sum(b == 0.5 for _, b in known) / len(known),
    }


async def judged(judge: Any, rows: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    """The judge's verdicts by question."""
    from collab.rewards.pairwise import QUESTIONS, Chat

    folder = Path(__file__).resolve().parent.parent / "collab" / "datamodules" / "data" / "doc_edit"
    goals = {goal.id: goal for split in SPLITS for goal in load_goals(folder / f"{split}.jsonl", split)}
    found: dict[str, list[float | None]] = {question: [] for question in QUESTIONS}
    for row in rows:
        first, second = (Chat(tuple((m["role"], m["content"]) for m in row[side])) for side in ("first", "second"))
        for question in QUESTIONS:
            found[question].append(await judge.compare(goals[row["goal"]], first, second, question))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face id or folder of the judge")
    given = parser.parse_args()
    rows = [json.loads(line) for line in VERDICTS.read_text(encoding="utf-8").splitlines()]

    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress

    overrides = ["experiment=doc_edit", "evaluator=local", f"evaluator.endpoint.model={given.model}"]
    config = load_config("evaluate", overrides)
    build.start(config)
    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        ours = asyncio.run(judged(build.evaluator(config, endpoints), rows))
    theirs = {question: [_SIDES[row[question]] for row in rows] for question in ours}
    tables = {question: agreement(ours[question], theirs[question]) for question in ours}
    print("| | " + " | ".join(tables) + " |\n| --- |" + " ---: |" * len(tables))
    for name in next(iter(tables.values())):
        print(f"| {name} | " + " | ".join(f"{table[name]:.2f}" for table in tables.values()) + " |")


if __name__ == "__main__":
    main()
