"""Heads that are neither: their operators stand between other convolutions, or read more than one map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.errors import UsageError
from attnbench.models.layers import ConvNormReLU
from attnbench.models.mmseg.config import HeadConfig, expect
from attnbench.models.mmseg.heads import DualHead, chain
from attnbench.models.mmseg.names import Names, conv_norm, prefixed
from attnbench.models.mmseg.parts import Built, chained, divisor
from operators.asymmetric import AsymmetricFusion, AsymmetricPyramid
from operators.context_encoding import ContextEncoding
from operators.interlaced import InterlacedSparse
from operators.layers import resize
from operators.object_context import ObjectContextual


def dual(config: HeadConfig) -> Built:
    """DANet."""
    reduction = divisor(config, config.channels, config.options["pam_channels"])
    head = DualHead(config.features, config.channels, config.out_channels, reduction=reduction, dropout=config.dropout)
    names: Names = {}
    for theirs, ours in (("pam", "position"), ("cam", "channel")):
        branch = f"branches.{ours}"
        names |= conv_norm(f"{theirs}_in_conv", f"{branch}.reduction")
        names |= conv_norm(f"{theirs}_out_conv", f"{branch}.bottleneck")
        names |= {f"{theirs}.gamma.scale": f"{branch}.operator.gamma", f"{theirs}_conv_seg": f"classifiers.{ours}"}
        names |= {f"{theirs}.{name}_project": f"{branch}.operator.{name}" for name in ("query", "key", "value")}
    return head, names


class AsymmetricBody(nn.Module):
    """ANN between feature maps and classifier: both levels fused, narrowed, and the pyramid block on the result.

    Args:
        in_channels: channels of the low and of the high level.
        channels: channels of what comes out.
        width: channels of keys, queries and values.
        bins: sizes of the grids that keys and values are pooled to.
        dropout: rate at which whole channels are dropped behind the fusion.

    Shape:
        `(B, L, H', W'), (B, C, H, W) -> (B, channels, H, W)`.
    """

    def __init__(
        self, in_channels: tuple[int, int], channels: int, *, width: int, bins: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        low, high = in_channels
        self.fusion = AsymmetricFusion(high, low, width=width, bins=bins)
        self.dropout = nn.Dropout2d(dropout)
        self.bottleneck = ConvNormReLU(high, channels)
        self.operator = AsymmetricPyramid(channels, width=width, bins=bins)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Features at the size of the high level."""
        out: Tensor = self.operator(self.bottleneck(self.dropout(self.fusion(high, low))))
        return out


def asymmetric(config: HeadConfig) -> Built:
    """Asymmetric non-local networks."""
    expect(config, "query_scales", ((1,),))
    if len(config.in_channels) != 2:
        raise UsageError(f"ANNHead: expected two feature maps, got {len(config.in_channels)}")
    body = AsymmetricBody(
        (config.in_channels[0], config.in_channels[1]),
        config.channels,
        width=config.options["project_channels"],
        bins=config.options["key_pool_scales"],
        dropout=config.dropout,
    )
    names = {**conv_norm("fusion.bottleneck", "fusion.fuse"), **conv_norm("context.bottleneck", "operator.fuse")}
    names |= conv_norm("bottleneck", "bottleneck")
    for theirs, ours in (("fusion", "fusion"), ("context", "operator")):
        stage = {"value_project": "value", "out_project": "out", **conv_norm("key_project", "key")}
        # The pyramid block has one projection for both, which is stored under both names.
        stage |= conv_norm("query_project", "query" if theirs == "fusion" else "key")
        names |= prefixed(stage, f"{theirs}.stages.0.", f"{ours}.stage.")
    return chained(config, body, names)


def interlaced(config: HeadConfig) -> Built:
    """Interlaced sparse self-attention."""
    operator = InterlacedSparse(
        config.channels, width=config.options["isa_channels"], window_size=config.options["down_factor"]
    )
    body = chain(reduction=ConvNormReLU(config.features, config.channels), operator=operator)
    names = {**conv_norm("in_conv", "reduction"), **conv_norm("out_conv", "operator.fuse")}
    for theirs, ours in (("global_relation", "long_range"), ("local_relation", "short_range")):
        relation = {"value_project": "value", **conv_norm("output_project", "out")}
        for index in range(2):
            relation |= conv_norm(f"key_project.{index}", f"key.{index}")
            relation |= conv_norm(f"query_project.{index}", f"query.{index}")
        names |= prefixed(relation, f"{theirs}.", f"operator.{ours}.")
    return chained(config, body, names)


