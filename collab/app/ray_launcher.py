"""`sweep=ray`: each job of a sweep is a task of a Ray cluster.

The plugin hydra-ray-launcher 1.2.2 wants a cloudpickle below 3, which other libraries here don't go with, and boto3. So
this is Hydra's basic launcher with `ray.remote` around each job. It is registered where Ray is installed.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from omegaconf import open_dict

from collab.util.errors import BadInput, first_line

_NAME = "hydra_plugins.collab.RayLauncher"  # Hydra makes plugins of `hydra_plugins` alone, by their names
_LOCAL = "local"

log = logging.getLogger(__name__)


@dataclass
class RayLauncherConfig:
    """`hydra.launcher` of `sweep=ray`; conf/sweep/ray.yaml says what the fields mean."""

    _target_: str = _NAME
    address: str = _LOCAL
    num_cpus: float = 1
    num_gpus: float = 0


@functools.cache
def register_launcher() -> None:
    """Tell Hydra of the launcher, once, if Ray is installed."""
    if find_spec("ray") is not None:
        Plugins.instance().class_name_to_class[_NAME] = RayLauncher
        ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConfig)


class RayLauncher(BasicLauncher):
    """Runs all jobs at once, as far as the cluster has the processors and GPUs, and waits for them.

    Args:
        address: Of a cluster; `auto`: the one that this machine is in; `local`: a Ray that ends with the sweep.
        num_cpus: Processors of a job.
        num_gpus: GPUs of a job. Ray hides the others from it.
    """

    def __init__(self, address: str, num_cpus: float, num_gpus: float) -> None:
        super().__init__()
        self.address, self.wanted = address, {"CPU": num_cpus, "GPU": num_gpus}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """As Hydra's launchers. A job whose worker dies is left out of the answer."""
        assert self.config is not None and self.hydra_context is not None and self.task_function is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        try:
            ray = self._connect()
        except BadInput as error:
            sys.exit(f"error: {error}")  # Hydra would print it with its trace
        # A job that is run again would find its folder in use.
        task = ray.remote(num_cpus=self.wanted["CPU"], num_gpus=self.wanted["GPU"], max_retries=0)(_run)
        jobs = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            log.info(f"\t#{number} : {' '.join(filter_overrides(list(overrides)))}")
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            jobs.append(task.remote(self.hydra_context, config, self.task_function, Singleton.get_state(), os.getcwd()))
        returns: list[JobReturn] = []
        try:
            for number, job in enumerate(jobs, initial_job_idx):
                try:
                    returns.append(ray.get(job))
                except ray.exceptions.RayError as error:
                    log.error(f"Job {number} has no result: {first_line(error)}")
        finally:
            ray.shutdown()
        return returns

    def _connect(self) -> Any:
        """Ray, connected to the cluster.

        Raises:
            BadInput: There is no cluster at the address, or this machine is too small for a job.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics over the internet
        import ray

        local = self.address == _LOCAL
        dashboard = False if local else None  # of a cluster that runs, there is nothing to choose
        try:
            ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=dashboard)
        except Exception as error:  # noqa: BLE001 - Ray raises a plain one where a process does not start in 30 s
            way_out = "Start one with `ray start --head`, name its address, or set hydra.launcher.address=local."
            way_out = "Try again when the machine has less to do, or take sweep=joblib." if local else way_out
            raise BadInput(
                f"hydra.launcher.address={self.address}: there is no Ray cluster ({first_line(error)}). {way_out}"
            ) from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= count for name, count in self.wanted.items()) for node in nodes):
            return ray
        there = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        text = f"a job wants {self.wanted['CPU']:g} CPUs and {self.wanted['GPU']:g} GPUs, and nodes have {there}"
        if self.address == _LOCAL:
            ray.shutdown()
            raise BadInput(
                f"sweep=ray: {text}. Set hydra.launcher.num_cpus and hydra.launcher.num_gpus to what a job needs; "
                "hydra.launcher.num_gpus=0 for one on CPUs."
            )
        log.warning(f"sweep=ray: {text}. The jobs wait until a node joins that is large enough.")
        return ray


def _run(context: Any, config: Any, task_function: Any, singletons: Any, folder: str) -> JobReturn:
    """A job, in a process of Ray on some node."""
    os.chdir(folder)  # paths on the command line are relative to it
    setup_globals()
    Singleton.set_state(singletons)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=context,
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
