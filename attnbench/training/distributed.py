"""Several processes that train one network: who they are, what they share, and which images each of them sees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnbench.config import Recipe
from attnbench.data.base import SegmentationDataset
from attnbench.errors import UsageError

_PATIENCE = timedelta(hours=2)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Processes:
    """One of the processes that train together.

    Args:
        rank: its number, from 0.
        count: how many there are.
        device: where its tensors are.

    Example:
        >>> Processes(rank=1, count=4).slots(16)
        range(4, 8)
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def slots(self, batch_size: int) -> range:
        """Places of a batch of all processes that are this one's.

        Raises:
            UsageError: if the batch does not divide evenly.
        """
        if batch_size % self.count:
            raise UsageError(f"batch_size: expected a multiple of the {self.count} processes, got {batch_size}")
        size = batch_size // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def total(self, value: Tensor) -> Tensor:
        """Sum of `value` over all processes, where `value` is; exact for integers."""
        if self.count == 1:
            return value
        summed = value.detach().to(self.device, copy=True)
        dist.all_reduce(summed)
        return summed.to(value.device)

    def gathered(self, value: _T) -> list[_T]:
        """`value` of every process, by rank."""
        if self.count == 1:
            return [value]
        found: list[_T | None] = [None] * self.count
        dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def seed(self, seed: int) -> int:
        """Seed of what the model draws in this process, such as dropout: `seed` itself in the first one."""
        return seed if self.rank == 0 else int(np.random.default_rng((seed, self.rank)).integers(2**63))

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process the first one's buffers: running statistics that each keeps of its own images."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Context in which this process is one of those that torchrun started, or alone where torchrun did not start it.

    Collective operations run over NCCL on CUDA, where each process takes the GPU of its local rank, and over gloo on
    the CPU.

    Args:
        device: `"cpu"` or `"cuda"`.

    Raises:
        UsageError: if there are more processes on this machine than GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(device=torch.device(device))
        return
    place = _place(device, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    # the others wait while the first one decodes every file of a large dataset
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(int(os.environ["RANK"]), count, place)
    finally:
        dist.destroy_process_group()


def _place(device: str, local_rank: int, here: int) -> torch.device:
    if device != "cuda":
        return torch.device(device)
    gpus = torch.cuda.device_count()
    if here > gpus:
        raise UsageError(f"--nproc-per-node: expected at most the {gpus} GPUs of this machine, got {here} processes")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def check_processes(recipe: Recipe, processes: Processes) -> None:
    """Holds `recipe` against the number of processes.

    Raises:
        UsageError: if the batch, or its part in a process, does not divide evenly.
    """
    own = len(processes.slots(recipe.batch_size))
    if own % recipe.accumulate:
        raise UsageError(
            f"accumulate: expected a divisor of the {own} images of a step in each of {processes.count} processes, "
            f"got {recipe.accumulate} micro-batches"
        )


def share_norms(model: nn.Module, recipe: Recipe, processes: Processes) -> None:
    """Makes batch normalisations of `model` normalise by the images of all processes, where the recipe asks for it.

    Raises:
        UsageError: on the CPU, where torch has no such normalisation.
    """
    shared = recipe.batch_norm == "shared" and processes.count > 1
    if not shared or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    if processes.device.type != "cuda":
        raise UsageError(
            f"batch_norm: expected 'frozen' or 'process' for {processes.count} processes on device "
            f"{processes.device.type!r}, where torch has no SyncBatchNorm, got 'shared'"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]


class Part:
    """Every `count`-th image of a dataset, from `rank` on: the parts of all processes are disjoint and the whole.

    Args:
        dataset: the whole.
        processes: whose part.

    Raises:
        UsageError: if there are fewer images than processes.
    """

    def __init__(self, dataset: SegmentationDataset, processes: Processes) -> None:
        if len(dataset) < processes.count:
            raise UsageError(
                f"dataset {dataset.name!r}: expected an image for each of {processes.count} processes, "
                f"got {len(dataset)}"
            )
        self.name, self.classes, self.palette = dataset.name, dataset.classes, dataset.palette
        self.mean, self.std = dataset.mean, dataset.std
        self._dataset = dataset
        self._indices = range(processes.rank, len(dataset), processes.count)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and target."""
        return self._dataset[self._indices[index]]