class ObjectContextualBody(nn.Module):
    """OCR between features and classifier, on the logits of another head.

    Args:
        in_channels: channels of the features.
        operator: the block, without a classifier of its own.

    Shape:
        `(B, in_channels, H, W), (B, K, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, in_channels: int, operator: ObjectContextual) -> None:
        super().__init__()
        self.reduction = ConvNormReLU(in_channels, operator.channels)
        self.operator = operator

    def forward(self, x: Tensor, prior_logits: Tensor) -> Tensor:
        """Features with the context of the regions that `prior_logits` name."""
        out: Tensor = self.operator(self.reduction(x), prior_logits)
        return out


def object_contextual(config: HeadConfig) -> Built:
    """OCRNet's second head."""
    expect(config, "scale", (1,))
    operator = ObjectContextual(config.channels, num_classes=None, width=config.options["ocr_channels"])
    names = {
        **conv_norm("value_project", "core.value"),
        **conv_norm("out_project", "up"),
        **conv_norm("bottleneck", "fuse"),
    }
    for index in range(2):
        names |= conv_norm(f"key_project.{index}", f"core.key.{index}")
        names |= conv_norm(f"query_project.{index}", f"query.{index}")
    names = {**conv_norm("bottleneck", "reduction"), **prefixed(names, "object_context_block.", "operator.")}
    return chained(config, ObjectContextualBody(config.features, operator), names)


class EncodingBody(nn.Module):
    """EncNet between feature maps and classifier: the last map, others added to it where asked for, and the block.

    Args:
        in_channels: channels of each map.
        operator: the block.
        lateral: whether all maps are mixed in front of the block, otherwise only the last is read.
        align_corners: how the others are resized.

    Shape:
        A `(B, C_i, H_i, W_i)` for each map -> `(B, C, H, W)` at the size of the last.
    """

    def __init__(
        self, in_channels: tuple[int, ...], operator: ContextEncoding, *, lateral: bool, align_corners: bool
    ) -> None:
        super().__init__()
        channels = operator.channels
        self.reduction = ConvNormReLU(in_channels[-1], channels)
        others = in_channels[:-1] if lateral else ()
        self.laterals = nn.ModuleList(ConvNormReLU(width, channels, kernel_size=1) for width in others)
        self.fusion = ConvNormReLU(len(in_channels) * channels, channels) if lateral else None
        self.operator = operator
        self.align_corners = align_corners

    def forward(self, *maps: Tensor) -> Tensor:
        """Features that the encoding has gated."""
        out: Tensor = self.operator(self._mix(maps))
        return out

    def forward_with_auxiliary(self, *maps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gated features, and the logits of the classes' presence."""
        return self.operator.forward_with_auxiliary(self._mix(maps))

    def _mix(self, maps: tuple[Tensor, ...]) -> Tensor:
        x: Tensor = self.reduction(maps[-1])
        if self.fusion is None:
            return x
        others = [
            resize(lateral(other), x.shape[-2:], align_corners=self.align_corners)
            for lateral, other in zip(self.laterals, maps[:-1], strict=True)
        ]
        mixed: Tensor = self.fusion(torch.cat([x, *others], dim=1))
        return mixed


def encoding(config: HeadConfig) -> Built:
    """EncNet."""
    options = config.options
    operator = ContextEncoding(
        config.channels,
        num_codes=options["num_codes"],
        num_classes=config.num_classes if options["use_se_loss"] else None,
    )
    body = EncodingBody(
        config.in_channels, operator, lateral=options["add_lateral"], align_corners=config.align_corners
    )
    names = {**conv_norm("bottleneck", "reduction"), **conv_norm("fusion", "fusion"), "se_layer": "operator.presence"}
    for index in range(len(config.in_channels) - 1):
        names |= conv_norm(f"lateral_convs.{index}", f"laterals.{index}")
    module = {"encoding.0": "core", "encoding.1": "norm", "fc.0": "gate", **conv_norm("encoding_project", "project")}
    names |= prefixed(module, "enc_module.", "operator.")
    auxiliary = ContextEncoding.spec.auxiliary if options["use_se_loss"] else None
    return chained(config, body, names, auxiliary)
