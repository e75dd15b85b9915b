"""Global context block of GCNet: one attention map for all queries, then a bottleneck transform."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, divide_channels, merge_positions
from operators.registry import register

Fusion = Literal["add", "mul", "both"]
Pooling = Literal["attention", "average"]


class AttentionPooling(nn.Module):
    """Mean of the features under a softmax over all positions.

    Shape:
        `(B, C, H, W), (B, 1, H, W) -> (B, C, 1, 1)`.
    """

    def forward(self, x: Tensor, energy: Tensor) -> Tensor:
        """Pools `x` with the weights `softmax(energy)`."""
        weights = self.weights(energy)  # (B, 1, H, W)
        context = torch.bmm(merge_positions(x), merge_positions(weights).transpose(1, 2))  # (B, C, 1)
        return context.unsqueeze(-1)  # (B, C, 1, 1)

    @staticmethod
    def weights(energy: Tensor) -> Tensor:
        """Weights `(B, 1, H, W)` that sum to one over the map."""
        return torch.softmax(merge_positions(energy), dim=-1).reshape(energy.shape)


@register
class GlobalContext(AttentionOperator):
    """Global context block of GCNet: pools the map under one attention map, transforms it, and adds it
    everywhere.

    Equation: `y_i = x_i + W_2 ReLU(LN(W_1 sum_j softmax_j(w . x_j + b) x_j))`. With `fusion="mul"` it is
    `y_i = x_i * sigmoid(...)`, with `"both"` the product first and the sum after it, each with its own
    transform. The last convolution `W_2` of each transform starts at zero.

    Args:
        channels: width `C` of the map.
        reduction: the transform's bottleneck has `C / reduction` channels.
        fusion: `"add"`, `"mul"` or `"both"`.
        pooling: `"attention"`, or `"average"` (uniform weights, no mask convolution).

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C + 2 C^2 / reduction` multiply-accumulates (attention pooling, one transform).

    Raises:
        ValueError: if `reduction` does not divide `channels` or leaves a single channel, which layer
            normalisation would map to a constant; if `fusion` or `pooling` is unknown.

    Source:
        Cao et al., GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCV Workshops
        2019, equation (5), figure 4 (d).

    Deviations:
        `reduction` is the paper's 16; mmsegmentation's head takes 4.

    Example:
        >>> GlobalContext(32)(torch.zeros(2, 32, 5, 7)).shape
        torch.Size([2, 32, 5, 7])
    """

    spec = OperatorSpec(
        name="global_context",
        title="GCNet",
        source=Source(
            title="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
            venue="ICCV Workshops",
            year=2019,
            url="https://arxiv.org/abs/1904.11492",
            equations="(5), figure 4 (d)",
        ),
        reach="global",
        growth=1.0,
        deviations=("The default reduction is the paper's 16; mmsegmentation's head takes 4.",),
    )

    def __init__(
        self, channels: int, *, reduction: int = 16, fusion: Fusion = "add", pooling: Pooling = "attention"
    ) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        if fusion not in get_args(Fusion):
            raise ValueError(f"{owner}: expected fusion in {get_args(Fusion)}, got {fusion!r}")
        if pooling not in get_args(Pooling):
            raise ValueError(f"{owner}: expected pooling in {get_args(Pooling)}, got {pooling!r}")
        self.bottleneck = divide_channels(owner, channels, reduction)
        if self.bottleneck < 2:
            raise ValueError(f"{owner}: expected channels >= {2 * reduction} at reduction {reduction}, got {channels}")
        self.mask = nn.Conv2d(channels, 1, 1) if pooling == "attention" else None
        self.core = AttentionPooling() if pooling == "attention" else nn.AdaptiveAvgPool2d(1)
        self.multiply = self._transform() if fusion in ("mul", "both") else None
        self.add = self._transform() if fusion in ("add", "both") else None
        if self.mask is not None:
            nn.init.kaiming_normal_(self.mask.weight, mode="fan_in")
            nn.init.zeros_(_bias(self.mask))

    def _transform(self) -> nn.Sequential:
        last = nn.Conv2d(self.bottleneck, self.channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(_bias(last))
        return nn.Sequential(
            nn.Conv2d(self.channels, self.bottleneck, 1),
            nn.LayerNorm([self.bottleneck, 1, 1]),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Fuses the transformed context with every position."""
        self.expect_map(x)
        context = self.core(x) if self.mask is None else self.core(x, self.mask(x))  # (B, C, 1, 1)
        out = x
        if self.multiply is not None:
            out = out * torch.sigmoid(self.multiply(context))
        if self.add is not None:
            out = out + self.add(context)
        return out

    def macs(self, height: int, width: int) -> int:
        """Mask and pooling where the weights are learnt, and two 1x1 convolutions per transform."""
        pooling = 0 if self.mask is None else 2 * height * width * self.channels
        transforms = (self.multiply is not None) + (self.add is not None)
        return pooling + transforms * 2 * self.channels * self.bottleneck

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Pooling weights `(B, 1, H, W)`, the same for every `position`; they sum to one over the map."""
        self.expect_position(x, position)
        energy = torch.zeros_like(x[:, :1]) if self.mask is None else self.mask(x)
        return AttentionPooling.weights(energy)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
