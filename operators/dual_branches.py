"""Position attention and channel attention of DANet, each alone."""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import (
    AttentionOperator,
    Implementation,
    OperatorSpec,
    Source,
    divide_channels,
    merge_positions,
)
from operators.registry import register


class PositionCore(nn.Module):
    """Both products of position attention; the reference materialises the `N x N` weights.

    Shape:
        `(B, D, N), (B, D, N), (B, C, N) -> (B, C, N)`.
    """

    def __init__(self, implementation: Implementation = "reference") -> None:
        super().__init__()
        self.implementation = implementation

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Reads `value` at the positions whose `key` resembles the `query`."""
        if self.implementation == "fused":
            # The kernels divide by sqrt(D) unless told; DANet does not scale.
            read = F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=1.0
            )  # (B, N, C)
            return read.transpose(1, 2)  # (B, C, N)
        weights = self.weights(query, key)  # (B, N, N)
        return torch.bmm(value, weights.transpose(1, 2))  # (B, C, N)

    @staticmethod
    def weights(query: Tensor, key: Tensor) -> Tensor:
        """Weights `(B, queries, keys)`; each row sums to one."""
        return torch.softmax(torch.bmm(query.transpose(1, 2), key), dim=-1)


class ChannelCore(nn.Module):
    """Both products of channel attention: `softmax(-x x^T)` over the channels, and the channels under it.

    Shape:
        `(B, C, N) -> (B, C, N)`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the channels, the least similar ones most."""
        return torch.bmm(self.weights(x), x)

    @staticmethod
    def weights(x: Tensor) -> Tensor:
        """Weights `(B, C, C)`; each row sums to one."""
        energy = torch.bmm(x, x.transpose(1, 2))  # (B, C, C)
        # The row's maximum, from which the authors subtract, cancels in the softmax; it would only round.
        return torch.softmax(-energy, dim=-1)


class _Branch(AttentionOperator):
    """A residual with a zero-initialised gate."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gamma = nn.Parameter(torch.zeros(1))

    def merge(self, x: Tensor, read: Tensor) -> Tensor:
        """`x + gamma * read`, on the map."""
        return x + self.gamma * read.reshape(x.shape)  # (B, C, H, W)


@register
class PositionAttention(_Branch):
    """Position attention module of DANet: each position reads all positions that resemble it.

    Equation: `y_i = x_i + gamma * sum_j softmax_j(q_i . k_j) v_j` with `q = W_q x + b_q`, `k = W_k x + b_k`,
    `v = W_v x + b_v`; `gamma` starts at zero.

    Args:
        channels: width `C` of the map.
        reduction: queries and keys have `C / reduction` channels.
        implementation: `"reference"` or `"fused"`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N C^2 (1 + 2 / reduction) + N^2 C (1 + 1 / reduction)` multiply-accumulates.

    Raises:
        ValueError: if `reduction` does not divide `channels`, or the implementation is unknown.

    Source:
        Fu et al., Dual Attention Network for Scene Segmentation, CVPR 2019, equations (1) and (2).

    Deviations:
        The 3x3 convolutions before and after the branch belong to the head.

    Example:
        >>> PositionAttention(16)(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="position_attention",
        title="DANet position",
        source=Source(
            title="Dual Attention Network for Scene Segmentation",
            venue="CVPR",
            year=2019,
            url="https://arxiv.org/abs/1809.02983",
            equations="(1) and (2)",
        ),
        reach="global",
        growth=2.0,
        deviations=("The 3x3 convolutions before and after the branch belong to the head.",),
        implementations=("reference", "fused"),
    )

    core: PositionCore

    def __init__(self, channels: int, *, reduction: int = 8, implementation: Implementation = "reference") -> None:
        super().__init__(channels)
        if implementation not in get_args(Implementation):
            raise ValueError(
                f"{type(self).__name__}: expected implementation in {get_args(Implementation)}, got {implementation!r}"
            )
        self.embedding = divide_channels(type(self).__name__, channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.core = PositionCore(implementation)

    def forward(self, x: Tensor) -> Tensor:
        """Adds to every position what it reads."""
        self.expect_map(x)
        return self.merge(x, self.core(*self.project(x)))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys `(B, C / reduction, N)` and values `(B, C, N)`."""
        return merge_positions(self.query(x)), merge_positions(self.key(x)), merge_positions(self.value(x))

    def macs(self, height: int, width: int) -> int:
        """Three projections and two products over all pairs of positions."""
        pixels = height * width
        projections = pixels * self.channels * (2 * self.embedding + self.channels)
        return projections + pixels**2 * (self.embedding + self.channels)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Softmax weights `(B, 1, H, W)` over the keys for the query at `position`."""
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        query, key, _ = self.project(x)
        index = position[0] * width + position[1]
        weights = self.core.weights(query[:, :, index : index + 1], key)  # (B, 1, N)
        return weights.reshape(-1, 1, height, width)  # (B, 1, H, W)


@register
class ChannelAttention(_Branch):
    """Channel attention module of DANet: each channel reads all channels, the least similar most.

    Equation: `y_c = x_c + gamma * sum_d softmax_d(max_e(x_c . x_e) - x_c . x_d) x_d`, with the inner products
    over all positions; `gamma` starts at zero.

    The authors' code inverts the order of the energies, as above, where equation (3) of the paper prints
    `softmax_d(x_c . x_d)`. It is not there for numerical stability: the least similar channels get the most
    weight, and the authors report that the other order performs worse.

    Args:
        channels: width `C` of the map.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C^2` multiply-accumulates. The energies sum `N` products without scaling, so that float16
        overflows on large maps.

    Source:
        Fu et al., Dual Attention Network for Scene Segmentation, CVPR 2019, equations (3) and (4).

    Deviations:
        The order of the energies is that of the authors' code and mmsegmentation, inverted as above.

    Example:
        >>> ChannelAttention(16)(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="channel_attention",
        title="DANet channel",
        source=Source(
            title="Dual Attention Network for Scene Segmentation",
            venue="CVPR",
            year=2019,
            url="https://arxiv.org/abs/1809.02983",
            equations="(3) and (4)",
        ),
        reach="global",
        growth=1.0,
        deviations=("The order of the energies is inverted as in the authors' code, unlike (3).",),
    )

    core: ChannelCore

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.core = ChannelCore()

    def forward(self, x: Tensor) -> Tensor:
        """Adds to every channel what it reads."""
        self.expect_map(x)
        return self.merge(x, self.core(merge_positions(x)))

    def macs(self, height: int, width: int) -> int:
        """Two products over all pairs of channels."""
        return 2 * height * width * self.channels**2
