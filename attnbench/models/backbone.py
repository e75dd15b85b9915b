"""Dilated residual networks under torchvision's parameter names, and the backbone that a `Network` names."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from attnbench.config import Network, Stem, near
from attnbench.errors import UsageError
from attnbench.models.blocks import BasicBlock, Bottleneck, conv3x3
from attnbench.models.layers import init_convolutions, resize
from attnbench.models.small import Backbone, SmallBackbone
from attnbench.models.weights import load_weights

__all__ = [
    "Backbone",
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "SmallBackbone",
    "build_backbone",
    "load_weights",
]


_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
_STRIDES = {8: (1, 2, 1, 1), 16: (1, 2, 2, 1)}
_DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2)}


class ResNet(Backbone):
    """Residual network whose last stages trade their stride for dilation, without pooling and classifier.

    Every parameter has torchvision's name, so that a torchvision checkpoint of the depth loads.

    Args:
        depth: 18, 34, 50 or 101.
        output_stride: 8 dilates the last two stages by 2 and 4, 16 the last one by 2.
        stem: `"7x7"`, or the widths of three 3x3 convolutions in its place: `"32-32-64"` (ResNet-C) or
            `"64-64-128"` (EMANet, CCNet).
        multi_grid: dilation multipliers of the last stage's blocks, one each; all ones fit every depth.
        base_channels: width of the first stage; each further stage doubles it, the stem keeps its own.
        contract_dilation: whether the first block of a dilated stage keeps the dilation of the stage before.
        dilate_both: whether both convolutions of a BasicBlock are dilated, depths 18 and 34 alone.
        pooled_shortcut: whether the shortcuts that downsample average in front of their convolution instead
            of striding (ResNet-D).
        feature_stages: stages whose outputs, concatenated, are the features: rising, the last is 4. A stage of
            another size is resized to that of the last.

    Shape:
        `(B, 3, H, W) -> (B, C3, h, w), (B, C, h, w)`: output of the third stage, and the features, of the fourth
        by default; `h = ceil(H / output_stride)`, `w = ceil(W / output_stride)`.

    Raises:
        UsageError: if an argument is outside its vocabulary, or `multi_grid` does not fit the last stage.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; dilation: Chen et al.,
        "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017; deep stem and pooled shortcuts:
        He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019.

    Deviations:
        The default `contract_dilation=True` is the convention of torchvision, of EMANet's code, and of
        mmsegmentation where its flag of that name is set: at output stride 8 the blocks of the last two
        stages have dilations 1, 2, 2, ... and 2, 4, 4, ...; with False they have 2, 2, 2, ... and 4, 4, 4,
        .... `multi_grid` multiplies either: (1, 2, 4) gives 2, 8, 16, which is what EMANet's code builds;
        DeepLab's 4, 8, 16 is False. The default `dilate_both=False` is mmsegmentation's BasicBlock; with
        True, as with Bottleneck, a network of smaller output stride computes the same features as one of
        larger output stride, only more densely, so that pretrained weights keep their meaning.

    Example:
        >>> import torch
        >>> auxiliary, features = ResNet(18, output_stride=16, base_channels=8)(torch.zeros(1, 3, 65, 33))
        >>> tuple(auxiliary.shape), tuple(features.shape)
        ((1, 32, 5, 3), (1, 64, 5, 3))
    """

    def __init__(
        self,
        depth: int,
        *,
        output_stride: int = 8,
        stem: Stem = "7x7",
        multi_grid: tuple[int, ...] = (1, 1, 1),
        base_channels: int = 64,
        contract_dilation: bool = True,
        dilate_both: bool = False,
        pooled_shortcut: bool = False,
        feature_stages: tuple[int, ...] = (4,),
    ) -> None:
        if depth not in _DEPTHS:
            raise UsageError(f"ResNet: expected depth in {tuple(_DEPTHS)}, got {depth!r}")
        if output_stride not in _STRIDES:
            raise UsageError(f"ResNet: expected output_stride in {tuple(_STRIDES)}, got {output_stride!r}")
        if base_channels < 1:
            raise UsageError(f"ResNet: expected base_channels >= 1, got {base_channels!r}")
        if sorted(set(feature_stages) & {1, 2, 3, 4}) != list(feature_stages) or feature_stages[-1:] != (4,):
            raise UsageError(f"ResNet: expected feature_stages of 1 to 4 that rise to 4, got {feature_stages!r}")
        block, counts = _DEPTHS[depth]
        if dilate_both and block is Bottleneck:
            raise UsageError(f"ResNet: expected dilate_both with depth 18 or 34 alone, got depth {depth}")
        grid = _fitted_grid(multi_grid, counts[-1], depth)
        widths = [base_channels * 2**stage for stage in range(4)]
        outputs = [width * block.expansion for width in widths]
        channels = sum(outputs[stage - 1] for stage in feature_stages)
        super().__init__(channels=channels, auxiliary_channels=outputs[2], output_stride=output_stride)
        self.feature_stages = feature_stages

        self.conv1, stem_channels = _stem(stem)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages: list[nn.Sequential] = []
        inputs, before = stem_channels, 1
        for stage, dilation in enumerate(_DILATIONS[output_stride]):
            factors = grid if stage == 3 else (1,) * counts[stage]
            dilations = [
                (before if index == 0 and contract_dilation else dilation) * factor
                for index, factor in enumerate(factors)
            ]
            second_dilations = [dilation * factor if dilate_both else 1 for factor in factors]
            stride = _STRIDES[output_stride][stage]
            shape = (inputs, widths[stage], stride)
            stages.append(_stage(block, *shape, dilations, second_dilations, pooled_shortcut))
            inputs, before = outputs[stage], dilation
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        init_convolutions(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the third stage, and the features."""
        outputs = self.stages(images)
        if len(self.feature_stages) == 1:
            return outputs[2], outputs[3]
        last = outputs[3]
        size = (last.shape[2], last.shape[3])
        chosen = (outputs[stage - 1] for stage in self.feature_stages)
        return outputs[2], torch.cat([x if x.shape[2:] == size else resize(x, size) for x in chosen], dim=1)

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs of all four stages."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        first: Tensor = self.layer1(x)
        second: Tensor = self.layer2(first)
        third: Tensor = self.layer3(second)
        return first, second, third, self.layer4(third)


