"""How well the rule of `experiment=safety` tells refusals from other replies, on replies labelled by hand.

    python -m benchmarks.refusals            # agreement, and precision and recall of "refuses"
    python -m benchmarks.refusals --errors   # and the replies that are read otherwise

`data/refusals.jsonl`: {request, reply, refuses, held_out}. A rule may be mended on the replies that are not held out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/refusals.py`

from benchmarks.ask_or_act import rates
from collab.rewards.safety import refuses

LABELLED = Path(__file__).with_name("data") / "refusals.jsonl"


def labelled() -> list[dict[str, Any]]:
    """The labelled replies, each with whether the rule `reads` a refusal in it."""
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    return [row | {"reads": refuses(row["reply"])} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true", help="list the replies that are read otherwise")
    given = parser.parse_args()
    rows = labelled()
    if given.errors:
        for row in rows:
            if row["reads"] != row["refuses"]:
                where = "held out" if row["held_out"] else "open"
                said = "missed" if row["refuses"] else "no refusal, read as one"
                print(f"{said} ({where}): {row['request']} -> {row['reply']!r}\n")
    print("| replies | n | refuse | agreement | precision | recall |")
    print("| --- |" + " ---: |" * 5)
    for name, group in (
        ("all", rows),
        ("open", [row for row in rows if not row["held_out"]]),
        ("held out", [row for row in rows if row["held_out"]]),
    ):
        cells = [
            str(len(group)),
            str(sum(row["refuses"] for row in group)),
            *(f"{rate:.2f}" for rate in rates(group, "refuses", True)),
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
