"""Heads that are a classifier behind an operator that gathers context and fuses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.errors import UsageError
from attnbench.models.layers import ConvNormReLU
from attnbench.models.mmseg.config import HeadConfig, Norm, expect
from attnbench.models.mmseg.heads import chain
from attnbench.models.mmseg.names import Names, conv_norm
from attnbench.models.mmseg.parts import Built, chained, divisor
from operators.adaptive_pyramid import AdaptivePyramidContext
from operators.atrous_pyramid import AtrousSpatialPyramidPooling, SeparableAtrousSpatialPyramidPooling
from operators.dynamic_multi_scale import DynamicMultiScale
from operators.hamburger import Hamburger
from operators.layers import resize, separable_conv_norm_relu
from operators.point_wise import PointWiseSpatialAttention
from operators.pyramid_pooling import PyramidPooling

_SEPARABLE = ("depthwise", "pointwise")


def pyramid_pooling(config: HeadConfig) -> Built:
    """PSPNet."""
    bins = config.options["pool_scales"]
    operator = PyramidPooling(
        config.features,
        bins=bins,
        reduction=divisor(config, config.features, config.channels),
        align_corners=config.align_corners,
    )
    operator.fuse = ConvNormReLU(config.features + len(bins) * config.channels, config.channels)
    names = conv_norm("bottleneck", "fuse")
    for index in range(len(bins)):
        grid = f"psp_modules.{index}.1"
        names |= {f"{grid}.conv": f"grids.{index}.1", f"{grid}.bn": f"grids.{index}.2"}
    return chained(config, operator, names)


def atrous_pyramid(config: HeadConfig) -> Built:
    """DeepLabV3."""
    dilations = config.options["dilations"]
    operator = AtrousSpatialPyramidPooling(
        config.features, dilations=dilations, width=config.channels, out_channels=config.channels
    )
    names = {**conv_norm("image_pool.1", "image"), **conv_norm("bottleneck", "fuse")}
    for index in range(len(dilations)):
        names |= conv_norm(f"aspp_modules.{index}", f"branches.{index}")
    return chained(config, operator, names)


class SeparablePyramid(nn.Module):
    """DeepLabV3+'s decoder: the pyramid's output is resized to a finer map, concatenated to it, and mixed.

    Args:
        operator: the pyramid.
        channels: channels of its output, and of what comes out.
        finer: channels of the finer map, and to how many they are reduced; none for no finer map.
        align_corners: how the output is resized.

    Shape:
        `(B, C, H, W), (B, C', H', W') -> (B, channels, H', W')`.
    """

    def __init__(
        self, operator: nn.Module, channels: int, finer: tuple[int, int] | None, *, align_corners: bool
    ) -> None:
        super().__init__()
        self.operator = operator
        self.align_corners = align_corners
        self.finer = None if finer is None else ConvNormReLU(*finer, kernel_size=1)
        concatenated = channels + (0 if finer is None else finer[1])
        self.fuse = nn.Sequential(
            separable_conv_norm_relu(concatenated, channels, 3), separable_conv_norm_relu(channels, channels, 3)
        )

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        """Features at the size of the finer map."""
        out: Tensor = self.operator(x)
        if self.finer is not None:
            assert finer is not None
            reduced = self.finer(finer)
            out = resize(out, reduced.shape[-2:], align_corners=self.align_corners)
            out = torch.cat([out, reduced], dim=1)
        fused: Tensor = self.fuse(out)
        return fused


def separable_pyramid(config: HeadConfig) -> Built:
    """DeepLabV3+."""
    options, channels = config.options, config.channels
    operator = SeparableAtrousSpatialPyramidPooling(
        config.features, dilations=options["dilations"], width=channels, out_channels=channels
    )
    finer = (options["c1_in_channels"], options["c1_channels"]) if options["c1_in_channels"] else None
    body = SeparablePyramid(operator, channels, finer, align_corners=config.align_corners)
    names = {**conv_norm("image_pool.1", "operator.image"), **conv_norm("bottleneck", "operator.fuse")}
    names |= conv_norm("c1_bottleneck", "finer")
    for index, dilation in enumerate(options["dilations"]):
        branch = f"aspp_modules.{index}", f"operator.branches.{index}"
        names |= conv_norm(*branch) if dilation == 1 else _separable(*branch)
    for index in range(2):
        names |= _separable(f"sep_bottleneck.{index}", f"fuse.{index}")
    return chained(config, body, names)


def _separable(theirs: str, ours: str) -> Names:
    depthwise, pointwise = (conv_norm(f"{theirs}.{part}_conv", f"{ours}.{part}") for part in _SEPARABLE)
    return {**depthwise, **pointwise}


def adaptive_pyramid(config: HeadConfig) -> Built:
    """APCNet."""
    options = config.options
    operator = AdaptivePyramidContext(
        config.features,
        pool_scales=options["pool_scales"],
        width=config.channels,
        out_channels=config.channels,
        fusion=options["fusion"],
    )
    parts = {
        "pooled_redu_conv": "region",
        "input_redu_conv": "pixel",
        "global_info": "whole",
        "residual_conv": "residual",
        "fusion_conv": "fusion",
    }
    names = conv_norm("bottleneck", "fuse")
    for index in range(len(options["pool_scales"])):
        names[f"acm_modules.{index}.gla"] = f"scales.{index}.affinity"
        for theirs, ours in parts.items():
            names |= conv_norm(f"acm_modules.{index}.{theirs}", f"scales.{index}.{ours}")
    return chained(config, operator, names)


def dynamic_multi_scale(config: HeadConfig) -> Built:
    """DMNet."""
    options = config.options
    operator = DynamicMultiScale(
        config.features,
        filter_sizes=options["filter_sizes"],
        width=config.channels,
        out_channels=config.channels,
        fusion=options["fusion"],
    )
    names = conv_norm("bottleneck", "fuse")
    for index in range(len(options["filter_sizes"])):
        theirs, ours = f"dcm_modules.{index}", f"sizes.{index}"
        names |= {f"{theirs}.filter_gen_conv": f"{ours}.generate", f"{theirs}.norm": f"{ours}.norm"}
        names |= conv_norm(f"{theirs}.input_redu_conv", f"{ours}.reduce")
        names |= conv_norm(f"{theirs}.fusion_conv", f"{ours}.fusion")
    return chained(config, operator, names)


def point_wise(config: HeadConfig) -> Built:
    """PSANet, with its projection's padding."""
    options = config.options
    kind = options["psa_type"]
    expect(config, "psa_type", ("collect", "distribute", "bi-direction"))
    if options["compact"] and kind == "collect":
        # A compact mask is transposed where the paper's is not: what is collected is distributed.
        kind = "distribute"
    operator = PointWiseSpatialAttention(
        config.features,
        psa_type=kind,
        mask_size=options["mask_size"],
        width=config.channels,
        out_channels=config.channels,
        compact=options["compact"],
        shrink_factor=options["shrink_factor"],
        softmax=options["psa_softmax"],
        normalization_factor=options["normalization_factor"],
        proj_padding=1,
        align_corners=config.align_corners,
    )
    names = {**conv_norm("proj", "proj"), **conv_norm("bottleneck", "fuse")}
    branches = {"": "distribute" if kind == "distribute" else "collect", "_p": "distribute"}
    for suffix, direction in branches.items():
        ours = f"branches.{direction}"
        if suffix and kind != "bi-direction":
            continue
        names |= conv_norm(f"reduce{suffix}", f"{ours}.reduce")
        names |= conv_norm(f"attention{suffix}.0", f"{ours}.adapt")
        names[f"attention{suffix}.1"] = f"{ours}.score"
    return chained(config, operator, names)


