"""Criss-cross attention: every pixel reads its row and its column, twice (CCNet)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, divide_channels
from operators.registry import register


class CrissCrossAggregation(nn.Module):
    """Affinity over row and column, and the sum that it weighs.

    Equation: `out_u = sum_i A_iu v_i` over the `H + W - 1` positions `i` in the row and the column of `u`;
    `A_u = softmax_i(q_u^T k_i)` is one softmax over both, with the centre counted once.

    Shape:
        `q (B, d, H, W), k (B, d, H, W), v (B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N (H + W) (d + C)` multiply-accumulates: the column's product at the centre is computed, then masked.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The sums."""
        columns, rows = self.weights(q, k)
        in_column = torch.matmul(columns.transpose(1, 2), v.permute(0, 3, 2, 1))  # (B, W, H, C)
        in_row = torch.matmul(rows, v.permute(0, 2, 3, 1))  # (B, H, W, C)
        return in_column.permute(0, 3, 2, 1) + in_row.permute(0, 3, 1, 2)

    def weights(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `(B, H, W, H)` over the pixel's column, 0 at itself, and `(B, H, W, W)` over its row."""
        height = q.shape[2]
        column = torch.matmul(q.permute(0, 3, 2, 1), k.permute(0, 3, 1, 2))  # (B, W, H, H)
        row = torch.matmul(q.permute(0, 2, 3, 1), k.permute(0, 2, 1, 3))  # (B, H, W, W)
        centre = torch.eye(height, dtype=torch.bool, device=q.device)
        column = column.masked_fill(centre, float("-inf")).transpose(1, 2)  # (B, H, W, H)
        joint = torch.softmax(torch.cat((column, row), dim=3), dim=3)  # (B, H, W, H + W)
        return joint[..., :height], joint[..., height:]


@register
class CrissCross(AttentionOperator):
    """Recurrent criss-cross attention: each pass adds what the pixel reads in its row and column.

    Equation: `H'_u = H_u + gamma sum_i A_iu v_i`, repeated `recurrence` times with the same weights. Two
    passes reach every pixel.

    Args:
        channels: width `C` of the map.
        reduction: divisor of the width of query and key, `d = C / reduction`.
        recurrence: number `R` of passes.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `R N (2 C d + C^2 + (H + W) (d + C))` multiply-accumulates.

    Raises:
        ValueError: if `reduction` does not divide `channels` or `recurrence` is below 1.

    Source:
        Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019, arXiv:1811.11721,
        Eq. 1, 2.

    Deviations:
        `gamma`, zero at first, scales what a pass adds, as in the authors' code and mmsegmentation; the
        equation has no scale. The 3x3 convolutions around the passes belong to the head.

    Example:
        >>> operator = CrissCross(16)
        >>> x = torch.randn(2, 16, 5, 7)
        >>> torch.equal(operator(x), x)
        True
    """

    spec = OperatorSpec(
        name="criss_cross",
        title="Criss-cross",
        source=Source(
            title="CCNet: Criss-Cross Attention for Semantic Segmentation",
            venue="ICCV",
            year=2019,
            url="https://arxiv.org/abs/1811.11721",
            equations="Eq. 1 and 2",
        ),
        reach="global",
        growth=1.5,
        deviations=(
            "A zero-initialised gamma scales what a pass adds, as the authors' code has it; Eq. 2 has none.",
            "The 3x3 convolutions around the passes belong to the head.",
        ),
    )
    core: CrissCrossAggregation

    def __init__(self, channels: int, *, reduction: int = 8, recurrence: int = 2) -> None:
        super().__init__(channels)
        if recurrence < 1:
            raise ValueError(f"CrissCross: expected recurrence >= 1, got {recurrence!r}")
        self.embedding = divide_channels("CrissCross", channels, reduction)
        self.recurrence = recurrence
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.core = CrissCrossAggregation()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """`recurrence` passes."""
        self.expect_map(x)
        for _ in range(self.recurrence):
            x = self._pass(x)
        return x

    def _pass(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.gamma * self.core(self.query(x), self.key(x), self.value(x))
        return out

    def macs(self, height: int, width: int) -> int:
        """`R N (2 C d + C^2 + (H + W) (d + C))`."""
        convolutions = 2 * self.channels * self.embedding + self.channels**2
        aggregation = (height + width) * (self.embedding + self.channels)
        return self.recurrence * height * width * (convolutions + aggregation)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)`: row `position` of the product `A_R ... A_1` of the passes' attention maps.

        It follows what is read through the passes and leaves out the residuals, so that it sums to one; of
        one pass it is the attention map itself.
        """
        self.expect_position(x, position)
        maps = []
        for _ in range(self.recurrence):
            maps.append(self.core.weights(self.query(x), self.key(x)))
            x = self._pass(x)
        reading = torch.zeros_like(x[:, 0])  # (B, H, W)
        reading[:, position[0], position[1]] = 1
        for columns, rows in reversed(maps):
            in_column = torch.matmul(reading.transpose(1, 2).unsqueeze(2), columns.transpose(1, 2))  # (B, W, 1, H)
            in_row = torch.matmul(reading.unsqueeze(2), rows)  # (B, H, 1, W)
            reading = in_column.squeeze(2).transpose(1, 2) + in_row.squeeze(2)
        return reading.unsqueeze(1)
