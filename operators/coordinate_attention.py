"""Coordinate attention: gates for the rows and for the columns of each channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source
from operators.registry import register

_FEWEST_HIDDEN = 8


@register
class CoordinateAttention(AttentionOperator):
    """Coordinate attention: scales each pixel by a gate of its row and a gate of its column.

    Equation: `y_ij = x_ij * sigmoid(W_r f(r_i) + b_r) * sigmoid(W_c f(c_j) + b_c)` with the average `r_i` of row `i`,
    the average `c_j` of column `j`, and the shared `f(z) = hardswish(BN(W z + b))`.

    Args:
        channels: width `C` of the map.
        reduction: `f` has `m = C / reduction` channels, rounded down, and at least 8.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 (H + W) C m` multiply-accumulates.

    Raises:
        ValueError: if `reduction` is below 1.

    Source:
        Hou et al., Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, arXiv:2103.02907,
        equations (4)-(9).

    Deviations:
        The floor of 8 channels and the hard swish are those of the authors' code; the paper has `C / reduction` and an
        unnamed non-linearity, and draws the normalisation in its figure alone.

    Example:
        >>> CoordinateAttention(32).eval()(torch.zeros(2, 32, 5, 7)).shape
        torch.Size([2, 32, 5, 7])
    """

    spec = OperatorSpec(
        name="coordinate_attention",
        title="Coordinate attention",
        source=Source(
            title="Coordinate Attention for Efficient Mobile Network Design",
            venue="CVPR",
            year=2021,
            url="https://arxiv.org/abs/2103.02907",
            equations="(4)-(9)",
        ),
        reach="axis",
        growth=0.5,
        deviations=("At least 8 hidden channels and a hard swish, as in the authors' code; the paper names neither.",),
    )

    def __init__(self, channels: int, *, reduction: int = 32) -> None:
        super().__init__(channels)
        if reduction < 1:
            raise ValueError(f"{type(self).__name__}: expected reduction >= 1, got {reduction!r}")
        self.hidden = max(_FEWEST_HIDDEN, channels // reduction)
        self.squeeze = nn.Conv2d(channels, self.hidden, 1)
        self.norm = nn.BatchNorm2d(self.hidden)
        self.row_gate = nn.Conv2d(self.hidden, channels, 1)
        self.column_gate = nn.Conv2d(self.hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scales rows and columns."""
        self.expect_map(x)
        height, width = x.shape[-2:]
        rows = x.mean(3, keepdim=True)  # (B, C, H, 1)
        columns = x.mean(2, keepdim=True).transpose(2, 3)  # (B, C, W, 1)
        hidden = F.hardswish(self.norm(self.squeeze(torch.cat((rows, columns), dim=2))))  # (B, m, H + W, 1)
        rows, columns = torch.split(hidden, [height, width], dim=2)
        row_gate = torch.sigmoid(self.row_gate(rows))  # (B, C, H, 1)
        column_gate = torch.sigmoid(self.column_gate(columns.transpose(2, 3)))  # (B, C, 1, W)
        return x * row_gate * column_gate

    def macs(self, height: int, width: int) -> int:
        """Two 1x1 convolutions on each row and each column."""
        return 2 * (height + width) * self.channels * self.hidden
