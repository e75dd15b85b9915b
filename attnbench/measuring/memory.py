"""Memory of a step above what was live when it began: its peak, what is saved for backward, the largest tensor."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnbench.measuring import paused_collector

BLOCK = 512
"""Bytes to a multiple of which the allocator of a CUDA device rounds every tensor."""

_Output = TypeVar("_Output")


@dataclass(frozen=True)
class Moment:
    """What was live when an operation had ended.

    Args:
        operation: name of the operation, such as `"aten::bmm"`.
        live_bytes: bytes that tensors held beyond what they held when the step began.
        backward: whether it belongs to the backward pass.
    """

    operation: str
    live_bytes: int
    backward: bool


@dataclass(frozen=True)
class MemoryProfile:
    """Memory of one forward pass, or of one forward and one backward pass.

    Args:
        peak_bytes: the most that was live at a time; see `peak_bytes`.
        saved_bytes: what the forward pass has made and leaves alive behind it, its outputs excluded: what autograd
            keeps for the backward pass; none without one.
        largest_bytes: bytes of the largest storage that the step made.
        largest_by: the operation that made it, the first of several; none where the step made nothing.
        curve: what was live after each operation.
    """

    peak_bytes: int
    saved_bytes: int | None
    largest_bytes: int
    largest_by: str | None
    curve: tuple[Moment, ...]


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of every storage that comes into being inside the block, from its birth to its death.

    It knows storages by weak reference: a strong one would keep alive what the step has let go.
    """

    def __init__(self, device: str = "cpu", block: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.curve: list[Moment] = []
        self.saved: int | None = None
        self.largest = 0
        self.largest_by: str | None = None
        self._device = device
        self._block = block
        self._live = 0
        self._references: dict[int, weakref.ref[Any]] = {}
        self._bytes: dict[int, int] = {}
        self._bytes_at_start: dict[int, int] = {}

    @property
    def peak(self) -> int:
        """The highest point of the curve."""
        return max((moment.live_bytes for moment in self.curve), default=0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        # The operand of lift_fresh is a constant made a moment ago; others are older than the step.
        fresh = func is torch.ops.aten.lift_fresh.default
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for operand in operands:
            self._follow(operand, name, born=fresh)
        out = func(*args, **kwargs)
        for result in tree_leaves(out):
            if isinstance(result, Tensor):
                self._follow(result, name, born=True)
        for operand in operands:
            self._follow(operand, name, born=False)
        # A question such as a pretended tensor's for its device is no operation.
        if func.namespace != "prim":
            self.curve.append(Moment(name, self._live, self.saved is not None))
        return out

    def end_forward(self, outputs: object) -> None:
        """Takes what is live as saved for the backward pass, except for the storages of `outputs`."""
        keys = {id(leaf.untyped_storage()) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)}
        self.saved = self._live - sum(self._counted(key) for key in keys if key in self._bytes)

    def _follow(self, tensor: Tensor, operation: str, *, born: bool) -> None:
        if tensor.device.type != self._device:
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
        if size - self._bytes_at_start[key] > self.largest:
            self.largest, self.largest_by = size - self._bytes_at_start[key], operation

    def _counted(self, key: int) -> int:
        """What the step has added to a storage; one that was there before counts by its growth alone."""
        return max(self._whole(self._bytes[key]) - self._whole(self._bytes_at_start[key]), 0)

    def _whole(self, size: int) -> int:
        return -(-size // self._block) * self._block

    def _forget(self, key: int, _: weakref.ref[Any]) -> None:
        self._live -= self._counted(key)
        del self._references[key], self._bytes[key], self._bytes_at_start[key]


def follow_memory(
    forward: Callable[[], _Output],
    backward: Callable[[_Output], object] | None = None,
    *,
    device: str = "cpu",
    block: int = 1,
    release: Callable[[], object] | None = None,
) -> MemoryProfile:
    """Follows every tensor of one forward pass, and of the backward pass behind it, by what is dispatched.

    Args:
        forward: the forward pass.
        backward: the backward pass, given what `forward` returned; none runs none.
        device: type of the device whose tensors are followed.
        block: bytes to a multiple of which each storage is rounded up, in all but `largest_bytes`.
        release: lets go of what an earlier call left behind (gradients), before the pass begins.

    Example:
        >>> x = torch.zeros(1000, requires_grad=True)
        >>> profile = follow_memory(lambda: x.exp().sin().sum(), lambda loss: loss.backward())
        >>> profile.peak_bytes, profile.saved_bytes, profile.largest_bytes, profile.largest_by
        (12008, 4000, 4000, 'aten::exp')
    """
    _use_once()
    if release is not None:
        release()
    storages = _LiveStorages(device, block)
    with paused_collector(), storages:
        output = forward()
        if backward is not None:
            storages.end_forward(output)
            backward(output)
    curve = tuple(storages.curve)
    return MemoryProfile(storages.peak, storages.saved, storages.largest, storages.largest_by, curve)


@functools.cache
def _use_once() -> None:
    """Uses dispatch once: the first use in a process loads modules from inside a frame, and so keeps tensors alive."""
    with _LiveStorages():
        torch.ones(1).add(1)


def profile_memory(
    forward: Callable[[], _Output],
    backward: Callable[[_Output], object] | None,
    device: torch.device,
    *,
    release: Callable[[], object],
) -> MemoryProfile:
    """Memory of a forward pass, and of the backward pass behind it, on a device.

    On a CPU one call gives all of it. On a GPU the peak is the allocator's (see `peak_bytes`), and a further call gives
    the rest, in the allocator's blocks.

    Args:
        forward: the forward pass.
        backward: the backward pass, given what `forward` returned; none runs none.
        device: where the tensors lie.
        release: lets go of what a call leaves behind (gradients).

    Raises:
        ValueError: for a device that is neither a CPU nor a CUDA device.
    """
    _expect_device(device, "profile_memory")
    if device.type == "cpu":
        return follow_memory(forward, backward, release=release)

    def step() -> object:
        output = forward()
        return output if backward is None else backward(output)

    peak = _cuda_peak(step, device, release)
    return dataclasses.replace(
        follow_memory(forward, backward, device=device.type, block=BLOCK, release=release), peak_bytes=peak
    )


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
    _expect_device(device, "peak_bytes")
    if device.type == "cuda":
        return _cuda_peak(step, device, release)
    return follow_memory(step, release=release).peak_bytes


def _expect_device(device: torch.device, owner: str) -> None:
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{owner}: expected a cpu or cuda device, got {device}")


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
