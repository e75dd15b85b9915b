"""Squeeze-and-excitation: a gate for each channel, from the average of the map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, divide_channels
from operators.registry import register


@register
class SqueezeExcitation(AttentionOperator):
    """Squeeze-and-excitation block: scales each channel by a gate that sees the averages of all channels.

    Equation: `y = x * sigmoid(W_2 ReLU(W_1 z))` with the average `z` of the map's pixels.

    Args:
        channels: width `C` of the map.
        reduction: the hidden layer has `C / reduction` units.
        bias: whether both layers have biases.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 C^2 / reduction` multiply-accumulates, whatever the size of the map; averaging and scaling are none.

    Raises:
        ValueError: if `reduction` does not divide `channels`.

    Source:
        Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, arXiv:1709.01507, equations (2)-(4).

    Deviations:
        The layers have no biases, as in the paper's equations; the authors' released models have them (`bias=True`).

    Example:
        >>> SqueezeExcitation(32)(torch.zeros(2, 32, 5, 7)).shape
        torch.Size([2, 32, 5, 7])
    """

    spec = OperatorSpec(
        name="squeeze_excitation",
        title="SE",
        source=Source(
            title="Squeeze-and-Excitation Networks",
            venue="CVPR",
            year=2018,
            url="https://arxiv.org/abs/1709.01507",
            equations="(2)-(4)",
        ),
        reach="global",
        growth=0.0,
        deviations=("The layers have no biases (equations); the authors' released models have them: `bias`.",),
    )

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = False) -> None:
        super().__init__(channels)
        self.hidden = divide_channels(type(self).__name__, channels, reduction)
        self.excite = nn.Sequential(
            nn.Linear(channels, self.hidden, bias=bias),
            nn.ReLU(inplace=True),
            nn.Linear(self.hidden, channels, bias=bias),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels."""
        self.expect_map(x)
        gate: Tensor = self.excite(torch.mean(x, (2, 3)))  # (B, C)
        return x * gate[:, :, None, None]

    def macs(self, height: int, width: int) -> int:
        """Two layers on one vector."""
        return 2 * self.channels * self.hidden
