"""Strategies for several devices: a copy of the model on each (DDP), or a share of every tensor on each (FSDP).

DDP: arXiv:2006.15704. FSDP: arXiv:2304.11277, as PyTorch's FSDP2, which shards every parameter separately.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer

from d2v.nn.trunk import units


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2: each device keeps a share of weights, gradients, optimizer state and teacher; blocks are gathered for use.

    Checkpoints are whole, the same files as on one device, so a run can be resumed on any number of devices. Under FSDP
    Lightning numbers the optimizer's parameters over all parameters of the module, including frozen ones; here they are
    numbered as in the optimizer, like in all other strategies.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Start the process group."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of the optimizer on rank 0; nothing on the others."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        assert self.model is not None
        whole: Any = get_optimizer_state_dict(self.model, optimizer, options=_WHOLE)
        if self.global_rank != 0:
            return {}
        groups = self._names(optimizer)
        names = [name for group in groups for name in group]
        numbers = {name: i for i, name in enumerate(names)}
        return {
            "state": {numbers[name]: state for name, state in whole["state"].items()},
            "param_groups": [
                {**options, "params": [numbers[name] for name in group]}
                for options, group in zip(optimizer.param_groups, groups, strict=True)
            ],
        }

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load each rank's share of a whole checkpoint.

        Args:
            checkpoint_path: path of the file; that of rank 0 counts.
            weights_only: ignored, because files are always loaded weights only.
        """
        path = self.broadcast(checkpoint_path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        assert self.model is not None
        set_model_state_dict(self.model, checkpoint["state_dict"], options=_WHOLE)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            names = [name for group in self._names(optimizer) for name in group]
            named: Any = {
                "state": {names[number]: value for number, value in state["state"].items()},
                "param_groups": [
                    {**group, "params": [names[number] for number in group["params"]]}
                    for group in state["param_groups"]
                ],
            }
            set_optimizer_state_dict(self.model, optimizer, named, options=_WHOLE)
        return checkpoint

    def _names(self, optimizer: Optimizer) -> list[list[str]]:
        """Return the names of the parameters in every group of the optimizer."""
        assert self.model is not None
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def choose_strategy(name: str, several: bool) -> str | Strategy:
    """Return the strategy of a name: "auto" is DDP if there are several devices.

    Raises:
        ValueError: sharding over one device.
    """
    if name == "fsdp":
        if not several:
            raise ValueError("strategy=fsdp shards over several devices: set devices=NUMBER, or strategy=auto")
        return FullyShardedStrategy()
    if name == "ddp" or (name == "auto" and several):
        return DDPStrategy(gradient_as_bucket_view=True)
    return name


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather a sharded model within the block, so that all processes together can call parts of it."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the parameters of a model over the devices of ``mesh``, layer by layer; the rest forms one unit."""
    for unit in units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
