"""Dual attention of DANet: similar positions and dependent channels, side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.dual_branches import ChannelAttention, ChannelCore, PositionAttention, PositionCore
from operators.interface import AttentionOperator, Auxiliary, Implementation, OperatorSpec, Source, merge_positions
from operators.registry import register


class DualCore(nn.Module):
    """The attention of both branches, which level `core` measures."""

    def __init__(self, position: PositionCore, channel: ChannelCore) -> None:
        super().__init__()
        self.position = position
        self.channel = channel

    def forward(self, query: Tensor, key: Tensor, value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the position branch and the channel branch read, each `(B, C, N)`."""
        return self.position(query, key, value), self.channel(x)


@register
class DualAttention(AttentionOperator):
    """Dual attention of DANet: position attention and channel attention on the same features, summed.

    Equation: `y = position(x) + channel(x)`, each with its own residual and its own zero-initialised `gamma`;
    at initialisation `y = 2 x`.

    Args:
        channels: width `C` of the map.
        reduction: queries and keys of the position branch have `C / reduction` channels.
        num_classes: with it, each branch has a 1x1 classifier (after dropout of 0.1) for a loss of its own,
            as the paper trains; `forward` does not run it. Without it there are no classifiers.
        implementation: `"reference"`, or `"fused"` (position branch by `scaled_dot_product_attention`).

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N C^2 (3 + 2 / reduction) + N^2 C (1 + 1 / reduction)` multiply-accumulates.

    Raises:
        ValueError: if `reduction` does not divide `channels`, or the implementation is unknown.

    Source:
        Fu et al., Dual Attention Network for Scene Segmentation, CVPR 2019, equations (1) to (4), figure 3.

    Deviations:
        The 3x3 convolutions before and after each branch belong to the head: both branches read the same
        features. The channel branch inverts the order of the energies; see `ChannelAttention`.

    Example:
        >>> operator = DualAttention(16, num_classes=3)
        >>> y, logits = operator.forward_with_auxiliary(torch.zeros(2, 16, 5, 7))
        >>> y.shape, {name: tuple(value.shape) for name, value in logits.items()}
        (torch.Size([2, 16, 5, 7]), {'position': (2, 3, 5, 7), 'channel': (2, 3, 5, 7)})
    """

    spec = OperatorSpec(
        name="dual",
        title="DANet",
        source=Source(
            title="Dual Attention Network for Scene Segmentation",
            venue="CVPR",
            year=2019,
            url="https://arxiv.org/abs/1809.02983",
            equations="(1) to (4), figure 3",
        ),
        reach="global",
        growth=2.0,
        implementations=("reference", "fused"),
        auxiliary={"position": Auxiliary("pixel", 1.0), "channel": Auxiliary("pixel", 1.0)},
        deviations=(
            "The 3x3 convolutions around each branch belong to the head; both read the same features.",
            "The channel branch inverts the order of the energies as the authors' code does, unlike (3).",
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        num_classes: int | None = None,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        self.position = PositionAttention(channels, reduction=reduction, implementation=implementation)
        self.channel = ChannelAttention(channels)
        self.core = DualCore(self.position.core, self.channel.core)
        self.auxiliary = nn.ModuleDict()
        if num_classes is not None:
            for name in self.spec.auxiliary:
                self.auxiliary[name] = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Sum of both branches."""
        return torch.add(*self._branches(x))

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of both branches, and the logits of each branch where `num_classes` was given."""
        position, channel = self._branches(x)
        branches = {"position": position, "channel": channel}
        logits = {name: classifier(branches[name]) for name, classifier in self.auxiliary.items()}
        return position + channel, logits

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.expect_map(x)
        position, channel = self.core(*self.position.project(x), merge_positions(x))
        return self.position.merge(x, position), self.channel.merge(x, channel)

    def macs(self, height: int, width: int) -> int:
        """Both branches, without the classifiers of the auxiliary losses."""
        return self.position.macs(height, width) + self.channel.macs(height, width)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Softmax weights `(B, 1, H, W)` of the position branch for the query at `position`."""
        self.expect_position(x, position)
        return self.position.attention(x, position)
