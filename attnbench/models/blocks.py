"""Residual blocks under torchvision's parameter names, with dilation."""

from __future__ import annotations

from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias whose zero padding keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int, *, pooled: bool) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    norm = nn.BatchNorm2d(out_channels)
    if not pooled:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm)
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), norm)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, the block of ResNet-18 and ResNet-34.

    Equation: `y = ReLU(BN(W2 * ReLU(BN(W1 * x))) + shortcut(x))`.

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions, and of the output.
        stride: stride of the first convolution and of the shortcut.
        dilation: dilation of the first convolution.
        second_dilation: dilation of the second convolution.
        pooled_shortcut: whether the shortcut averages in front of its convolution instead of striding.

    Shape:
        `(B, in_channels, H, W) -> (B, width, ceil(H / stride), ceil(W / stride))`.

    Deviations:
        torchvision refuses a dilated BasicBlock. mmsegmentation dilates the first convolution alone, DRN
        both.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        dilation: int = 1,
        second_dilation: int = 1,
        *,
        pooled_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, dilation=second_dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride, pooled=pooled_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + shortcut
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut, the block of ResNet-50 and ResNet-101.

    Equation: `y = ReLU(BN(W3 ReLU(BN(W2 * ReLU(BN(W1 x))))) + shortcut(x))`.

    Args:
        in_channels: channels of the input.
        width: channels of the first two convolutions; the output has four times as many.
        stride: stride of the 3x3 convolution and of the shortcut.
        dilation: dilation of the 3x3 convolution.
        pooled_shortcut: whether the shortcut averages in front of its convolution instead of striding.

    Shape:
        `(B, in_channels, H, W) -> (B, 4 width, ceil(H / stride), ceil(W / stride))`.

    Deviations:
        The paper puts the stride into the first 1x1 convolution; torchvision, and mmsegmentation's style
        `pytorch`, into the 3x3 one, as here.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, dilation: int = 1, *, pooled_shortcut: bool = False
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, out_channels, stride, pooled=pooled_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + shortcut
        activated: Tensor = self.relu(out)
        return activated
