"""FSDP2: parameters, gradients and optimizer state in shards, one on each process (`strategy=fsdp`).

The update gathers one decoder layer at a time (`fully_shard` per layer). A rollout gathers all layers once, decodes
without communication, so that processes may decode different lengths, and frees them again (`gathered`).

Checkpoints hold the trained parameters, under the names and ids of a run with one process. A checkpoint is one file or,
with `strategy.sharded_checkpoints`, a folder into which each process writes its shards. Both can be read by any number
of processes, with or without sharding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from collab.lm.inner import inner_of
from collab.modules.packing import idle_batch
from collab.modules.policy import Policy

REST = "rest.pt"  # in a sharded checkpoint: everything but the shards; written last


@dataclass(frozen=True)
class Sharding:
    """How a policy is sharded.

    Attributes:
        empty: Makes the causal LM on the meta device, without memory for weights.
        compute_dtype: Dtype of gathered weights if all are trained (in fp32); None keeps each weight's dtype.
    """

    empty: Callable[[], Any]
    compute_dtype: torch.dtype | None = None


def shard(policy: Policy, sharding: Sharding, device: torch.device) -> None:
    """Shard a policy in place; every process gets its part of the first one's weights.

    Args:
        policy: Has weights on the first process; on the others it may be on the meta device.
        sharding: How to shard it.
        device: Device of the shards.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),), mesh_dim_names=("shard",))
    whole = {name: tensor.detach() for name, tensor in _tensors(policy)} if mesh.get_rank() == 0 else {}
    mixed = MixedPrecisionPolicy(sharding.compute_dtype, torch.float32 if sharding.compute_dtype else None)
    for layer in _layers(policy):
        fully_shard(layer, mesh=mesh, mp_policy=mixed)
    if policy.value_head is not None:  # its dtype, fp32, may differ from that of the other weights
        fully_shard(policy.value_head, mesh=mesh)
    fully_shard(policy, mesh=mesh, mp_policy=mixed)
    for module in _sharded(policy):
        # Losses are already divided by the units of all processes, so gradients are summed.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    if mesh.get_rank() > 0:
        policy.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in _tensors(policy):
            full = whole.pop(name).to(device) if whole else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, DTensor):
                tensor.to_local().copy_(distribute_tensor(full, tensor.device_mesh, tensor.placements).to_local())
            else:  # a buffer
                torch.distributed.broadcast(full, 0)
                tensor.data = full


@contextlib.contextmanager
def gathered(policy: Policy) -> Iterator[bool]:
    """In this context, every process holds all weights of the policy and can run any part of it without the others.

    All processes must enter. A policy that is not sharded stays as it is.

    Yields:
        Whether the policy is sharded; if so, anything made from the gathered weights must be dropped afterwards.
    """
    if not isinstance(policy, FSDPModule):
        yield False
        return
    # FSDP takes the first module that runs for the root, so the policy must run once.
    device = next(policy.parameters()).device
    with torch.no_grad():
        policy(idle_batch().to(device))
    layers = _sharded(policy.lm)  # a rollout does not use the frozen copy
    for module in layers:
        module.set_reshard_after_forward(False, recurse=False)
    for module in (policy, *layers):
        module.unshard()
    try:
        yield True
    finally:
        for module in layers:
            module.set_reshard_after_forward(True, recurse=False)
        for module in (policy, *layers):
            module.reshard()


def whole_state(module: nn.Module, only_trained: bool = False) -> dict[str, torch.Tensor]:
    """The full state dict of a sharded module, on the CPU of the first process; empty on the others.

    All processes must call it. A parameter that two layers share is in it once.
    """
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad or not only_trained}
    if not only_trained:
        names |= {name for name, _ in module.named_buffers()}
    whole = ((name, _whole(tensor)) for name, tensor in module.state_dict().items() if name in names)
    return {name: tensor for name, tensor in whole if tensor is not None}


def is_spread(policy: nn.Module) -> bool:
    """Whether a policy is sharded."""
    return isinstance(policy, FSDPModule)


def _layers(policy: Policy) -> list[nn.Module]:
    """Decoder layers of the policy and of its frozen copy: the modules that transformers does not split."""
    found = []
    for lm in (policy.lm, policy.reference):
        if lm is not None:
            kinds = set(inner_of(lm)._no_split_modules or ())
            found += [module for module in lm.modules() if type(module).__name__ in kinds]
    return found


