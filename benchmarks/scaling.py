"""One process against two, each with one core: time, speed of rollouts, memory of each process.

    python benchmarks/scaling.py            # prints; about 15 minutes on two cores that do nothing else
    python benchmarks/scaling.py --write    # also benchmarks/scaling.json and the section in docs/benchmarks.md

Every run is `train.py` as a user starts it, in processes that are bound to a core of their own; the model is SmolLM2.
Memory that is sharded is what parameters and the optimizer's state take in a process after the last update; the peak is
of all that the process ever held.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.page import SCALING, scaling_section, write
from benchmarks.rows import FOLDER
from benchmarks.steps import ROOT, commit

COMMON = (
    "experiment=doc_edit",
    "callbacks=quiet",
    "logger=csv",
    "threads=1",
    "trainer.accelerator=cpu",
    "trainer.goals_per_step=8",
    "trainer.max_steps=2",
    "trainer.val_every=2",
    "task.max_turns=2",
    "task.num_val=2",
    "task.num_test=2",
    "evaluation.num_conversations=1",
)
TUNED = {"LoRA": (), "full": ("model.lora.enabled=false", "precision=fp32")}
CASES = {  # name -> processes, overrides
    "one process": (1, ()),
    "two, ddp": (2, ("strategy=ddp",)),
    "two, fsdp": (2, ("strategy=fsdp",)),
}


def command(processes: int, overrides: Sequence[str]) -> str:
    """What a user would type."""
    start = "python" if processes == 1 else f"torchrun --standalone --nproc_per_node={processes}"
    return " ".join([start, "train.py", *COMMON, *overrides])


def run(processes: int, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train in `folder`, and what came of it."""
    # --standalone: a free port, so that two runs at once do not collide
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    start = [] if processes == 1 else torchrun
    script = str(Path(__file__).with_name("scaled_train.py"))
    places = [*COMMON, *overrides, f"output_dir={folder / 'run'}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MEASURED": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *start, script, *places], cwd=ROOT, env=env, check=True)
    with (folder / "run" / "csv" / "metrics.csv").open() as file:
        steps = [row for row in csv.DictReader(file) if row["train/rollout_seconds"]]
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    assert len(ranks) == processes, "every process leaves its figures"
    return {
        "processes": processes,
        "command": command(processes, overrides),
        "tokens_per_s": statistics.median(float(row["train/rollout_tokens_per_s"]) for row in steps),
        "fit_seconds": json.loads((folder / "run" / "run.json").read_text())["seconds"]["fit"],
        "state_mb": max(rank["state"] for rank in ranks) / 1e6,
        "peak_mb": max(rank["peak"] for rank in ranks) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the figures into scaling.json and docs/benchmarks.md")
    parser.add_argument("--tuned", choices=tuple(TUNED), nargs="+", default=list(TUNED), help="which to measure")
    args = parser.parse_args()
    import torch
    import transformers

    version = commit()
    cases: dict[str, Any] = json.loads(SCALING.read_text())["cases"] if args.write and SCALING.exists() else {}
    for tuned in args.tuned:
        cases[tuned] = {}
        for name, (processes, overrides) in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                cases[tuned][name] = run(processes, [*TUNED[tuned], *overrides], Path(folder))
            print(tuned, name, cases[tuned][name], flush=True)
    machine = f"{os.cpu_count()} CPU cores, torch {torch.__version__}, transformers {transformers.__version__}"
    found = {"cases": cases, "machine": f"{machine}{f', commit {version}' if version else ''}"}
    print(scaling_section(found))
    if args.write:
        SCALING.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write([], FOLDER / "results.json", ROOT / "docs" / "benchmarks.md")


if __name__ == "__main__":
    main()
