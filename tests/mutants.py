"""Mutation testing: changes the code in one small place at a time and looks whether the tests notice.

mutmut makes the mutants: one operator, number, string, argument or branch changed inside a function. Each group of
files below is tried against the tests that are about it, in a folder of its own, where results are kept: a second run
tries again what was not noticed or has changed. What no test can notice is named in `equal_mutants.txt`.

    python tests/mutants.py                 # all groups; long
    python tests/mutants.py losses guards   # two of them, and the changes that no test noticed
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).parents[1]
EQUAL = Path(__file__).with_name("equal_mutants.txt")
FOLDER = Path(tempfile.gettempdir()) / "collab_mutants"

# Noticed; not ended in time, which may be an endless loop; named in EQUAL; noticed by nothing.
KINDS = ("killed", "hung", "equal", "left")


@dataclass(frozen=True)
class Files:
    """Files of a room, and the tests that are about them; `chosen`: which of those (pytest's -k), if not all."""

    room: str
    names: tuple[str, ...]
    tests: tuple[str, ...]
    chosen: str = ""

    @property
    def paths(self) -> list[Path]:
        return [Path(f"collab/{self.room}/{name}.py") for name in self.names]


GROUPS = {
    "losses": Files("modules", ("losses",), ("unit/test_losses",)),
    "algorithms": Files(
        "modules",
        ("sft", "dpo", "grpo", "ppo"),
        ("unit/test_algorithms", "integration/test_modules"),
        "not checkpoint and not taken_up and not schedule and not learning_rate and not logged",
    ),
    "simulation": Files(
        "simulation",
        ("multiturn", "conversation_loop", "sampler", "schedule"),
        ("unit/test_simulation", "integration/test_rollout", "integration/test_lost", "integration/test_context_full"),
        "not needs_neither and not run",
    ),
    "guards": Files("simulation", ("guards",), ("unit/test_guards",)),
    "rewards": Files(
        "rewards",
        ("reward", "metrics", "document"),
        ("unit/test_metrics", "unit/test_rewards", "unit/test_task_goals"),
        "test_metrics or (test_rewards and not cheap_response and not papers) or tested or asking_back",
    ),
    "judges": Files(
        "rewards",
        ("judge", "pairwise"),
        ("unit/test_judge", "unit/test_judge_questions", "unit/test_pairwise_judge", "integration/test_pairwise"),
        "not weights",
    ),
    "values": Files("parsing", ("plain_values",), ("unit/test_plain_values",)),
    "answers": Files(
        "parsing", ("answers",), ("unit/test_answers",), "not equals_itself and not any_text and not thousand"
    ),
    "extraction": Files("parsing", ("extraction",), ("unit/test_extraction",)),
}


def main(names: list[str]) -> None:
    equal, rows = _equal(), []
    for name in names or GROUPS:
        group = GROUPS[name]
        _prepare(FOLDER / name, group)
        os.chdir(FOLDER / name)  # where mutmut looks
        _forget_survivors(group)
        # CI=1: hypothesis draws the same examples each time.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
        subprocess.run(
            [Path(sys.executable).with_name("mutmut"), "run", "--max-children=1"], env=environment, check=True
        )
        rows += [_row(path, equal, show=bool(names)) for path in group.paths]
    print(f"| file | mutants | {' | '.join(KINDS)} |\n|---{'|---' * (1 + len(KINDS))}|")
    for row in [*rows, ("all", *map(sum, zip(*(row[1:] for row in rows), strict=True)))]:
        print("| " + " | ".join(map(str, row)) + " |")


def _prepare(folder: Path, group: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("collab", "conf", "benchmarks", "tests", "docs"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(ROOT / name)
    settings = {
        "source_paths": ["collab"],
        "only_mutate": [str(path) for path in group.paths],
        "also_copy": ["conf", "benchmarks", "docs"],
        "timeout_multiplier": 6.0,
        "pytest_add_cli_args": [
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "--hypothesis-profile=thorough",
            *(["-k", group.chosen] if group.chosen else []),
        ],
        "pytest_add_cli_args_test_selection": [f"tests/{name}.py" for name in group.tests],
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text("\n".join([project, "[tool.mutmut]", *lines, ""]), encoding="utf-8")


def _forget_survivors(group: Files) -> None:
    """There may be new tests: survivors are tried again, and which test runs which function is found out again."""
    Path("mutants/mutmut-stats.json").unlink(missing_ok=True)
    for path in group.paths:
        data = _data(path)
        data.exit_code_by_key = {mutant: code if code == 1 else None for mutant, code in data.exit_code_by_key.items()}
        if data.exit_code_by_key:
            data.save()


def _row(path: Path, equal: set[tuple[str, str]], show: bool) -> tuple[str | int, ...]:
    """The file, the number of mutants, and of each of `KINDS`."""
    counts = Counter[str]()
    for mutant, code in _data(path).exit_code_by_key.items():
        status = status_by_exit_code[code]
        if status == "killed":
            counts["killed"] += 1
            continue
        old, new = _changed(get_diff_for_mutant(mutant, path=path))
        if _is_equal(str(path), old, new, equal):
            counts["equal"] += 1
            continue
        counts["hung" if status == "timeout" else "left"] += 1
        if show:
            print(f"\n{mutant}: {status}\n  - {old}\n  + {new}")
    return (str(path), counts.total(), *(counts[kind] for kind in KINDS))


def _data(path: Path) -> SourceFileMutationData:
    data = SourceFileMutationData(path=path)
    data.load()
    return data


def _changed(diff: str) -> tuple[str, str]:
    """What a mutant takes away and what it puts there, each in one line."""
    lines = [line for line in diff.splitlines() if not line.startswith(("+++", "---"))]
    old, new = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return " ".join(old), " ".join(new)


_STRICT = re.compile(r", strict=\w+|, (?=\))")  # of `zip`: that lengths are equal is our own invariant


def _is_equal(path: str, old: str, new: str, equal: set[tuple[str, str]]) -> bool:
    return (path, new or f"without: {old}") in equal or _STRICT.sub("", old) == _STRICT.sub("", new)


def _equal() -> set[tuple[str, str]]:
    """(file, changed line) of each mutant in `equal_mutants.txt`."""
    found, path = set(), ""
    for line in EQUAL.read_text(encoding="utf-8").splitlines():
        if line.startswith("collab/"):
            path = line
        elif line.startswith("    "):
            found.add((path, line.strip().rpartition("  # ")[0]))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