def _sharded(policy: nn.Module) -> list[FSDPModule]:
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _whole(value: torch.Tensor) -> torch.Tensor | None:
    """The full tensor, on the CPU of the first process; None on the others."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if torch.distributed.get_rank() == 0 else None


# --- checkpoints -----------------------------------------------------------------------------------------------------


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with checkpoints of trained parameters that fit any number of processes.

    Args:
        processes: Number of processes of the run.
        sharded_checkpoints: Write a folder of shards instead of one file.
        timeout: Maximum time that a process waits for the others.
    """

    def __init__(self, processes: int, sharded_checkpoints: bool, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            timeout=timeout,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        module: Any = self.lightning_module
        if self._save_distributed_checkpoint:
            return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        return whole_state(module, only_trained=True)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state = optimizer.state_dict()
        if self._save_distributed_checkpoint:
            return state
        whole = {
            index: {key: _whole(value) if isinstance(value, torch.Tensor) else value for key, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": whole}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            _write_shards(checkpoint, path, self.is_global_zero)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return self.checkpoint_io.load_checkpoint(path)
        assert self.lightning_module is not None
        module = self.lightning_module
        owners: dict[str, torch.Tensor] = {f"state_dict.{name}": p for name, p in module.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            for index, parameter in enumerate(_trained(optimizer)):
                owners[f"optimizer.{number}.{index}"] = parameter
        return _read_shards(path, owners)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        values = checkpoint["state_dict"]
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in values:
                    parameter.copy_(_like(values[name], parameter))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = _trained(optimizer)
            own: dict[int, Any] = {
                index: {key: _like(value, parameters[index]) for key, value in values.items()}
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": own})


class CheckpointFiles(TorchCheckpointIO):
    """Reads both forms of checkpoints for a strategy without shards; maps files into memory."""

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        if Path(path).is_dir():
            return _read_shards(Path(path), {})
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return found


def _write_shards(checkpoint: dict[str, Any], folder: Path, first: bool) -> None:
    states = checkpoint.pop("optimizer_states", [])
    shards = {"state_dict": checkpoint.pop("state_dict")}
    for number, state in enumerate(states):
        shards |= {f"optimizer.{number}.{index}": values for index, values in state["state"].items()}
    dcp.save(shards, checkpoint_id=folder)
    if first:
        torch.save({**checkpoint, "param_groups": [state["param_groups"] for state in states]}, folder / REST)


def _read_shards(folder: Path, owners: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint of `_write_shards` in Lightning's form.

    Args:
        folder: The checkpoint.
        owners: Name of an entry, or its part before the last dot -> its parameter, whose sharding the entry gets. If
            empty, this process reads everything, without the others.
    """
    reader = dcp.FileSystemReader(folder)
    entries: dict[str, Any] = {}
    listed: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    for name, meta in listed.items():
        owner: Any = owners.get(name, owners.get(name.rpartition(".")[0]))
        cut = isinstance(owner, DTensor) and owner.shape == meta.size
        dtype = meta.properties.dtype
        entries[name] = torch.empty_like(owner, dtype=dtype) if cut else torch.empty(meta.size, dtype=dtype)
    dcp.load(entries, storage_reader=reader, no_dist=not owners)
    checkpoint: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    states: list[Any] = [{"state": {}, "param_groups": groups} for groups in checkpoint.pop("param_groups")]
    weights = {}
    for name, value in entries.items():
        kind, _, rest = name.partition(".")
        if kind == "state_dict":
            weights[rest] = value
        else:
            number, index, key = rest.split(".")
            states[int(number)]["state"].setdefault(int(index), {})[key] = value
    return {**checkpoint, "state_dict": weights, "optimizer_states": states}


def _trained(optimizer: Any) -> list[torch.Tensor]:
    """The optimizer's parameters, indexed by their ids in its state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """A full tensor, the same on all processes, sharded like its parameter; anything else is returned as it is."""
    whole = isinstance(value, torch.Tensor) and not isinstance(value, DTensor)
    if isinstance(parameter, DTensor) and whole and value.shape == parameter.shape:
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
