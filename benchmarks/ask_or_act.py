"""How well the rule of `experiment=ask_or_act` tells first replies that ask from others, on replies labelled by hand.

    python benchmarks/ask_or_act.py            # agreement, and precision and recall of "asks", per policy
    python benchmarks/ask_or_act.py --errors   # and the replies that are read otherwise

`data/ask_or_act.jsonl`: {policy, pair, vague, request, reply, label, held_out}. The label is asks, acts or neither. The
rule was made on the replies that are not held out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/ask_or_act.py`

from collab.rewards.asking import decision

LABELLED = Path(__file__).with_name("data") / "ask_or_act.jsonl"


def labelled() -> list[dict[str, Any]]:
    """The labelled replies, each with what the rule `reads` in it."""
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    return [row | {"reads": decision(row["reply"], row["request"])} for row in rows]


def rates(rows: list[dict[str, Any]], label: str = "label", found: Any = "asks") -> tuple[float, float, float]:
    """Share on which rule and label agree, precision and recall of one label; nan of nothing.

    Args:
        rows: Each has what the rule `reads`.
        label: The field that has the label.
        found: The label.
    """
    both = sum(row["reads"] == row[label] == found for row in rows)
    counts = [sum(row[by] == found for row in rows) for by in ("reads", label)]
    agree = sum(row["reads"] == row[label] for row in rows)
    agreement, precision, recall = (
        part / whole if whole else float("nan")
        for part, whole in ((agree, len(rows)), *((both, count) for count in counts))
    )
    return agreement, precision, recall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true", help="list the replies that are read otherwise")
    given = parser.parse_args()
    rows = labelled()
    if given.errors:
        for row in rows:
            if row["reads"] != row["label"]:
                print(
                    f"{row['label']}, read as {row['reads']}: {row['policy']}: {row['request']} -> {row['reply']!r}\n"
                )
    print("| replies | n | asks | acts | neither | agreement | precision | recall |")
    print("| --- |" + " ---: |" * 7)
    groups = {"all": rows, "held out": [row for row in rows if row["held_out"]]}
    groups |= {name: [row for row in rows if row["policy"] == name] for name in sorted({r["policy"] for r in rows})}
    for name, group in groups.items():
        counts = [sum(row["label"] == label for row in group) for label in ("asks", "acts", "neither")]
        cells = [str(len(group)), *map(str, counts), *(f"{rate:.2f}" for rate in rates(group))]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
