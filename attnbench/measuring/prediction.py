"""MACs and peak memory of what never runs: tensors that have shapes, types and lifetimes, and no memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.flop_counter import flop_registry

from attnbench.measuring.cost import evaluating
from attnbench.measuring.handles import is_matmul_class
from attnbench.measuring.memory import MemoryProfile, follow_memory, peak_bytes

_Output = TypeVar("_Output")


@contextlib.contextmanager
def pretending() -> Iterator[None]:
    """Modules and tensors that are made inside the block take no memory, and what is done with them no time.

    Whatever depends on the values of a tensor, and not on its shape alone, is an error.

    Example:
        >>> with pretending():
        ...     tuple(nn.Conv2d(4, 8, 3)(torch.empty(1000, 4, 5000, 5000)).shape)
        (1000, 8, 4998, 4998)
    """
    with FakeTensorMode():
        yield


def predict_peak_bytes(step: Callable[[], object], *, release: Callable[[], object] | None = None) -> int:
    """What `peak_bytes` measures on a CPU, to the byte, without the memory.

    Args:
        step: what is predicted; its modules and tensors were made in the `pretending` block that surrounds the call.
        release: lets go of what a call leaves behind (gradients), before the step begins.

    Raises:
        ValueError: outside of `pretending`.

    Example:
        >>> with pretending():
        ...     x = torch.zeros(10**12)
        ...     predict_peak_bytes(lambda: (x + 1) * 2)
        8000000000000
    """
    _expect_pretending("predict_peak_bytes")
    return peak_bytes(step, torch.device("cpu"), release=release)


def predict_memory(
    forward: Callable[[], _Output],
    backward: Callable[[_Output], object] | None = None,
    *,
    block: int = 1,
    release: Callable[[], object] | None = None,
) -> MemoryProfile:
    """What `profile_memory` measures on a CPU, to the byte and operation by operation, without the memory.

    Args:
        forward: the forward pass; its module and tensors were made in the `pretending` block that surrounds the call.
        backward: the backward pass, given what `forward` returned; none runs none.
        block: bytes to a multiple of which each storage is rounded up; 1 for a CPU, `memory.BLOCK` for CUDA.
        release: lets go of what an earlier call left behind (gradients), before the pass begins.

    Raises:
        ValueError: outside of `pretending`.

    Example:
        >>> with pretending():
        ...     x = torch.zeros(10**12)
        ...     predict_memory(lambda: (x + 1) * 2).largest_by
        'aten::add'
    """
    _expect_pretending("predict_memory")
    return follow_memory(forward, backward, block=block, release=release)


def materialise(module: nn.Module) -> None:
    """Gives a module that was built on the `meta` device pretended parameters and buffers on the CPU, in place.

    It is how a module comes into a `pretending` block whose constructor looks at the values that it draws: on `meta`
    torch draws none.

    Args:
        module: a module on the `meta` device, outside of which nothing refers to its parameters.

    Raises:
        ValueError: outside of `pretending`.

    Example:
        >>> with torch.device("meta"):
        ...     linear = nn.Linear(4, 8)
        >>> with pretending():
        ...     materialise(linear)
        ...     linear(torch.zeros(2, 4)).device
        device(type='cpu')
    """
    _expect_pretending("materialise")
    made: dict[Tensor, Tensor] = {}

    def pretend(tensor: Tensor) -> Tensor:
        if tensor not in made:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[tensor]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = pretend(tensor)  # type: ignore[assignment]


def predict_macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """What `count_macs` counts, without the memory: multiply-accumulates of one forward pass in evaluation mode.

    Tracing, which `count_macs` rests on, needs tensors with values; this sees the operations as they are dispatched.

    Args:
        module: any module, made in the `pretending` block that surrounds the call.
        inputs: its inputs, made there as well.

    Raises:
        ValueError: outside of `pretending`, or if an operation multiplies matrices and is not known.

    Example:
        >>> with pretending():
        ...     predict_macs(nn.Conv2d(4, 8, 3), (torch.zeros(1, 4, 5, 6),))
        3456
    """
    _expect_pretending("predict_macs")
    products = _Products()
    with evaluating(module), products:
        module(*inputs)
    return products.macs


def _expect_pretending(owner: str) -> None:
    if not any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack()):
        raise ValueError(f"{owner}: expected to be called in a block of pretending(), got a call outside of one")


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the products of every operation that is dispatched inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        if operation in _OWN:
            self.macs += _OWN[operation](args, out)
        elif operation in flop_registry:
            self.macs += flop_registry[operation](*args, **(kwargs or {}), out_val=out) // 2
        elif is_matmul_class(str(operation).replace(".", "::")):
            raise ValueError(f"predict_macs: expected operations that torch or the project counts, got {operation}")
        return out


def _attention(args: Sequence[Any], _: Any) -> int:
    """`QK^T` and `PV` over the full rectangle."""
    query, key, value = (_shape(tensor) for tensor in args[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _inverse(args: Sequence[Any], _: Any) -> int:
    matrix = _shape(args[0])
    return prod(matrix) * matrix[-1]


def _solve(args: Sequence[Any], out: Any) -> int:
    """The inverse and the product that it stands for."""
    matrix = _shape(args[0])
    return (prod(matrix) + prod(_shape(out[0]))) * matrix[-1]


def _vector(args: Sequence[Any], _: Any) -> int:
    return prod(_shape(args[0]))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _none(_: Sequence[Any], __: Any) -> int:
    return 0


_OWN: Mapping[Any, Callable[[Sequence[Any], Any], int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_attention_math: _attention,
    torch.ops.aten.linalg_inv_ex: _inverse,
    torch.ops.aten._linalg_solve_ex: _solve,
    torch.ops.aten.mv: _vector,
    torch.ops.aten.dot: _vector,
    torch.ops.aten._linalg_check_errors: _none,
}
"""What torch's own counter of FLOPs passes over."""
