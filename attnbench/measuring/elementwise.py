"""How many elementwise operations each dispatched operation makes: a table of documented rules.

A rule is a number of operations for each element of the output, of the input or of a pooling window. Products are not
in it (`attnbench.measuring.flop_counter`), and neither is what places or copies values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

Rule = Callable[[Sequence[Any], Mapping[str, Any], Any], int]
MAP_OPERATIONS = 6
"""Of each element of a fused attention's map: one for the scale, five for the softmax."""


def _names(names: str) -> tuple[str, ...]:
    return tuple(names.split())


def output_elements(out: Any) -> int:
    """Elements of all tensors that an operation returns."""
    return sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))


def _per_output(number: int) -> Rule:
    return lambda _args, _kwargs, out: number * output_elements(out)


def _per_first_output(number: int) -> Rule:
    """For operations that return statistics or indices beside their result."""
    return lambda _args, _kwargs, out: number * (out if isinstance(out, Tensor) else out[0]).numel()


def _per_input(number: int, argument: int = 0) -> Rule:
    return lambda args, _kwargs, _out: number * int(args[argument].numel())


def _sorting(args: Sequence[Any], _kwargs: Mapping[str, Any], _out: Any) -> int:
    dimension = args[0].shape[-1] if args[0].ndim else 1
    return int(args[0].numel()) * max(1, math.ceil(math.log2(max(dimension, 1))))


def _window(sizes: Sequence[int], rank: int) -> int:
    return math.prod(sizes) if len(sizes) == rank else int(sizes[0]) ** rank


def _pooling(rank: int, argument: int = 1) -> Rule:
    """One operation for each output position and element of its window."""
    return lambda args, _kwargs, out: (
        (out if isinstance(out, Tensor) else out[0]).numel() * _window(args[argument], rank)
    )


def _pooling_backward(rank: int) -> Rule:
    return lambda args, _kwargs, _out: int(args[0].numel()) * _window(args[2], rank)


def _bias_gradient(args: Sequence[Any], _kwargs: Mapping[str, Any], _out: Any) -> int:
    return int(args[0].numel()) if args[10][2] else 0


def _accumulating_put(args: Sequence[Any], kwargs: Mapping[str, Any], _out: Any) -> int:
    accumulates = args[3] if len(args) > 3 else kwargs.get("accumulate", False)
    return int(args[2].numel()) if accumulates else 0


def _map(query: Tensor, key: Tensor) -> int:
    return MAP_OPERATIONS * math.prod(query.shape[:-1]) * key.shape[-2]


def _attention(args: Sequence[Any], _kwargs: Mapping[str, Any], _out: Any) -> int:
    return _map(args[0], args[1])


def _attention_backward(args: Sequence[Any], _kwargs: Mapping[str, Any], _out: Any) -> int:
    return _map(args[1], args[2])


def _multi_head_attention(args: Sequence[Any], _kwargs: Mapping[str, Any], _out: Any) -> int:
    batch, length, _ = args[0].shape
    return int(MAP_OPERATIONS * batch * args[4] * length * args[1].shape[1])


def _encoder_layer(args: Sequence[Any], _kwargs: Mapping[str, Any], _out: Any) -> int:
    """Two layer norms, two residual sums, the activation and the map."""
    batch, length, width = args[0].shape
    hidden = int(args[14].shape[0])
    tokens = batch * length
    return int(tokens * (2 * 7 * width + 2 * width + hidden) + MAP_OPERATIONS * batch * int(args[2]) * length**2)


_PLACES = _names(
    "_to_copy _reshape_copy alias alias_copy as_strided_scatter cat clone constant_pad_nd copy diag_embed "
    "diagonal_scatter embedding empty empty_like empty_strided eye arange fill flip full full_like gather im2col index "
    "index_copy index_fill index_select lift_fresh linspace masked_fill masked_scatter masked_select new_empty "
    "new_empty_strided new_full new_ones new_zeros ones ones_like pixel_shuffle pixel_unshuffle reflection_pad1d "
    "reflection_pad2d repeat replication_pad1d replication_pad2d resize roll scalar_tensor scatter select_backward "
    "select_scatter set slice_backward slice_scatter stack unfold_backward upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d zero zeros zeros_like where "
    "_local_scalar_dense _linalg_check_errors _unsafe_index _unsafe_view is_same_size _reshape_alias"
)
_PRODUCTS = _names(
    "mm bmm addmm baddbmm addbmm mv dot vdot addmv addr convolution linalg_inv_ex _linalg_solve_ex linalg_lu_solve"
)
_FUNCTIONS = _names(
    "abs acos add asin atan atan2 bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max "
    "clamp_min cos div elu eq erf erfc erfinv exp exp2 expm1 floor floor_divide fmod ge gelu gt hardsigmoid hardswish "
    "hardtanh isinf isnan isfinite le leaky_relu log log10 log1p log2 log_sigmoid_forward logical_and logical_not "
    "logical_or logical_xor lt maximum minimum mish mul ne neg normal pow rand randint randn reciprocal relu remainder "
    "round rsqrt rsub sigmoid sign silu sin softplus softplus_backward sqrt square sub tan tanh threshold "
    "threshold_backward trunc "
    "uniform xlogy hardtanh_backward leaky_relu_backward hardsigmoid_backward hardswish_backward elu_backward"
)
_REDUCTIONS = _names(
    "sum mean nansum prod amax amin max min argmax argmin any all cumsum cumprod cummax cummin count_nonzero aminmax"
)
_NORMS = _names("native_layer_norm native_group_norm _native_batch_norm_legit native_batch_norm cudnn_batch_norm")

