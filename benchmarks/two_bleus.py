"""BLEU of the showcase both ways, over words and over characters, as docs/method/official.md has it.

    python -m benchmarks.two_bleus

Prints a table from docs/results/showcase.json, which `make showcase` writes.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.steps import ROOT

SHOWCASE = ROOT / "docs/results/showcase.json"
BLEUS = {"bleu": "BLEU over words", "official_bleu": "BLEU over characters, as in the official code"}


def table() -> str:
    """The table in Markdown: mean over the test goals and its 95 % bootstrap interval, in hundredths."""
    found = json.loads(SHOWCASE.read_text(encoding="utf-8"))
    first = next(iter(found.values()))
    rows = {name: first[name] for name in ("base", "proactive")}
    rows |= {f"trained, seed {seed}": policies["trained"] for seed, policies in found.items()}
    lines = [f"| policy | {' | '.join(BLEUS.values())} |", "|---|---:|---:|"]
    lines += [f"| {name} | {' | '.join(cell(metrics[bleu]) for bleu in BLEUS)} |" for name, metrics in rows.items()]
    return "\n".join(lines)


def cell(metric: dict[str, Any]) -> str:
    low, high = metric["ci95"]
    return f"{100 * metric['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    print(table())
