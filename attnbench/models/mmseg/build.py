"""From a decode head's configuration to a module made of the project's parts, and the names of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from attnbench.errors import UsageError
from attnbench.models.mmseg import attention_heads, context_heads, slot_heads
from attnbench.models.mmseg.config import HeadConfig, head_config
from attnbench.models.mmseg.heads import MMSegHead
from attnbench.models.mmseg.names import Names, load, prefixed
from attnbench.models.mmseg.parts import Built

_BUILDERS: Mapping[str, Callable[[HeadConfig], Built]] = {
    "ANNHead": attention_heads.asymmetric,
    "APCHead": context_heads.adaptive_pyramid,
    "ASPPHead": context_heads.atrous_pyramid,
    "CCHead": slot_heads.criss_cross,
    "DAHead": attention_heads.dual,
    "DMHead": context_heads.dynamic_multi_scale,
    "DNLHead": slot_heads.disentangled,
    "DepthwiseSeparableASPPHead": context_heads.separable_pyramid,
    "EMAHead": slot_heads.ema,
    "EncHead": attention_heads.encoding,
    "FCNHead": slot_heads.fcn,
    "GCHead": slot_heads.global_context,
    "ISAHead": attention_heads.interlaced,
    "LightHamHead": context_heads.hamburger,
    "NLHead": slot_heads.non_local,
    "OCRHead": attention_heads.object_contextual,
    "PSAHead": context_heads.point_wise,
    "PSPHead": context_heads.pyramid_pooling,
}


def decode_head(config: Mapping[str, Any], state_dict: Mapping[str, Tensor] | None = None) -> MMSegHead:
    """The decode head that mmsegmentation builds from `config`, made of the project's operators.

    Args:
        config: the head's configuration, `type` and all.
        state_dict: its parameters under mmsegmentation's names; none for freshly initialised ones.

    Shape:
        A list of feature maps, which the head indexes by `in_index`, -> `(B, num_classes, H, W)`. OCRHead also takes
        the logits of the stage before.

    Raises:
        UsageError: if the head or an option is not supported, or keys are left over or missing.

    Example:
        >>> import torch
        >>> head = decode_head(
        ...     dict(type="CCHead", in_channels=32, channels=16, num_classes=5, in_index=0, norm_cfg=dict(type="BN"))
        ... )
        >>> tuple(head([torch.zeros(2, 32, 7, 9)]).shape)
        (2, 5, 7, 9)
    """
    head, names = build_head(config)
    if state_dict is not None:
        load(head, state_dict, names, str(config["type"]))
    return head


def build_head(config: Mapping[str, Any]) -> tuple[MMSegHead, Names]:
    """A freshly initialised head, and the names of its parameters."""
    full = head_config(config)
    try:
        head, names = _BUILDERS[full.type](full)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{full.type}: {error}") from error
    for module in head.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            module.eps = full.norm.eps
    in_index = full.in_index
    if full.type == "DepthwiseSeparableASPPHead" and full.options["c1_in_channels"]:
        in_index = (*in_index, 0)
    whole = MMSegHead(
        head,
        in_index,
        concat=full.transform == "concat" or full.type == "LightHamHead",
        align_corners=full.align_corners,
    )
    return whole, prefixed({"conv_seg": "classifier", **names}, "", "head.")
