"""The processes of a run: this one's rank, their number, and how they end."""

from __future__ import annotations

import os
import sys
from typing import Any

from collab.util.errors import BadInput


def rank() -> int:
    """This process's number among all processes of the run, from the launcher's variables in Lightning's order."""
    for variable in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if variable in os.environ:
            return int(os.environ[variable])
    return 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def layout(devices: Any, nodes: int, available: int) -> tuple[Any, int]:
    """Devices per machine and number of machines of a run; those that torchrun or SLURM has started come first.

    Args:
        devices: `trainer.devices`: "auto", a number, or a list of indices.
        nodes: `trainer.num_nodes`.
        available: Number of devices for "auto" without a launcher.

    Raises:
        BadInput: The config contradicts the launcher, or asks for several machines without one.
    """
    launched = started()
    if launched is None:
        if nodes > 1:
            raise BadInput(
                f"trainer.num_nodes ({nodes}) asks for several machines, and this process was started alone. Start it "
                f"on each by torchrun --nnodes={nodes} or by srun, and leave trainer.num_nodes out."
            )
        return (available if devices == "auto" else devices), nodes
    launcher, on_each, machines = launched
    wanted = len(devices) if isinstance(devices, list) else devices
    if wanted not in ("auto", on_each) or nodes not in (1, machines):
        raise BadInput(
            f"trainer.devices ({devices}) and trainer.num_nodes ({nodes}) contradict {launcher}, which has "
            f"started {on_each} processes on each of {machines} machines. Leave both out: {launcher} sets them."
        )
    return (on_each if devices == "auto" else devices), machines


def started() -> tuple[str, int, int] | None:
    """The launcher of this process, processes per machine, and number of machines; None without a launcher."""
    get = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(get("LOCAL_WORLD_SIZE", 1))
        return "torchrun", local, int(get("WORLD_SIZE", 1)) // local
    # As in Lightning, a shell inside an allocation is no launcher.
    if "SLURM_NTASKS" in os.environ and get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        machines = int(get("SLURM_NNODES", 1))
        return "SLURM", int(os.environ["SLURM_NTASKS"]) // machines, machines
    return None


def leave_together() -> None:
    """End a run without errors: a process that leaves before all are done would break the others' connections."""
    if connected():
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()


def connected() -> bool:
    """Whether the processes of the run are connected."""
    if "torch" not in sys.modules:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()
