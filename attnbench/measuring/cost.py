"""Parameters and multiply-accumulates of a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attnbench.measuring.handles import DATA_MOVEMENT, HANDLES, SET_ASIDE, hides_products, is_matmul_class


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of one forward pass.

    Args:
        macs: products of convolutions, linear maps, matrix products and inverses.
        uncounted: operations that are not counted, each with its number, for example `"aten::softmax x3"`.
        lower_bound: whether products may be hidden in one of them: custom autograd functions, scripted calls,
            FFTs, operations of other libraries.
    """

    macs: int
    uncounted: tuple[str, ...]
    lower_bound: bool = False


class _Flat(nn.Module):
    """Returns all tensors of its module's output: the trace drops what leads to none of them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = tuple(leaf for leaf in tree_leaves(self.module(*inputs)) if isinstance(leaf, Tensor))
        if not leaves:
            raise ValueError(f"count_macs: expected tensors as output, got none from {type(self.module).__name__}")
        return leaves


class _ProductCount(FlopCountAnalysis):  # type: ignore[misc]
    """fvcore's walk over the trace, without the arithmetic on sizes that tracing records as well."""

    def _should_ignore_node(self, node: Any) -> bool:
        return bool(super()._should_ignore_node(node)) or all(_is_size(value) for value in node.outputs())


def _is_size(value: Any) -> bool:
    if not value.isCompleteTensor():
        return value.type().kind() in ("IntType", "FloatType", "BoolType")
    return not value.type().sizes() and not value.type().dtype().is_floating_point


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; every part's own mode behind it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def count_macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> MacCount:
    """Multiply-accumulates of `module(*inputs)`, counted from a trace of it in evaluation mode.

    Every count is an exact integer; the handles stand in `attnbench.measuring.handles`. The module's mode and
    state are left as they were.

    Args:
        module: any module that takes tensors and returns tensors, nested or not.
        inputs: its inputs.

    Raises:
        ValueError: if an operation multiplies matrices and has no handle.

    Example:
        >>> count_macs(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Softmax(1)), (torch.zeros(1, 4, 5, 6),))
        MacCount(macs=3456, uncounted=('aten::softmax x1',), lower_bound=False)
    """
    analysis = _ProductCount(_Flat(module), tuple(tensor.detach() for tensor in inputs))
    analysis.clear_op_handles()
    analysis.set_op_handle(**HANDLES, **dict.fromkeys((*SET_ASIDE, *DATA_MOVEMENT)))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with evaluating(module):
        macs = int(analysis.total())
    uncounted = dict(sorted(analysis.unsupported_ops().items()))
    for operation in uncounted:
        if is_matmul_class(operation):
            raise ValueError(
                f"count_macs: expected operations that attnbench.measuring.handles knows, "
                f"got {operation!r}, which multiplies and has no handle"
            )
    return MacCount(
        macs=macs,
        uncounted=tuple(f"{operation} x{number}" for operation, number in uncounted.items()),
        lower_bound=any(hides_products(operation) for operation in uncounted),
    )


def count_params(module: nn.Module) -> int:
    """Number of parameters, trained or frozen, each shared one once; buffers are not parameters.

    Example:
        >>> count_params(nn.Conv2d(4, 8, 3))
        296
    """
    return sum(parameter.numel() for parameter in module.parameters())
