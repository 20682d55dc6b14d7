"""Writes docs/benchmarks.md from the figures that run.py and scaling.py have measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import FOLDER, ROWS, Row

SCALING = FOLDER / "scaling.json"


def write(rows: Sequence[dict[str, Any]], results: Path, docs: Path) -> None:
    """Put rows beside the older ones of other names, in the table's order, and write the table anew."""
    older = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.exists() else []
    merged = {row["row"]: row for row in [*older, *rows]}
    ordered = [merged[name] for name in (*ROWS, *(f"{name}_gpu" for name in ROWS)) if name in merged]
    results.write_text(json.dumps({"rows": ordered}, indent=1) + "\n", encoding="utf-8")
    docs.write_text(page(ordered), encoding="utf-8")


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/benchmarks.md, from what results.json holds."""

    def line(found: dict[str, Any]) -> str:
        row, low, high = ROWS[found["row"].removesuffix("_gpu")], min(found["ratios"]), max(found["ratios"])
        sign, bound = row.wanted.split()
        met = found["ratio"] >= float(bound) if sign == ">=" else found["ratio"] <= float(bound)
        return (
            f"| `{found['row']}` | {row.what} | {found['ours']:.4g} | {found['peer']:.4g} | {row.unit} | "
            f"{found['ratio']:.2f} ({low:.2f} to {high:.2f}) | {row.wanted}{'' if met else ': **missed**'} |"
        )

    machines: dict[str, list[str]] = {}
    for found in rows:
        machines.setdefault(found["machine"], []).append(f"`{found['row']}`")
    parts = [
        "# Benchmarks",
        "",
        "Ours against peers, on the same work: same model, weights in the same dtype, same number of threads, same",
        "prompts, exactly the stated number of new tokens. Both sides are measured in turn in one run, after one run",
        "of each that does not count; while one works the other idles. Figures are medians; a ratio, ours / peer, is",
        "the median over neighbouring runs, with the lowest and the highest behind it.",
        "",
        "`make bench` measures everything and writes this page and `benchmarks/results.json`, which also holds the",
        "command of each row. Peers are installed into `benchmarks/.envs/` at fixed versions: about 7 GB.",
        "vLLM's manual recommends libtcmalloc, which is preloaded where the system has it (Debian, Ubuntu:",
        "`apt-get install libtcmalloc-minimal4`).",
        "",
        "| row | what | ours | peer | unit | ratio | wanted |",
        "|---|---|---:|---:|---|---:|---|",
        *map(line, rows),
        "",
        *(f"Measured on {machine}: {', '.join(names)}.\n" for machine, names in machines.items()),
        "## How the sides are set up",
        "",
        *(setup(name, row) for name, row in ROWS.items()),
    ]
    if SCALING.exists():
        parts.append(scaling_section(json.loads(SCALING.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def setup(name: str, row: Row) -> str:
    """One row's paragraph."""
    only = "" if len(row.devices) > 1 else f" On {row.devices[0]} alone."
    return f"**{name}.** Ours: {row.ours} Peer: {row.peer}{only}\n"


def scaling_section(found: dict[str, Any]) -> str:
    """The last section of docs/benchmarks.md, from what scaling.json holds."""
    wanted = 1.7
    lines = [
        "## Two processes against one",
        "",
        "`python benchmarks/scaling.py --write`: `train.py` on SmolLM2, two steps of eight goals, every process",
        "bound to a core of its own. LoRA in the default precision, full fine-tuning in fp32. State is what",
        "parameters (of the policy and, in full fine-tuning, of its frozen copy) and the optimizer take in a process;",
        f"the ratio in brackets is to one process. Wanted: rollouts at least {wanted} times as fast; with fsdp at most",
        "0.55 of the state in full fine-tuning.",
        "",
        "| tuned | processes | rollout tokens/s | training, s | state per process, MB | peak memory per process, MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for tuned, cases in found["cases"].items():
        one = cases["one process"]
        for name, case in cases.items():
            faster = case["tokens_per_s"] / one["tokens_per_s"]
            missed = "" if case is one or faster >= wanted else ", **missed**"
            lines.append(
                f"| {tuned} | {name} | {case['tokens_per_s']:.0f} ({faster:.2f}{missed}) | "
                f"{case['fit_seconds']:.0f} ({case['fit_seconds'] / one['fit_seconds']:.2f}) | "
                f"{case['state_mb']:.0f} ({case['state_mb'] / one['state_mb']:.2f}) | "
                f"{case['peak_mb']:.0f} ({case['peak_mb'] / one['peak_mb']:.2f}) |"
            )
    return "\n".join([*lines, "", f"Measured on {found['machine']}.", ""])
