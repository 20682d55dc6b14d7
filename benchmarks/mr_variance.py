"""Which parts of R* make MR differ within the groups of a training run, where the candidate is not the last reply.

    python benchmarks/mr_variance.py outputs/doc_edit/RUN

A candidate that asks is worth what its futures are worth. This prints the share of each part in the variance of MR
within a group, over all groups: the covariance of the weighted part with MR, over the variance of MR.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/mr_variance.py`

from collab.reports.run_data import read_run
from collab.util.errors import BadInput


def shares(
    records: Iterable[Mapping[str, Any]], weights: Mapping[str, float], last: int
) -> tuple[int, dict[str, float]]:
    """The number of groups, and part of R* -> its share of the variance of MR within groups.

    Args:
        records: Lines of `transcripts.jsonl`; those of training are read, if they have R*.
        weights: Metric -> its weight in R*.
        last: The turn of the last reply; groups of candidates there are left out.
    """
    groups: dict[tuple[Any, ...], dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for one in records:
        if one["phase"] == "train" and one["turn"] < last and one["reward"] is not None:
            parts = [weights[name] * (one["parts"].get(name) or 0.0) for name in weights]
            groups[one["step"], one["group"]][one["candidate"]].append([*parts, one["reward"]])
    covariance, variance = np.zeros(len(weights)), 0.0
    for group in groups.values():
        values = np.array([np.mean(futures, axis=0) for futures in group.values()])  # [candidates, parts and R*]
        values -= values.mean(axis=0)
        covariance += (values[:, :-1] * values[:, -1:]).mean(axis=0)
        variance += (values[:, -1] ** 2).mean()
    return len(groups), dict(zip(weights, (covariance / (variance or np.nan)).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a training run")
    try:
        run = read_run(parser.parse_args().run)
    except BadInput as error:
        sys.exit(f"error: {error}")
    task = run.config["task"]
    weights = {name: metric["weight"] for name, metric in task["metrics"].items() if metric["weight"]}
    records = [line for file in run.records for line in file]
    count, found = shares(records, weights, task["max_turns"])
    print(f"{count} groups of candidates before the last turn; share of the variance of MR within them:\n")
    print("| part of R* | share |\n|---|---:|")
    for name, share in sorted(found.items(), key=lambda one: -one[1]):
        print(f"| {name} | {share:.3f} |")


if __name__ == "__main__":
    main()
