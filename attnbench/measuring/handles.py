"""How many products each operation of a traced graph makes, as exact integers.

Every handle takes the inputs and outputs of a node of the JIT graph, as `fvcore` calls it, and returns
multiply-accumulates. Counted are convolutions, linear maps, matrix products and inverses
(docs/measuring.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import torch

from attnbench.measuring.einsum import einsum_macs

Handle = Callable[[list[Any], list[Any]], int]
Shape = tuple[int, ...]


def _shape(value: Any) -> Shape:
    if not value.isCompleteTensor():
        raise ValueError(f"count_macs: expected operands of known shape, got {value.type()} from {value.node().kind()}")
    return tuple(value.type().sizes())


def _items(value: Any) -> list[Any]:
    """The values of a list that the graph builds from single ones."""
    return list(value.node().inputs())


def _integers(value: Any) -> list[int]:
    constant = value.toIValue()
    return list(constant) if constant is not None else [item.toIValue() for item in _items(value)]


def _broadcast(left: Sequence[int], right: Sequence[int]) -> Shape:
    shape: Shape = tuple(torch.broadcast_shapes(tuple(left), tuple(right)))  # type: ignore[no-untyped-call]
    return shape


def matmul_macs(left: Sequence[int], right: Sequence[int]) -> int:
    """Products of `left @ right` for operands of any rank, broadcast over the batch dimensions.

    Example:
        >>> matmul_macs((8, 1, 3, 4), (5, 4, 2))
        960
        >>> matmul_macs((4,), (4, 2))
        8
    """
    left = (1, *left) if len(left) == 1 else tuple(left)
    right = (*right, 1) if len(right) == 1 else tuple(right)
    return prod(_broadcast(left[:-2], right[:-2])) * left[-2] * left[-1] * right[-1]


def _matmul_at(left: int, right: int) -> Handle:
    return lambda inputs, _: matmul_macs(_shape(inputs[left]), _shape(inputs[right]))


def _linear(inputs: list[Any], _: list[Any]) -> int:
    weight = _shape(inputs[1])
    return prod(_shape(inputs[0])) * (weight[0] if len(weight) == 2 else 1)


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    data, weight, transposed = _shape(inputs[0]), _shape(inputs[1]), bool(inputs[6].toIValue())
    positions = data if transposed else _shape(outputs[0])
    return positions[0] * prod(positions[2:]) * prod(weight)


def _convolution_with_padding_mode(inputs: list[Any], outputs: list[Any]) -> int:
    out = _shape(outputs[0])
    return out[0] * prod(out[2:]) * prod(_shape(inputs[1]))


def _einsum(inputs: list[Any], _: list[Any]) -> int:
    path = None
    if len(inputs) > 2 and inputs[2].type().kind() != "NoneType":
        path = _integers(inputs[2])
    return einsum_macs(inputs[0].toIValue(), [_shape(item) for item in _items(inputs[1])], path)


def _tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    left = _shape(inputs[0])
    return prod(_shape(outputs[0])) * prod(left[dimension] for dimension in _integers(inputs[2]))


def _summed_over_last(inputs: list[Any], outputs: list[Any]) -> int:
    return prod(_shape(outputs[0])) * (_shape(inputs[0]) or (1,))[-1]


def _vecdot(inputs: list[Any], _: list[Any]) -> int:
    return prod(_broadcast(_shape(inputs[0]), _shape(inputs[1])))


def _outer_at(left: int, right: int) -> Handle:
    return lambda inputs, _: prod(_shape(inputs[left])) * prod(_shape(inputs[right]))


def _scaled_dot_product_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """`QK^T` and `PV` over the full rectangle, whatever the layout, the mask and the kernel."""
    query, keys, out = _shape(inputs[0]), _shape(inputs[1]), _shape(outputs[0])
    return prod(out[:-1]) * keys[-2] * (query[-1] + out[-1])


def _attention_macs(query: Shape, key: Shape) -> int:
    """Multi-head attention of width `D`: three projections, `QK^T`, `PV`, output projection."""
    batch, length, width = query
    return batch * width * (2 * (length + key[1]) * width + 2 * length * key[1])


def _multi_head_attention(inputs: list[Any], _: list[Any]) -> int:
    return _attention_macs(_shape(inputs[0]), _shape(inputs[1]))


def _transformer_encoder_layer(inputs: list[Any], _: list[Any]) -> int:
    data = _shape(inputs[0])
    feed_forward = prod(_shape(inputs[14])) + prod(_shape(inputs[16]))
    return _attention_macs(data, data) + data[0] * data[1] * feed_forward


def _inverse(inputs: list[Any], _: list[Any]) -> int:
    shape = _shape(inputs[0])
    return prod(shape) * shape[-1]


def _solve(inputs: list[Any], outputs: list[Any]) -> int:
    """The inverse and the product that it stands for."""
    matrix = _shape(inputs[0])
    return prod(matrix) * matrix[-1] + prod(_shape(outputs[0])) * matrix[-1]


HANDLES: Mapping[str, Handle] = MappingProxyType(
    {
        "aten::_convolution": _convolution,
        "aten::_convolution_mode": _convolution_with_padding_mode,
        "aten::linear": _linear,
        "aten::matmul": _matmul_at(0, 1),
        "aten::mm": _matmul_at(0, 1),
        "aten::bmm": _matmul_at(0, 1),
        "aten::mv": _matmul_at(0, 1),
        "aten::dot": _matmul_at(0, 1),
        "aten::vdot": _matmul_at(0, 1),
        "aten::addmm": _matmul_at(1, 2),
        "aten::addmm_": _matmul_at(1, 2),
        "aten::addmv": _matmul_at(1, 2),
        "aten::addmv_": _matmul_at(1, 2),
        "aten::addbmm": _matmul_at(1, 2),
        "aten::addbmm_": _matmul_at(1, 2),
        "aten::baddbmm": _matmul_at(1, 2),
        "aten::baddbmm_": _matmul_at(1, 2),
        "aten::outer": _outer_at(0, 1),
        "aten::ger": _outer_at(0, 1),
        "aten::addr": _outer_at(1, 2),
        "aten::inner": _summed_over_last,
        "aten::linalg_vecdot": _vecdot,
        "aten::tensordot": _tensordot,
        "aten::einsum": _einsum,
        "aten::scaled_dot_product_attention": _scaled_dot_product_attention,
        "aten::_native_multi_head_attention": _multi_head_attention,
        "aten::_transformer_encoder_layer_fwd": _transformer_encoder_layer,
        "aten::inverse": _inverse,
        "aten::linalg_inv": _inverse,
        "aten::linalg_inv_ex": _inverse,
        "aten::linalg_solve": _solve,
        "aten::linalg_solve_ex": _solve,
    }
)
"""Operation of the trace -> its products."""


def _named(names: str) -> tuple[str, ...]:
    return tuple(f"aten::{name}" for name in names.split())


SET_ASIDE = _named(
    "batch_norm group_norm instance_norm layer_norm rms_norm adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_max_pool2d avg_pool1d avg_pool2d max_pool2d max_pool2d_with_indices "
    "upsample_bilinear2d upsample_bicubic2d upsample_nearest2d grid_sampler"
)
"""Normalisation, pooling and resampling: by definition no product, and not listed as uncounted."""

DATA_MOVEMENT = _named(
    "alias broadcast_to clone col2im diagonal empty_like expand_as feature_dropout fill_ flip im2col "
    "index_select lift_fresh masked_fill_ movedim mT new_ones numpy_T ones_like pad pixel_shuffle "
    "pixel_unshuffle repeat repeat_interleave reshape_as scatter scatter_ swapaxes swapdims unflatten unfold "
    "unsafe_chunk unsafe_split view_as where zero_"
)
"""Operations that place or copy values and compute nothing, beside those that fvcore itself ignores."""

_PRODUCTS = re.compile(
    r"mm(_|$)|matmul|mv_?$|dot$|einsum|(^|_)linear$|^bilinear$|trilinear$|kron$|cdist|conv(?!ert)"
    r"|attention|multi_head|transformer|lstm|gru|rnn|inverse|(?<!re)solve|svd|nuclear|(?<!w)eig|cholesky|lu_factor|lu_with_info|qr$|geqrf"
    r"|linalg_(?!vector_norm|norm|cross|diagonal)"
)


def is_matmul_class(operation: str) -> bool:
    """Whether an operation of torch multiplies matrices, convolves or factorises, and so must have a handle.

    Example:
        >>> is_matmul_class("aten::lstm"), is_matmul_class("aten::upsample_linear1d")
        (True, False)
    """
    namespace, _, name = operation.partition("::")
    return namespace == "aten" and _PRODUCTS.search(name) is not None


def hides_products(operation: str) -> bool:
    """Whether products may hide in an operation: custom functions, scripted calls, other libraries, FFTs."""
    return not operation.startswith(("aten::", "prim::")) or operation.startswith(
        (
            "prim::PythonOp",
            "prim::CallFunction",
            "prim::CallMethod",
            "aten::fft_",
            "aten::stft",
            "aten::istft",
        )
    )
