"""Peak memory of a step above what was live when it began."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnbench.measuring import paused_collector


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of every storage that comes into being inside the block, from its birth to its death.

    It knows storages by weak reference: a strong one would keep alive what the step has let go.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._references: dict[int, weakref.ref[Any]] = {}
        self._bytes: dict[int, int] = {}
        self._bytes_at_start: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # The operand of lift_fresh is a constant made a moment ago; others are older than the step.
        fresh = func is torch.ops.aten.lift_fresh.default
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for operand in operands:
            self._follow(operand, born=fresh)
        out = func(*args, **kwargs)
        for result in tree_leaves(out):
            if isinstance(result, Tensor):
                self._follow(result, born=True)
        for operand in operands:
            self._follow(operand, born=False)
        self.peak = max(self.peak, self._live)
        return out

    def _follow(self, tensor: Tensor, *, born: bool) -> None:
        if tensor.device.type != "cpu":
            return
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._references:
            self._references[key] = weakref.ref(storage, functools.partial(self._forget, key))
            self._bytes_at_start[key] = 0 if born else size
            self._bytes[key] = self._bytes_at_start[key]
        before = self._counted(key)
        self._bytes[key] = size
        self._live += self._counted(key) - before

    def _counted(self, key: int) -> int:
        """What the step has added to a storage; one that was there before counts by its growth alone."""
        return max(self._bytes[key] - self._bytes_at_start[key], 0)

    def _forget(self, key: int, _: weakref.ref[Any]) -> None:
        self._live -= self._counted(key)
        del self._references[key], self._bytes[key], self._bytes_at_start[key]


def peak_bytes(step: Callable[[], object], device: torch.device, *, release: Callable[[], object] | None = None) -> int:
    """Largest number of bytes that tensors hold during `step` beyond what they held when it began.

    On a GPU it is the allocator's own peak, in its blocks of 512 bytes, of a second call (the first lets
    libraries choose their kernels and take their workspaces). On a CPU it is the exact sum over the storages
    that the step makes, the same at each repetition: outputs, intermediates, saved tensors and gradients, in
    the forward and the backward pass; what a kernel takes and returns inside one operation is not seen.

    Args:
        step: what is measured; gradients that it leaves behind count, as they are live at its end.
        device: where its tensors lie.
        release: lets go of what a call leaves behind (gradients), before the measured call begins.

    Raises:
        ValueError: for a device that is neither a CPU nor a CUDA device.

    Example:
        >>> x = torch.zeros(1000)
        >>> peak_bytes(lambda: (x + 1) * 2, torch.device("cpu"))
        8000
    """
    if device.type == "cuda":
        return _cuda_peak(step, device, release)
    if device.type != "cpu":
        raise ValueError(f"peak_bytes: expected a cpu or cuda device, got {device}")
    if release is not None:
        release()
    storages = _LiveStorages()
    with paused_collector(), storages:
        step()
    return storages.peak


def _cuda_peak(step: Callable[[], object], device: torch.device, release: Callable[[], object] | None) -> int:
    step()
    if release is not None:
        release()
    torch.cuda.synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before: int = torch.cuda.memory_allocated(device)
    with paused_collector():
        step()
    torch.cuda.synchronize(device)
    peak: int = torch.cuda.max_memory_allocated(device)
    return peak - before
