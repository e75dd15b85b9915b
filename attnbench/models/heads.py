"""Decode head with the slot that an operator sits in, linear head without one, and auxiliary head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attnbench.errors import UsageError
from attnbench.models.layers import ConvNormReLU, classifier
from operators.interface import AttentionOperator, Auxiliary


class DecodeHead(nn.Module):
    """From a backbone's features to logits, by way of an operator.

    Equation: `x = ConvNormReLU(features)`, `y = ConvNormReLU(operator(x))`, with `concat_input`
    `y <- ConvNormReLU([features; y])`, `logits = W Dropout2d(y) + b`; the convolutions are 3x3,
    the first `reduction_kernel` wide.

    Args:
        in_channels: channels of the features.
        num_classes: classes of the logits.
        operator: what sits in the slot; its `channels` are the slot's.
        channels: channels behind the slot.
        reduction_kernel: kernel of the convolution in front of the slot.
        concat_input: whether the features are concatenated to what comes out of the slot and mixed by a
            further convolution.
        dropout: rate at which whole channels are dropped in front of the classifier.

    Shape:
        `(B, in_channels, H, W) -> (B, num_classes, H, W)`.

    Cost:
        `N (k^2 in_channels C + 9 C channels + channels num_classes)` multiply-accumulates around the
        operator's, `C` being the slot's channels and `k` the first kernel; `concat_input` adds
        `9 N (in_channels + channels) channels`.

    Raises:
        UsageError: if `num_classes` is not positive or `dropout` not in [0, 1).

    Source:
        The head that EMANet, CCNet and mmsegmentation put around their operators.

    Example:
        >>> import torch
        >>> from operators.controls import Identity
        >>> head = DecodeHead(32, 5, Identity(16), channels=8)
        >>> tuple(head(torch.zeros(2, 32, 7, 9)).shape)
        (2, 5, 7, 9)
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        operator: AttentionOperator,
        *,
        channels: int = 256,
        reduction_kernel: int = 3,
        concat_input: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _expect_settings("DecodeHead", num_classes, dropout)
        self.num_classes = num_classes
        self.reduction = ConvNormReLU(in_channels, operator.channels, kernel_size=reduction_kernel)
        self.operator = operator
        self.auxiliary: Mapping[str, Auxiliary] = dict(operator.spec.auxiliary)
        self.bottleneck = ConvNormReLU(operator.channels, channels)
        self.fusion = ConvNormReLU(in_channels + channels, channels) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits at the features' size."""
        return self._classify(features, self.operator(self.reduction(features)))

    def forward_with_auxiliary(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the logits of each extra loss that the operator declares."""
        out, auxiliary = self.operator.forward_with_auxiliary(self.reduction(features))
        return self._classify(features, out), auxiliary

    def _classify(self, features: Tensor, out: Tensor) -> Tensor:
        out = self.bottleneck(out)
        if self.fusion is not None:
            out = self.fusion(torch.cat([features, out], dim=1))
        logits: Tensor = self.classifier(self.dropout(out))
        return logits


class LinearHead(nn.Module):
    """A 1x1 classifier on the backbone's features: what they are worth with neither operator nor context.

    Equation: `logits = W Dropout2d(features) + b`.

    Args:
        in_channels: channels of the features.
        num_classes: classes of the logits.
        dropout: rate at which whole channels are dropped in front of the classifier.

    Shape:
        `(B, in_channels, H, W) -> (B, num_classes, H, W)`.

    Cost:
        `N in_channels num_classes` multiply-accumulates.

    Raises:
        UsageError: if `num_classes` is not positive or `dropout` not in [0, 1).
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        _expect_settings("LinearHead", num_classes, dropout)
        self.num_classes = num_classes
        self.auxiliary: Mapping[str, Auxiliary] = {}
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(in_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits at the features' size."""
        logits: Tensor = self.classifier(self.dropout(features))
        return logits

    def forward_with_auxiliary(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and no extra loss."""
        return self(features), {}


class FCNHead(nn.Module):
    """3x3 convolution and classifier: the auxiliary head on the features one stage before the last.

    Equation: `logits = W Dropout2d(ConvNormReLU(features)) + b`.

    Args:
        in_channels: channels of the features.
        num_classes: classes of the logits.
        channels: channels in front of the classifier.
        dropout: rate at which whole channels are dropped in front of the classifier.

    Shape:
        `(B, in_channels, H, W) -> (B, num_classes, H, W)`.

    Cost:
        `N (9 in_channels channels + channels num_classes)` multiply-accumulates.

    Raises:
        UsageError: if `num_classes` is not positive or `dropout` not in [0, 1).

    Source:
        Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, as mmsegmentation
        has it.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        _expect_settings("FCNHead", num_classes, dropout)
        self.num_classes = num_classes
        self.conv = ConvNormReLU(in_channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits at the features' size."""
        logits: Tensor = self.classifier(self.dropout(self.conv(features)))
        return logits


def _expect_settings(owner: str, num_classes: int, dropout: float) -> None:
    if num_classes < 1:
        raise UsageError(f"{owner}: expected num_classes >= 1, got {num_classes!r}")
    if not 0 <= dropout < 1:
        raise UsageError(f"{owner}: expected dropout in [0, 1), got {dropout!r}")
