"""Adaptive pyramid context of APCNet: each pixel weighs the regions of several grids by itself and the whole map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, merge_positions
from operators.layers import branch_width, conv_macs, conv_norm_relu, output_channels, pooling_matrix
from operators.registry import register


class RegionCore(nn.Module):
    """For each scale, sums of regions under sigmoid affinities.

    Shape:
        For each scale affinity logits `(B, s^2, N)` and regions `(B, E, s^2)`; each sum is `(B, E, N)`.

    Cost:
        `N s^2 E` multiply-accumulates for each scale.
    """

    def forward(self, *logits_and_regions: Tensor) -> tuple[Tensor, ...]:
        """What each pixel reads of the regions of each scale."""
        pairs = zip(logits_and_regions[::2], logits_and_regions[1::2], strict=True)
        return tuple(torch.bmm(regions, torch.sigmoid(logits)) for logits, regions in pairs)


class AdaptiveContext(nn.Module):
    """What one scale needs around the core: pixels, regions, affinities, and the residual behind them.

    Args:
        channels: width `C` of the map.
        width: channels `E` of the context.
        scale: the map is pooled to `scale x scale` regions.
        fusion: whether a last convolution mixes the channels.
    """

    def __init__(self, channels: int, width: int, scale: int, *, fusion: bool) -> None:
        super().__init__()
        self.scale = scale
        self.region = conv_norm_relu(channels, width)
        self.pixel = conv_norm_relu(channels, width)
        self.whole = conv_norm_relu(width, width)
        self.affinity = nn.Conv2d(width, scale**2, 1)
        self.residual = conv_norm_relu(width, width)
        self.fusion = conv_norm_relu(width, width) if fusion else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels `(B, E, H, W)`, affinity logits `(B, s^2, N)` and regions `(B, E, s^2)`."""
        pixels = self.pixel(x)
        regions = self.region(F.adaptive_avg_pool2d(x, self.scale))  # (B, E, s, s)
        whole = self.whole(pixels.mean(dim=(2, 3), keepdim=True))  # (B, E, 1, 1)
        return pixels, merge_positions(self.affinity(pixels + whole)), merge_positions(regions)

    def merge(self, pixels: Tensor, read: Tensor) -> Tensor:
        """Context `(B, E, H, W)` from the pixels and what they read."""
        context: Tensor = self.fusion(F.relu(self.residual(read.reshape(pixels.shape)) + pixels))
        return context

    def macs(self, pixels: int) -> int:
        """All convolutions, and the product of affinities and regions."""
        area = self.scale**2
        on_map = sum(conv_macs(layer, pixels) for layer in (self.pixel, self.affinity, self.residual, self.fusion))
        return on_map + conv_macs(self.region, area) + conv_macs(self.whole, 1) + pixels * area * self.width

    @property
    def width(self) -> int:
        """Channels `E` of the context."""
        return self.affinity.in_channels


@register
class AdaptivePyramidContext(AttentionOperator):
    """Adaptive pyramid context of APCNet: each pixel sums pooled regions under affinities guided by the whole map.

    Equation: `y = f([x, z^1, ..., z^n])`, for each scale `s` with pixels `p = g(x)`, regions `r = h(pool_s(x))` and
    affinities `a_i = sigmoid(W (p_i + u(mean_j p_j)) + b)` in `s^2` numbers::

        z_i = v(ReLU(w(sum_k a_ik r_k) + p_i))

    `g`, `h`, `u`, `v`, `w` are 1x1 convolutions with batch normalisation and ReLU, to `E` channels; `f` is a 3x3
    convolution of the same kind.

    In training, the batch normalisation of the mean needs two images: it raises PyTorch's `ValueError` for one.

    Args:
        channels: width `C` of the map.
        pool_scales: the scales.
        width: channels `E` of each scale; by default `C / 4`.
        out_channels: channels of the output; by default `C`.
        fusion: whether there is a `v`.

    Shape:
        `(B, C, H, W) -> (B, out_channels, H, W)`; maps smaller than a scale are fine.

    Cost:
        For each scale `N C E + s^2 C E + E^2 + 2 N s^2 E + 2 N E^2` multiply-accumulates (`N E^2` less without
        `fusion`), and `9 N (C + n E) out_channels`.

    Raises:
        ValueError: if `pool_scales` is empty or holds a scale below 1, or another argument is outside its range.

    Source:
        He et al., Adaptive Pyramid Context Network for Semantic Segmentation, CVPR 2019, section 3, figure 2.

    Deviations:
        The authors have not published code; layers and scales are mmsegmentation's: sigmoid affinities, and batch
        normalisation with ReLU in front of the residual sum. The fusing convolution, a part of the head there, maps
        to `C` channels.

    Example:
        >>> AdaptivePyramidContext(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="adaptive_pyramid_context",
        title="APCNet",
        source=Source(
            title="Adaptive Pyramid Context Network for Semantic Segmentation",
            venue="CVPR",
            year=2019,
            url="https://openaccess.thecvf.com/content_CVPR_2019/html/"
            "He_Adaptive_Pyramid_Context_Network_for_Semantic_Segmentation_CVPR_2019_paper.html",
            equations="section 3, figure 2",
        ),
        reach="global",
        growth=1.0,
        deviations=("Layers and scales are mmsegmentation's; the fusing 3x3 convolution maps to C channels.",),
    )
    core: RegionCore

    def __init__(
        self,
        channels: int,
        *,
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
        width: int | None = None,
        out_channels: int | None = None,
        fusion: bool = True,
    ) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        if not pool_scales or min(pool_scales) < 1:
            raise ValueError(f"{owner}: expected pool_scales >= 1, got {tuple(pool_scales)}")
        self.pool_scales = tuple(pool_scales)
        self.width = branch_width(owner, channels, width)
        self.scales = nn.ModuleList(
            AdaptiveContext(channels, self.width, scale, fusion=fusion) for scale in self.pool_scales
        )
        self.core = RegionCore()
        fused = channels + len(self.pool_scales) * self.width
        self.fuse = conv_norm_relu(fused, output_channels(owner, channels, out_channels), 3)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenates the features with the context of each scale and fuses them."""
        self.expect_map(x)
        projected = [scale.project(x) for scale in self._scales()]
        read = self.core(*(tensor for _, logits, regions in projected for tensor in (logits, regions)))
        parts = zip(self._scales(), projected, read, strict=True)
        context = [scale.merge(pixels, sums) for scale, (pixels, _, _), sums in parts]
        fused: Tensor = self.fuse(torch.cat([x, *context], dim=1))  # (B, out_channels, H, W)
        return fused

    def _scales(self) -> list[AdaptiveContext]:
        return [scale for scale in self.scales if isinstance(scale, AdaptiveContext)]

    def macs(self, height: int, width: int) -> int:
        """Each scale, and the fusing 3x3 convolution."""
        pixels = height * width
        return sum(scale.macs(pixels) for scale in self._scales()) + conv_macs(self.fuse, pixels)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, scales, H, W)` with which `position` sums the pixels, by way of the regions' averages."""
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        index = position[0] * width + position[1]
        weights = []
        for scale in self._scales():
            affinity = torch.sigmoid(scale.project(x)[1][:, :, index])  # (B, s^2)
            rows, columns = pooling_matrix(height, scale.scale, x), pooling_matrix(width, scale.scale, x)
            weights.append(rows.t() @ affinity.reshape(-1, scale.scale, scale.scale) @ columns)  # (B, H, W)
        return torch.stack(weights, dim=1)
