"""Sweeps (`-m`): each job is a process of its own.

A job runs with the command that one would type for it alone. So job k is the same run whether or not others came before
it (no seeds, thread counts or open loggers are left over), a job that crashes or is killed takes nobody with it, and
Lightning may start the other ranks of a job by repeating its command.

Hydra's launchers decide where: the basic one here, one after the other; joblib here, several at once; submitit as jobs
of SLURM. All but the first call the job in another process, which knows nothing of this one but what it is given.
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
    """What a job has to know of the command that began the sweep; it travels to wherever a launcher runs the job.

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
        """Run the job that Hydra is at, in the folder that it was given, and leave word of how it ended."""
        about = HydraConfig.get()
        folder, overrides, code = Path(about.runtime.output_dir), list(about.overrides.task), 0
        here = about.launcher._target_ == BASIC
        # SLURM took the job off, and has put it back.
        back = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0 and (folder / STATE).is_file()
        if not (back and (folder / RESULTS).is_file()):
            ours = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/sweeper", "hydra/launcher")
            passed = [text for text in about.overrides.hydra if not text.lstrip("+~").startswith(ours)]
            places = [f"{key}={quoted(str(folder))}" for key in ("output_dir", *(("resume",) if back else ()))]
            command = [*self.command, *overrides, *passed, *places]
            env = {**os.environ, **(_own_port(about.job.num) if here else {})}
            with contextlib.nullcontext() if here else _log(folder).open("ab") as file:
                code = subprocess.run(command, env=env, stdout=file, stderr=file).returncode
        if here:
            self.jobs.append(Job(overrides, folder, code))
        elif rank() == 0:
            told = {"sweep": self.id, "job": about.job.num, "overrides": overrides, "code": code}
            write_json(folder / RECORD, told)
        if code and not here and rank() > 0:
            os._exit(abs(code))  # past all that would go on: the launcher has to see it, and end the other processes

    def finished(self) -> list[Job]:
        """The jobs of which it is known how they ended, wherever they ran."""
        told = [(json.loads(file.read_bytes()), file.parent) for file in self.folder.rglob(RECORD)]
        ours = sorted((found["job"], found, folder) for found, folder in told if found["sweep"] == self.id)
        return self.jobs or [Job(found["overrides"], folder, found["code"]) for _, found, folder in ours]

    def went_well(self) -> bool:
        """Whether all jobs finished."""
        jobs = self.finished()
        return len(jobs) >= self.num_jobs and all(job.code == 0 for job in jobs)


def _log(folder: Path) -> Path:
    return folder / (OUTPUT if rank() == 0 else OUTPUT.replace(".", f"-rank{rank()}."))


def _own_port(job: int) -> dict[str, str]:
    """Variables by which the processes of job `job` find each other, and not those of the job before it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's store keeps what earlier jobs wrote for their process group: each job opens one on its own port.
        port = int(os.environ["MASTER_PORT"]) + 1 + job
        return {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        port = int(os.environ.get("MASTER_PORT", 15000 + int(os.environ["SLURM_JOB_ID"][-4:])))  # as Lightning has it
        return {"MASTER_PORT": str(port + 1 + job)}
    return {}


def summary(sweep: Sweep) -> str:
    """One line for each finished job of a sweep: its overrides, how it ended, its folder or log."""
    jobs = sweep.finished()
    failed = sum(job.code != 0 for job in jobs)
    total = max(len(jobs), sweep.num_jobs)
    lost = f", {total - len(jobs)} left no word" if total > len(jobs) else ""
    rows = [(" ".join(job.overrides), _ending(job), os.path.relpath(_to_read(job))) for job in jobs]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return "\n".join(
        [
            f"Sweep: {len(jobs) - failed} of {total} jobs finished, {failed} failed{lost}.",
            *(f"  {what:<{widths[0]}}  {ending:<{widths[1]}}  {where}" for what, ending, where in rows),
        ]
    )


def _to_read(job: Job) -> Path:
    log = job.folder / OUTPUT
    return log if job.code and log.is_file() else job.folder


def _ending(job: Job) -> str:
    if job.code < 0:
        return f"FAILED by signal {-job.code}"
    return f"FAILED with exit status {job.code}" if job.code else "finished"
