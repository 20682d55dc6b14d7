"""Which of the run's processes this one is."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number among all processes of the run, asked of its launcher in the order that Lightning has."""
    for variable in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if variable in os.environ:
            return int(os.environ[variable])
    return 0
