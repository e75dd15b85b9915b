"""Dynamic multi-scale filters of DMNet: each image generates the filters that it is convolved with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source
from operators.layers import branch_width, conv_macs, conv_norm_relu, output_channels
from operators.registry import register


class DynamicConvolutionCore(nn.Module):
    """For each size, convolves every channel of every image with a filter of its own; zero padding keeps the size.

    A filter of even size reaches one pixel further up and left than down and right.

    Shape:
        For each size features `(B, E, H, W)` and filters `(B, E, k, k)`; each result is `(B, E, H, W)`.

    Cost:
        `N k^2 E` multiply-accumulates for each size.
    """

    def forward(self, *features_and_filters: Tensor) -> tuple[Tensor, ...]:
        """The filtered features of each size."""
        pairs = zip(features_and_filters[::2], features_and_filters[1::2], strict=True)
        return tuple(self.convolve(features, filters) for features, filters in pairs)

    @staticmethod
    def convolve(features: Tensor, filters: Tensor) -> Tensor:
        """Each channel of each image is a group of one convolution."""
        size = filters.shape[-1]
        groups = features.shape[0] * features.shape[1]
        before, after = size // 2, (size - 1) // 2
        padded = F.pad(features, (before, after, before, after))
        merged = padded.reshape(1, groups, *padded.shape[-2:])  # (1, B E, H + k - 1, W + k - 1)
        return F.conv2d(merged, filters.reshape(groups, 1, size, size), groups=groups).reshape(features.shape)


class DynamicFilter(nn.Module):
    """What one size needs around the core: the filter from the pooled map, the features, normalisation behind.

    Args:
        channels: width `C` of the map.
        width: channels `E` of the features.
        size: side of the filter, and of the grid that the map is pooled to.
        fusion: whether a last convolution mixes the channels.
    """

    def __init__(self, channels: int, width: int, size: int, *, fusion: bool) -> None:
        super().__init__()
        self.size = size
        self.generate = nn.Conv2d(channels, width, 1)
        self.reduce = conv_norm_relu(channels, width)
        self.norm = nn.BatchNorm2d(width)
        self.fusion = conv_norm_relu(width, width) if fusion else nn.Identity()

    def filters(self, x: Tensor) -> Tensor:
        """Filters `(B, E, k, k)`."""
        generated: Tensor = self.generate(F.adaptive_avg_pool2d(x, self.size))
        return generated

    def finish(self, filtered: Tensor) -> Tensor:
        """Normalisation, ReLU, and fusion."""
        context: Tensor = self.fusion(F.relu(self.norm(filtered)))
        return context

    def macs(self, pixels: int) -> int:
        """All convolutions, the dynamic one included."""
        area = self.size**2
        static = conv_macs(self.reduce, pixels) + conv_macs(self.fusion, pixels) + conv_macs(self.generate, area)
        return static + pixels * area * self.generate.out_channels


@register
class DynamicMultiScale(AttentionOperator):
    """Dynamic multi-scale filters of DMNet: depthwise filters of several sizes, generated from the pooled map.

    Equation: `y = f([x, z^1, ..., z^n])`, for each size `k` with `z = v(ReLU(BN(g(x) * w)))`, where
    `w = W pool_k(x) + b` holds a `k x k` filter for each of `E` channels and `*` convolves channel by channel; `g` and
    `v` are 1x1 convolutions with batch normalisation and ReLU, `f` is a 3x3 convolution of the same kind.

    Args:
        channels: width `C` of the map.
        filter_sizes: the sizes.
        width: channels `E` of each size; by default `C / 4`.
        out_channels: channels of the output; by default `C`.
        fusion: whether there is a `v`.

    Shape:
        `(B, C, H, W) -> (B, out_channels, H, W)`; maps smaller than a filter are fine.

    Cost:
        For each size `N C E + k^2 C E + N k^2 E` multiply-accumulates (and `N E^2` with `fusion`), and
        `9 N (C + n E) out_channels`.

    Raises:
        ValueError: if `filter_sizes` is empty or holds a size below 1, or another argument is outside its range.

    Source:
        He et al., Dynamic Multi-Scale Filters for Semantic Segmentation, ICCV 2019, section 3, figure 2.

    Deviations:
        The authors have not published code; layers and sizes are mmsegmentation's, and `fusion` is off as there. The
        fusing convolution `f`, a part of the head there, maps to `C` channels.

    Example:
        >>> DynamicMultiScale(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="dynamic_multi_scale",
        title="DMNet",
        source=Source(
            title="Dynamic Multi-Scale Filters for Semantic Segmentation",
            venue="ICCV",
            year=2019,
            url="https://openaccess.thecvf.com/content_ICCV_2019/html/"
            "He_Dynamic_Multi-Scale_Filters_for_Semantic_Segmentation_ICCV_2019_paper.html",
            equations="section 3, figure 2",
        ),
        reach="global",
        growth=1.0,
        deviations=(
            "Layers and sizes are mmsegmentation's, without a 1x1 convolution behind each filter: `fusion`.",
            "The fusing 3x3 convolution maps to C channels.",
        ),
    )
    core: DynamicConvolutionCore

    def __init__(
        self,
        channels: int,
        *,
        filter_sizes: tuple[int, ...] = (1, 3, 5, 7),
        width: int | None = None,
        out_channels: int | None = None,
        fusion: bool = False,
    ) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        if not filter_sizes or min(filter_sizes) < 1:
            raise ValueError(f"{owner}: expected filter_sizes >= 1, got {tuple(filter_sizes)}")
        self.filter_sizes = tuple(filter_sizes)
        self.width = branch_width(owner, channels, width)
        self.sizes = nn.ModuleList(
            DynamicFilter(channels, self.width, size, fusion=fusion) for size in self.filter_sizes
        )
        self.core = DynamicConvolutionCore()
        fused = channels + len(self.filter_sizes) * self.width
        self.fuse = conv_norm_relu(fused, output_channels(owner, channels, out_channels), 3)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenates the features with what each filter makes of them and fuses them."""
        self.expect_map(x)
        filtered = self.core(*(tensor for size in self._sizes() for tensor in (size.reduce(x), size.filters(x))))
        context = [size.finish(part) for size, part in zip(self._sizes(), filtered, strict=True)]
        fused: Tensor = self.fuse(torch.cat([x, *context], dim=1))  # (B, out_channels, H, W)
        return fused

    def _sizes(self) -> list[DynamicFilter]:
        return [size for size in self.sizes if isinstance(size, DynamicFilter)]

    def macs(self, height: int, width: int) -> int:
        """Each size, and the fusing 3x3 convolution."""
        pixels = height * width
        return sum(size.macs(pixels) for size in self._sizes()) + conv_macs(self.fuse, pixels)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, sizes E, H, W)` with which the convolutions read at `position`: each channel has its own."""
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        maps = []
        for size in self._sizes():
            filters, side = size.filters(x), size.size
            canvas = filters.new_zeros(*filters.shape[:2], height + side - 1, width + side - 1)
            row, column = position
            canvas[:, :, row : row + side, column : column + side] = filters
            start = side // 2
            maps.append(canvas[:, :, start : start + height, start : start + width])  # (B, E, H, W)
        return torch.cat(maps, dim=1)
