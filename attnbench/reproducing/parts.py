"""Arrangements of operators that only a published table has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.atrous_pyramid import AtrousSpatialPyramidPooling
from operators.dual_branches import ChannelAttention, PositionAttention
from operators.interface import merge_positions
from operators.layers import conv_norm_relu, resize


class Features(nn.Module):
    """The last features of a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Without those of the stage before."""
        features: Tensor = self.backbone(images)[-1]
        return features


class FinerPyramid(nn.Module):
    """DeepLabV3+ as far as its decoder: the pyramid's output beside a finer map, mixed by two 3x3 convolutions.

    Shape:
        `(B, 2048, h, w), (B, 256, H, W) -> (B, 256, H, W)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = AtrousSpatialPyramidPooling(2048, width=256, out_channels=256, fuse_kernel=1)
        self.finer = conv_norm_relu(256, 48)
        self.fuse = nn.Sequential(conv_norm_relu(304, 256, 3), conv_norm_relu(256, 256, 3))

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        """Features at the size of the finer map."""
        context = resize(self.pyramid(x), finer.shape[-2:])
        fused: Tensor = self.fuse(torch.cat((context, self.finer(finer)), dim=1))
        return fused


class DualSum(nn.Module):
    """Sum of DANet's attentions over positions and over channels.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position = PositionAttention(channels)
        self.channel = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        summed: Tensor = self.position(x) + self.channel(x)
        return summed


class DualBranches(nn.Module):
    """DANet's attentions, each with the 3x3 convolution behind it and without the one in front.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position = nn.Sequential(PositionAttention(channels), conv_norm_relu(channels, channels, 3))
        self.channel = nn.Sequential(ChannelAttention(channels), conv_norm_relu(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        summed: Tensor = self.position(x) + self.channel(x)
        return summed


class Concatenated(nn.Module):
    """A branch, its input beside it, and a 1x1 convolution of both.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, branch: nn.Module, channels: int) -> None:
        super().__init__()
        self.branch = branch
        self.fuse = conv_norm_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Fused."""
        fused: Tensor = self.fuse(torch.cat((self.branch(x), x), dim=1))
        return fused


class AdaptiveRegions(nn.Module):
    """APCNet's pixels and pooled regions at several scales, without residual and fusion.

    Args:
        channels: width `C`.
        scales: sides of the grids that the map is pooled to.

    Shape:
        `(B, C, H, W) -> (B, len(scales) C, H, W)`.
    """

    def __init__(self, channels: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.pixel = nn.ModuleList(conv_norm_relu(channels, channels) for _ in scales)
        self.region = nn.ModuleList(conv_norm_relu(channels, channels) for _ in scales)
        self.affinity = nn.ModuleList(nn.Conv2d(channels, scale**2, 1) for scale in scales)

    def forward(self, x: Tensor) -> Tensor:
        """What the pixels read at each scale."""
        read = []
        for scale, pixel, region, affinity in zip(self.scales, self.pixel, self.region, self.affinity, strict=True):
            regions = merge_positions(region(F.adaptive_avg_pool2d(x, scale)))  # (B, C, s^2)
            weights = merge_positions(affinity(pixel(x)))  # (B, s^2, N)
            read.append(torch.bmm(regions, torch.sigmoid(weights)).reshape(x.shape))
        return torch.cat(read, dim=1)
