"""Unusable replies of users and judges that are language models: `problems.json`, phase -> kind -> count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from collab.util.files import write_json


def add_problems(folder: Path, phase: str, counts: Mapping[str, int], rank: int = 0) -> str:
    """Add the counts of a phase to the file of the run; rank n > 0 has a file of its own.

    Returns:
        A line for the user; "" if there are no counts, and then nothing is written.
    """
    if not counts:
        return ""
    path = folder / (f"problems-rank{rank}.json" if rank else "problems.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**known, phase: dict(sorted(counts.items()))})
    shown = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
    return f"{phase}: unusable replies of users and judges: {shown or 'none'}"
