"""Multiply-accumulates of dispatched operations, where torch's own counter has none or a wrong figure.

`torch.utils.flop_counter` sees what the dispatcher runs, in the forward and the backward pass, and inside custom
autograd functions. Its registry lacks the CPU's fused attention, matrix-vector products, in-place products, the fast
path of multi-head attention and inverses, and takes the backward pass of a grouped convolution for a dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]
Rule = Callable[..., int]

_aten = torch.ops.aten


def _matrix_product(left: Shape, right: Shape, **_: Any) -> int:
    return prod(left) * right[-1]


def _added_matrix_product(_added: Shape, left: Shape, right: Shape, **_: Any) -> int:
    return prod(left) * right[-1]


def _matrix_vector(matrix: Shape, _vector: Shape, **_: Any) -> int:
    return prod(matrix)


def _added_matrix_vector(_added: Shape, matrix: Shape, _vector: Shape, **_: Any) -> int:
    return prod(matrix)


def _added_outer(_added: Shape, left: Shape, right: Shape, **_: Any) -> int:
    return prod(left) * prod(right)


def _convolution_backward(
    grad: Shape,
    data: Shape,
    weight: Shape,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """One product for each position and element of the weight, for each of the two gradients that are wanted."""
    positions = data if transposed else grad
    return (bool(wanted[0]) + bool(wanted[1])) * positions[0] * prod(positions[2:]) * prod(weight)


def _attention(query: Shape, key: Shape, value: Shape, *_args: Any, **_: Any) -> int:
    """`QK^T` and `PV` over the full rectangle, whatever the mask."""
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(_grad: Shape, query: Shape, key: Shape, value: Shape, *_args: Any, **_: Any) -> int:
    """The map once more, and the gradients of `P`, `V`, `Q` and `K`."""
    return prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def _multi_head_attention(query: Shape, key: Shape, *_args: Any, **_: Any) -> int:
    """Three projections of width `D`, `QK^T`, `PV` and the output projection."""
    batch, length, width = query
    return batch * width * (2 * (length + key[1]) * width + 2 * length * key[1])


def _encoder_layer(data: Shape, *arguments: Any, **_: Any) -> int:
    feed_forward: int = prod(arguments[13]) + prod(arguments[15])
    return _multi_head_attention(data, data) + data[0] * data[1] * feed_forward


def _inverse(matrix: Shape, **_: Any) -> int:
    return prod(matrix) * matrix[-1]


def _solve(matrix: Shape, right: Shape, **_: Any) -> int:
    """The inverse and the product that it stands for."""
    return prod(matrix) * matrix[-1] + prod(right) * matrix[-1]


def _solve_factored(factors: Shape, _pivots: Shape, right: Shape, **_: Any) -> int:
    return prod(right) * factors[-1]


PRODUCTS: Mapping[Any, Rule] = MappingProxyType(
    {
        _aten.mv: _matrix_vector,
        _aten.dot: _matrix_vector,
        _aten.vdot: _matrix_vector,
        _aten.addmv: _added_matrix_vector,
        _aten.addmv_: _added_matrix_vector,
        _aten.addr: _added_outer,
        _aten.addmm_: _added_matrix_product,
        _aten.addbmm: _added_matrix_product,
        _aten.addbmm_: _added_matrix_product,
        _aten.baddbmm: _added_matrix_product,
        _aten.baddbmm_: _added_matrix_product,
        _aten.convolution_backward: _convolution_backward,
        _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        _aten._scaled_dot_product_fused_attention_overrideable: _attention,
        _aten._scaled_dot_product_fused_attention_overrideable_backward: _attention_backward,
        _aten._native_multi_head_attention: _multi_head_attention,
        _aten._transformer_encoder_layer_fwd: _encoder_layer,
        _aten.linalg_inv_ex: _inverse,
        _aten._linalg_solve_ex: _solve,
        _aten.linalg_lu_solve: _solve_factored,
    }
)
"""Dispatched operation -> its products, from the shapes of its tensors and its other arguments."""


def product_counter() -> FlopCounterMode:
    """Torch's counter of floating-point operations with `PRODUCTS` in place of what it lacks or has wrong.

    Its totals are FLOPs, twice the multiply-accumulates.

    Example:
        >>> with product_counter() as counter:
        ...     _ = torch.zeros(3, 4) @ torch.zeros(4)
        >>> counter.get_total_flops()
        24
    """

    def doubled(rule: Rule) -> Callable[..., int]:
        return lambda *arguments, **named: 2 * rule(*arguments, **named)

    return FlopCounterMode(display=False, custom_mapping={op: doubled(rule) for op, rule in PRODUCTS.items()})
