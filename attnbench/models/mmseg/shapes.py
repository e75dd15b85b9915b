"""What the shapes of a head's weights say about its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from attnbench.errors import UsageError

State = Mapping[str, Tensor]
Read = tuple[list[int], dict[str, Any]]
"""Channels of each feature map that the head takes, and its options that can be read."""

_HAM_KWARGS: Mapping[str, Any] = {"MD_S": 1, "MD_R": 16, "train_steps": 6, "eval_steps": 7, "inv_t": 100}


def _outputs(state: State, name: str) -> int:
    return _weight(state, name).shape[0]


def _inputs(state: State, name: str) -> int:
    return _weight(state, name).shape[1]


def _weight(state: State, name: str) -> Tensor:
    weight = state.get(f"{name}.weight")
    if weight is None or weight.ndim < 2:
        raise UsageError(f"checkpoint: expected a weight {name}.weight, got none")
    return weight


def _has(state: State, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def _parts(state: State, prefix: str) -> int:
    """How many numbered parts `prefix` has."""
    return len({name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)})


def _convolutions(state: State) -> Read:
    kernel = _weight(state, "convs.0.conv").shape[-1]
    return [_inputs(state, "convs.0.conv")], {"kernel_size": kernel, "concat_input": _has(state, "conv_cat.")}


def _fcn(state: State) -> Read:
    in_channels, read = _convolutions(state)
    return in_channels, {**read, "num_convs": _parts(state, "convs.")}


def _ema(state: State) -> Read:
    bases = state.get("ema_module.bases")
    if bases is None:
        raise UsageError("checkpoint: expected the bases ema_module.bases, got none")
    read = {
        "ema_channels": _outputs(state, "ema_in_conv.conv"),
        "num_bases": bases.shape[-1],
        "concat_input": _has(state, "conv_cat."),
    }
    return [_inputs(state, "ema_in_conv.conv")], read


def _non_local(state: State) -> Read:
    in_channels, read = _convolutions(state)
    read["reduction"] = _inputs(state, "nl_block.g.conv") // _outputs(state, "nl_block.g.conv")
    if _has(state, "nl_block.concat_project."):
        read["mode"] = "concatenation"
    elif not _has(state, "nl_block.theta."):
        read["mode"] = "gaussian"
    return in_channels, read


def _disentangled(state: State) -> Read:
    in_channels, read = _convolutions(state)
    reduction = _inputs(state, "dnl_block.g.conv") // _outputs(state, "dnl_block.g.conv")
    return in_channels, {**read, "reduction": reduction}


def _global_context(state: State) -> Read:
    in_channels, read = _convolutions(state)
    fusions = [kind for kind in ("channel_add", "channel_mul") if _has(state, f"gc_block.{kind}_conv.")]
    if not fusions:
        raise UsageError("checkpoint: expected gc_block.channel_add_conv or gc_block.channel_mul_conv, got neither")
    transform = f"gc_block.{fusions[0]}_conv.0"
    read["ratio"] = _outputs(state, transform) / _inputs(state, transform)
    read["pooling_type"] = "att" if _has(state, "gc_block.conv_mask.") else "avg"
    read["fusion_types"] = tuple(fusions)
    return in_channels, read


def _dual(state: State) -> Read:
    return [_inputs(state, "pam_in_conv.conv")], {"pam_channels": _outputs(state, "pam.query_project")}


def _asymmetric(state: State) -> Read:
    low, high = (_inputs(state, f"fusion.stages.0.{part}_project.conv") for part in ("key", "query"))
    return [low, high], {"project_channels": _outputs(state, "fusion.stages.0.key_project.conv")}


def _interlaced(state: State) -> Read:
    return [_inputs(state, "in_conv.conv")], {"isa_channels": _outputs(state, "global_relation.key_project.0.conv")}


def _object_contextual(state: State) -> Read:
    width = _outputs(state, "object_context_block.query_project.0.conv")
    return [_inputs(state, "bottleneck.conv")], {"ocr_channels": width}


def _encoding(state: State) -> Read:
    laterals = _parts(state, "lateral_convs.")
    in_channels = [_inputs(state, f"lateral_convs.{index}.conv") for index in range(laterals)]
    codewords = state.get("enc_module.encoding.0.codewords")
    if codewords is None:
        raise UsageError("checkpoint: expected enc_module.encoding.0.codewords, got none")
    read = {"num_codes": len(codewords), "use_se_loss": _has(state, "se_layer."), "add_lateral": laterals > 0}
    # Without lateral connections the head has weights for its last map alone.
    return [*in_channels, _inputs(state, "bottleneck.conv")], read


def _point_wise(state: State) -> Read:
    read: dict[str, Any] = {"psa_type": "bi-direction"} if _has(state, "attention_p.") else {}
    side = math.isqrt(_outputs(state, "attention.1"))
    if side**2 == _outputs(state, "attention.1"):
        read["mask_size"] = (side, side)
    return [_inputs(state, "reduce.conv")], read


def _adaptive_pyramid(state: State) -> Read:
    cells = [_outputs(state, f"acm_modules.{index}.gla") for index in range(_parts(state, "acm_modules."))]
    read = {"pool_scales": tuple(math.isqrt(count) for count in cells), "fusion": _has(state, "acm_modules.0.fusion_")}
    return [_inputs(state, "acm_modules.0.input_redu_conv.conv")], read


def _dynamic_multi_scale(state: State) -> Read:
    fusion = _has(state, "dcm_modules.0.fusion_conv.")
    return [_inputs(state, "dcm_modules.0.input_redu_conv.conv")], {"fusion": fusion}


def _hamburger(state: State) -> Read:
    bases = state.get("hamburger.ham.bases")
    kept = {} if bases is None else {"MD_R": bases.shape[-1]}
    read = {
        "ham_channels": _outputs(state, "squeeze.conv"),
        "ham_kwargs": {**_HAM_KWARGS, **kept, "rand_init": bases is None},
        "norm_cfg": {"type": "GN", "num_groups": 32} if _has(state, "squeeze.gn.") else {"type": "BN"},
    }
    return [_inputs(state, "squeeze.conv")], read


def _atrous_pyramid(state: State) -> Read:
    return [_inputs(state, "image_pool.1.conv")], {}


def _separable_pyramid(state: State) -> Read:
    finer = _has(state, "c1_bottleneck.")
    read = {
        "c1_in_channels": _inputs(state, "c1_bottleneck.conv") if finer else 0,
        "c1_channels": _outputs(state, "c1_bottleneck.conv") if finer else 0,
    }
    return [_inputs(state, "image_pool.1.conv")], read


def _pyramid_pooling(state: State) -> Read:
    return [_inputs(state, "psp_modules.0.1.conv")], {}


READERS: Mapping[str, Callable[[State], Read]] = {
    "ANNHead": _asymmetric,
    "APCHead": _adaptive_pyramid,
    "ASPPHead": _atrous_pyramid,
    "CCHead": _convolutions,
    "DAHead": _dual,
    "DMHead": _dynamic_multi_scale,
    "DNLHead": _disentangled,
    "DepthwiseSeparableASPPHead": _separable_pyramid,
    "EMAHead": _ema,
    "EncHead": _encoding,
    "FCNHead": _fcn,
    "GCHead": _global_context,
    "ISAHead": _interlaced,
    "LightHamHead": _hamburger,
    "NLHead": _non_local,
    "OCRHead": _object_contextual,
    "PSAHead": _point_wise,
    "PSPHead": _pyramid_pooling,
}
"""Type of a head -> what reads its names and shapes."""
