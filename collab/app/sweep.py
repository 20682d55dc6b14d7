"""Sweeps (`-m`): each job is a process of its own, run by the command that one would type for it alone.

So no seeds, thread counts or open loggers of earlier jobs are left over, a job that crashes or is killed does not take
others with it, and Lightning may start the other ranks of a job by repeating its command.

Hydra's launchers decide where: the basic one runs the jobs here, one after the other; joblib several at once; submitit
as jobs of SLURM. All but the basic one call a job in another process, which has only what is pickled with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from collab.app.compose import quoted
from collab.app.resume import RESULTS, STATE
from collab.util.files import write_json
from collab.util.processes import rank

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
RECORD = "job.json"  # in a job's folder: how it ended, for the process that began the sweep
OUTPUT = "output.log"  # same: what it printed, where other jobs print at the same time


@dataclass(frozen=True)
class Job:
    """One finished job of a sweep; `code` is its exit status, negative for the signal that ended it."""

    overrides: list[str]
    folder: Path
    code: int


@dataclass
class Sweep:
    """What a job has to know of the command that began the sweep. It is pickled for launchers of other processes.

    Attributes:
        command: What comes before the overrides: interpreter, program and Hydra's flags.
        folder: Of the sweep; those of the jobs are in it.
        num_jobs: 0 where only the sweeper knows.
        id: Tells the jobs of this sweep from those of an earlier one in the same folder.
        jobs: Those that finished in this process.
    """

    command: list[str]
    folder: Path
    num_jobs: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    jobs: list[Job] = field(default_factory=list)

    def run(self) -> None:
        """Run the job that Hydra is at, in the folder that Hydra gave it, and record how it ended."""
        job = HydraConfig.get()
        folder, overrides, code = Path(job.runtime.output_dir), list(job.overrides.task), 0
        here = job.launcher._target_ == BASIC
        requeued = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0 and (folder / STATE).is_file()
        if not (requeued and (folder / RESULTS).is_file()):
            ours = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/sweeper", "hydra/launcher")
            passed = [text for text in job.overrides.hydra if not text.lstrip("+~").startswith(ours)]
            places = [f"{key}={quoted(str(folder))}" for key in ("output_dir", *(("resume",) if requeued else ()))]
            command = [*self.command, *overrides, *passed, *places]
            env = {**os.environ, **(_own_port(job.job.num) if here else {})}
            with contextlib.nullcontext() if here else _log(folder).open("ab") as file:
                code = subprocess.run(command, env=env, stdout=file, stderr=file).returncode
        if here:
            self.jobs.append(Job(overrides, folder, code))
        elif rank() == 0:
            record = {"sweep": self.id, "job": job.job.num, "overrides": overrides, "code": code}
            write_json(folder / RECORD, record)
        elif code:
            os._exit(abs(code))  # without any cleanup: the launcher must see it at once, and end the other processes

    def finished(self) -> list[Job]:
        """The jobs that are known to have ended, wherever they ran."""
        read = [(json.loads(file.read_bytes()), file.parent) for file in self.folder.rglob(RECORD)]
        ours = sorted((record["job"], record, folder) for record, folder in read if record["sweep"] == self.id)
        return self.jobs or [Job(record["overrides"], folder, record["code"]) for _, record, folder in ours]

    def went_well(self) -> bool:
        """Whether all jobs finished without an error."""
        jobs = self.finished()
        return len(jobs) >= self.num_jobs and all(job.code == 0 for job in jobs)


def _log(folder: Path) -> Path:
    return folder / (OUTPUT if rank() == 0 else OUTPUT.replace(".", f"-rank{rank()}."))


def _own_port(job: int) -> dict[str, str]:
    """Variables by which the processes of job number `job` find each other, not those of the job before it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's store keeps what earlier jobs wrote for their process group, so each job opens one of its own.
        port = int(os.environ["MASTER_PORT"]) + 1 + job
        return {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        port = int(os.environ.get("MASTER_PORT", 15000 + int(os.environ["SLURM_JOB_ID"][-4:])))  # Lightning's choice
        return {"MASTER_PORT": str(port + 1 + job)}
    return {}


def summary(sweep: Sweep) -> str:
    """One line for each finished job of a sweep: its overrides, how it ended, its folder, or its log if it failed."""
    jobs = sweep.finished()
    failed = sum(job.code != 0 for job in jobs)
    total = max(len(jobs), sweep.num_jobs)
    missing = f", {total - len(jobs)} without a result" if total > len(jobs) else ""
    rows = []
    for job in jobs:
        log = job.folder / OUTPUT
        status = f"by signal {-job.code}" if job.code < 0 else f"with exit status {job.code}"
        ending = f"FAILED {status}" if job.code else "finished"
        rows.append(
            (" ".join(job.overrides), ending, os.path.relpath(log if job.code and log.is_file() else job.folder))
        )
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return "\n".join(
        [
            f"Sweep: {len(jobs) - failed} of {total} jobs finished, {failed} failed{missing}.",
            *(f"  {typed:<{widths[0]}}  {ending:<{widths[1]}}  {place}" for typed, ending, place in rows),
        ]
    )
