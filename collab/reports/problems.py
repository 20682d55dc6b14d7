"""What users and judges that are language models got wrong in a run: `problems.json`, phase -> kind -> count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from collab.util.files import write_json


def add_problems(folder: Path | str, phase: str, counts: Mapping[str, int], rank: int = 0) -> str:
    """Put the counts of a phase into the run's file, beside those of other phases; rank n > 0 has a file of its own.

    Returns:
        A line that tells them; "" where nobody counted anything, and then nothing is written.
    """
    if not counts:
        return ""
    path = Path(folder) / (f"problems-rank{rank}.json" if rank else "problems.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**known, phase: dict(sorted(counts.items()))})
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
    return f"{phase}: replies of users and judges that could not be taken: {told or 'none'}"