def _stem(stem: str) -> tuple[nn.Module, int]:
    if stem == "7x7":
        return nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), 64
    if stem not in get_args(Stem):
        raise UsageError(f"ResNet: unknown stem {stem!r}{near(stem, get_args(Stem))}")
    first, second, third = (int(width) for width in stem.split("-"))
    layers = nn.Sequential(
        conv3x3(3, first, stride=2),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        conv3x3(first, second),
        nn.BatchNorm2d(second),
        nn.ReLU(inplace=True),
        conv3x3(second, third),
    )
    return layers, third


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    width: int,
    stride: int,
    dilations: list[int],
    second_dilations: list[int],
    pooled_shortcut: bool,
) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for dilation, second_dilation in zip(dilations, second_dilations, strict=True):
        if issubclass(block, BasicBlock):
            arguments = (inputs, width, stride, dilation, second_dilation)
            blocks.append(block(*arguments, pooled_shortcut=pooled_shortcut))
        else:
            blocks.append(block(inputs, width, stride, dilation, pooled_shortcut=pooled_shortcut))
        inputs, stride = width * block.expansion, 1
    return nn.Sequential(*blocks)


def _fitted_grid(multi_grid: tuple[int, ...], blocks: int, depth: int) -> tuple[int, ...]:
    if all(factor == 1 for factor in multi_grid):
        return (1,) * blocks
    if len(multi_grid) != blocks or min(multi_grid) < 1:
        raise UsageError(
            f"ResNet: expected multi_grid with {blocks} positive multipliers, one for each block of the last "
            f"stage of ResNet-{depth}, got {tuple(multi_grid)}"
        )
    return tuple(multi_grid)


def build_backbone(network: Network) -> Backbone:
    """The backbone that `network` names, with its weights where a file is named.

    Args:
        network: the network; `backbone`, `output_stride`, `stem`, `multi_grid`,
            `dilate_both`, `feature_stages` and `backbone_weights` count.

    Raises:
        UsageError: if the name is unknown, a field does not fit the backbone, or the weights do not.

    Example:
        >>> build_backbone(Network(backbone="small")).channels
        64
    """
    if network.backbone == "small":
        backbone = _build_small(network)
    elif network.backbone in _NAMES:
        backbone = ResNet(
            _NAMES[network.backbone],
            output_stride=network.output_stride,
            stem=network.stem,
            multi_grid=network.multi_grid,
            dilate_both=network.dilate_both,
            feature_stages=network.feature_stages,
        )
    else:
        raise UsageError(f"unknown backbone {network.backbone!r}{near(network.backbone, ('small', *_NAMES))}")
    if network.backbone_weights is not None:
        load_weights(backbone, network.backbone_weights)
    return backbone


_NAMES: dict[Any, int] = {f"resnet{depth}": depth for depth in _DEPTHS}


def _build_small(network: Network) -> Backbone:
    default = Network()
    for name in ("output_stride", "stem", "feature_stages"):
        expected, got = getattr(default, name), getattr(network, name)
        if got != expected:
            raise UsageError(f"backbone 'small': expected {name} {expected!r}, got {got!r}")
    if any(factor != 1 for factor in network.multi_grid):
        raise UsageError(f"backbone 'small': expected multi_grid of ones, got {network.multi_grid}")
    return SmallBackbone()