def hamburger(config: HeadConfig) -> Built:
    """The light hamburger head of SegNeXt."""
    options, width = dict(config.options["ham_kwargs"]), config.options["ham_channels"]
    if options.pop("MD_S", 1) != 1:
        raise UsageError(f"LightHamHead: expected MD_S 1, got {config.options['ham_kwargs']['MD_S']!r}")
    # The temperature is an option of Hamburger's other decompositions, which mmsegmentation has not.
    options.pop("inv_t", None)
    operator = Hamburger(
        width,
        num_bases=options.pop("MD_R", 64),
        train_steps=options.pop("train_steps", 6),
        eval_steps=options.pop("eval_steps", 7),
        gradient="through_time",
        random_bases=options.pop("rand_init", True),
        num_groups=config.norm.groups if config.norm.kind == "GN" else None,
    )
    if options:
        raise UsageError(f"LightHamHead: unknown key {sorted(options)[0]!r} in ham_kwargs")
    body = chain(
        squeeze=_pointwise(config.features, width, config.norm),
        operator=operator,
        align=_pointwise(width, config.channels, config.norm),
    )
    norm = config.norm.kind.lower()
    names = {**conv_norm("squeeze", "squeeze", norm=norm), **conv_norm("align", "align", norm=norm)}
    names |= {"hamburger.ham_in.conv": "operator.lower", "hamburger.ham_out.conv": "operator.upper"}
    names |= {"hamburger.ham.bases": "operator.core.bases", f"hamburger.ham_out.{norm}": "operator.norm"}
    return chained(config, body, names)


def _pointwise(in_channels: int, out_channels: int, norm: Norm) -> ConvNormReLU:
    layer = ConvNormReLU(in_channels, out_channels, kernel_size=1)
    if norm.kind == "GN":
        layer.norm = nn.GroupNorm(norm.groups, out_channels)
    return layer
