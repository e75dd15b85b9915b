"""Controls: what stands in the slot when there is no attention, so that "attention helps" is a visible difference."""

from __future__ import annotations

from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Reach, Source
from operators.registry import register

_SOURCE = Source(
    title="Fully Convolutional Networks for Semantic Segmentation",
    venue="CVPR",
    year=2015,
    url="https://arxiv.org/abs/1411.4038",
)


def _spec(name: str, title: str, reach: Reach, growth: float) -> OperatorSpec:
    return OperatorSpec(name=name, title=title, source=_SOURCE, reach=reach, growth=growth, kind="control")


@register
class Identity(AttentionOperator):
    """Returns its input: the harness without an operator.

    Equation: `y = x`.

    Args:
        channels: width `C` of the map.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        No multiply-accumulate.
    """

    spec = _spec("identity", "Identity", "pixel", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` itself."""
        self.expect_map(x)
        return x

    def macs(self, height: int, width: int) -> int:
        """Zero."""
        return 0


class _Convolution(AttentionOperator):
    """`y = ReLU(BN(W * x))` with a `k x k` kernel, stride 1, the size kept."""

    kernel_size: int

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, channels, self.kernel_size, padding=self.kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, batch normalisation, ReLU."""
        self.expect_map(x)
        out: Tensor = self.relu(self.norm(self.conv(x)))
        return out

    def macs(self, height: int, width: int) -> int:
        """`N k^2 C^2`."""
        return height * width * (self.kernel_size * self.channels) ** 2


@register
class Conv1x1(_Convolution):
    """1x1 convolution: what mixing channels alone buys.

    Equation: `y = ReLU(BN(W x))` at every pixel.

    Args:
        channels: width `C` of the map.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N C^2` multiply-accumulates.
    """

    spec = _spec("conv1x1", "Conv 1x1", "pixel", 1.0)
    kernel_size = 1


@register
class Conv3x3(_Convolution):
    """3x3 convolution: the control that every latency is divided by.

    Equation: `y = ReLU(BN(W * x))`, zero padding 1.

    Args:
        channels: width `C` of the map.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `9 N C^2` multiply-accumulates.
    """

    spec = _spec("conv3x3", "Conv 3x3", "window", 1.0)
    kernel_size = 3
