"""The small backbone of the embedded task: fast on a laptop, and deliberately short-sighted."""

from __future__ import annotations

from torch import Tensor, nn

from attnbench.models.layers import ConvNormReLU


class Backbone(nn.Module):
    """What a segmentor needs to know of a backbone.

    Its `forward(images)` returns `(auxiliary_features, features)`.

    Args:
        channels: channels of the features.
        auxiliary_channels: channels of the auxiliary features, one stage earlier.
        output_stride: pixels of the image between two positions of the features.
    """

    def __init__(self, channels: int, auxiliary_channels: int, output_stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.auxiliary_channels = auxiliary_channels
        self.output_stride = output_stride


class SmallBackbone(Backbone):
    """Three 3x3 convolutions with strides 2, 2, 1.

    One position of its features sees 15 x 15 pixels. What lies farther away can only arrive through what
    stands behind it, so a task that asks for farther context tells operators apart within seconds of
    training.

    Args:
        widths: channels of the three layers.

    Shape:
        `(B, 3, H, W) -> (B, widths[1], h, w), (B, widths[2], h, w)`, `h = ceil(H / 4)`, `w = ceil(W / 4)`.

    Example:
        >>> import torch
        >>> auxiliary, features = SmallBackbone()(torch.zeros(1, 3, 48, 45))
        >>> tuple(features.shape), SmallBackbone.receptive_field
        ((1, 64, 12, 12), 15)
    """

    strides = (2, 2, 1)
    kernel_size = 3
    receptive_field = 1 + (kernel_size - 1) * (1 + 2 + 4)
    """Height and width in pixels of what one position of the features sees."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__(channels=widths[2], auxiliary_channels=widths[1], output_stride=4)
        inputs = (3, *widths)
        layers = [
            ConvNormReLU(inputs[index], inputs[index + 1], kernel_size=self.kernel_size, stride=stride)
            for index, stride in enumerate(self.strides)
        ]
        self.layer1, self.layer2, self.layer3 = layers

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the second and of the third layer."""
        auxiliary: Tensor = self.layer2(self.layer1(images))
        return auxiliary, self.layer3(auxiliary)