_TABLE: dict[str, Rule] = {
    **dict.fromkeys(_PLACES, _per_output(0)),
    **dict.fromkeys(_PRODUCTS, _per_output(0)),
    **dict.fromkeys(_FUNCTIONS, _per_output(1)),
    **dict.fromkeys(_REDUCTIONS, _per_input(1)),
    **dict.fromkeys(_names("addcmul addcdiv native_dropout"), _per_first_output(2)),
    **dict.fromkeys(_names("lerp sigmoid_backward tanh_backward gelu_backward silu_backward"), _per_output(3)),
    **dict.fromkeys(_names("linalg_vector_norm norm"), _per_input(2)),
    **dict.fromkeys(_names("var std var_mean std_mean logsumexp"), _per_input(3)),
    **dict.fromkeys(_names("sort topk kthvalue median"), _sorting),
    **dict.fromkeys(_names("_softmax _log_softmax _safe_softmax"), _per_output(5)),
    **dict.fromkeys(_names("_softmax_backward_data _log_softmax_backward_data"), _per_output(4)),
    "_native_batch_norm_legit_no_training": _per_input(4),
    **dict.fromkeys(_NORMS, _per_input(7)),
    **dict.fromkeys(_names("_fused_rms_norm"), _per_input(4)),
    **dict.fromkeys(
        _names("native_batch_norm_backward cudnn_batch_norm_backward native_layer_norm_backward"), _per_input(9)
    ),
    **dict.fromkeys(_names("native_group_norm_backward _fused_rms_norm_backward"), _per_input(9)),
    **dict.fromkeys(_names("_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d"), _per_input(1)),
    "_adaptive_avg_pool2d_backward": _per_output(1),
    "adaptive_max_pool2d_backward": _per_input(1),
    "avg_pool2d": _pooling(2),
    "max_pool2d_with_indices": _pooling(2),
    "avg_pool2d_backward": _pooling_backward(2),
    "max_pool2d_with_indices_backward": _per_input(1),
    "upsample_linear1d": _per_output(4),
    **dict.fromkeys(_names("upsample_bilinear2d _upsample_bilinear2d_aa grid_sampler_2d"), _per_output(8)),
    **dict.fromkeys(_names("upsample_trilinear3d grid_sampler_3d"), _per_output(16)),
    **dict.fromkeys(_names("upsample_bicubic2d _upsample_bicubic2d_aa"), _per_output(32)),
    **dict.fromkeys(_names("upsample_nearest1d_backward upsample_nearest2d_backward"), _per_input(1)),
    "upsample_linear1d_backward": _per_input(4),
    **dict.fromkeys(
        _names("upsample_bilinear2d_backward _upsample_bilinear2d_aa_backward grid_sampler_2d_backward"), _per_input(8)
    ),
    **dict.fromkeys(_names("upsample_bicubic2d_backward _upsample_bicubic2d_aa_backward"), _per_input(32)),
    "col2im": _per_input(1),
    **dict.fromkeys(_names("scatter_add index_add"), _per_input(1, 3)),
    **dict.fromkeys(_names("index_put _index_put_impl _unsafe_index_put"), _accumulating_put),
    "embedding_dense_backward": _per_input(1),
    "convolution_backward": _bias_gradient,
    **dict.fromkeys(
        _names(
            "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
            "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
            "_scaled_dot_product_fused_attention_overrideable"
        ),
        _attention,
    ),
    **dict.fromkeys(
        _names(
            "_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention_backward "
            "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward "
            "_scaled_dot_product_fused_attention_overrideable_backward"
        ),
        _attention_backward,
    ),
    "_native_multi_head_attention": _multi_head_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
}

RULES: Mapping[str, Rule] = MappingProxyType(_TABLE)
"""Name of an operation of torch, without its namespace and the underscore of in-place ones -> its rule."""


def rule_of(operation: str) -> Rule | None:
    """The rule of a dispatched operation such as `"aten::add_"`; none where there is none.

    Example:
        >>> rule_of("aten::add_") is RULES["add"], rule_of("other::add")
        (True, None)
    """
    namespace, _, name = operation.partition("::")
    if namespace != "aten":
        return None
    return RULES.get(name) or RULES.get(name.removesuffix("_"))
