"""SLURM as far as submitit needs it, on this machine: sbatch runs jobs at once, srun starts tasks beside each other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
number = os.getpid()
asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.M))
nodes, tasks = int(asked["nodes"]), int(asked["ntasks-per-node"])
job = {{"SLURM_NTASKS_PER_NODE": tasks, "SLURM_NTASKS": nodes * tasks, "SLURM_JOB_NUM_NODES": nodes,
       "SLURM_NNODES": nodes, "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NODELIST": "127.0.0.1",
       "SLURM_JOB_NAME": "train"}}
for element in range(int(asked.get("array", "0-0").split("%")[0].split("-")[1]) + 1):
    job["SLURM_JOB_ID"] = number + element
    if "array" in asked:
        job |= {{"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": element}}
    env = {{**os.environ, **{{name: str(value) for name, value in job.items()}}}}
    subprocess.Popen(["bash", "-c", text], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job", number)
"""
SRUN = """#!{python}
import os, subprocess, sys
env = os.environ
place = sys.argv.index("-u") - 1  # of Python's
log = sys.argv[sys.argv.index("--output") + 1]
for name, value in (("%j", "JOB_ID"), ("%A", "ARRAY_JOB_ID"), ("%a", "ARRAY_TASK_ID")):
    log = log.replace(name, env.get("SLURM_" + value, ""))
each = int(env["SLURM_NTASKS_PER_NODE"])
started = []
for rank in range(int(env["SLURM_NTASKS"])):
    task = {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank % each, "SLURM_NODEID": rank // each, "SLURM_STEP_ID": 0}}
    file = open(log.replace("%t", str(rank)), "a")
    task = {{**env, **{{name: str(value) for name, value in task.items()}}}}
    started.append(subprocess.Popen(sys.argv[place:], env=task, stdout=file, stderr=file))
sys.exit(max(process.wait() for process in started))
"""


def install(folder: Path) -> str:
    """Put sbatch and srun into `folder`; the PATH by which they are found."""
    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
