"""Linear attention: a positive feature map in place of the softmax lets keys and values be summed once (linear)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.head_attention import merge_heads, position_of, split_heads, to_map, to_tokens
from operators.interface import AttentionOperator, OperatorSpec, Source
from operators.layers import ChannelNorm, head_width
from operators.registry import register

# Keeps the division finite where every feature underflows; the authors' value.
_EPSILON = 1e-6


class KernelAttention(nn.Module):
    """Attention with the similarity `phi(q) . phi(k)`, each head by itself; without parameters.

    Equation: `y_i = phi(q_i)^T S / (phi(q_i) . z + eps)` with `S = sum_j phi(k_j) v_j^T`, `z = sum_j phi(k_j)` and
    `phi(u) = elu(u) + 1`.

    Shape:
        `query (B, h, N, d), key (B, h, M, d), value (B, h, M, D) -> (B, h, N, D)`.

    Cost:
        `h (N + M) d D + h N d` multiply-accumulates.

    Example:
        >>> tokens = torch.randn(2, 8, 35, 4)
        >>> KernelAttention()(tokens, tokens, tokens).shape
        torch.Size([2, 8, 35, 4])
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The sums `y`."""
        reading, read = self.features(query), self.features(key)
        sums = torch.matmul(read.transpose(2, 3), value)  # (B, h, d, D)
        return torch.matmul(reading, sums) / self._normaliser(reading, read)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Weights `(B, h, N, M)`, which `forward` never builds; each row sums to one but for the epsilon."""
        reading, read = self.features(query), self.features(key)
        return torch.matmul(reading, read.transpose(2, 3)) / self._normaliser(reading, read)

    @staticmethod
    def features(u: Tensor) -> Tensor:
        """`phi(u) = elu(u) + 1`, positive in each channel."""
        return F.elu(u) + 1

    @staticmethod
    def _normaliser(reading: Tensor, read: Tensor) -> Tensor:
        """`phi(q_i) . z + eps`, `(B, h, N, 1)`."""
        return torch.matmul(reading, read.sum(2).unsqueeze(3)) + _EPSILON


@register
class LinearAttention(AttentionOperator):
    """Linear attention: multi-head attention whose weights factor, so that its cost is linear in the pixels.

    Equation: `y = x + W_o [head_1; ...; head_h] + b_o`, `head_i = phi(q_i)^T S / (phi(q_i) . z)` with
    `S = sum_j phi(k_j) v_j^T` and `z = sum_j phi(k_j)` over all pixels, `phi(u) = elu(u) + 1`, and
    `[q; k; v] = W norm(x) + b` of `d = C / h` channels in each head.

    Args:
        channels: width `C` of the map.
        num_heads: number `h` of heads, the paper's 8.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `4 N C^2 + 2 N C d + N C` multiply-accumulates.

    Raises:
        ValueError: if `num_heads` does not divide `channels`.

    Source:
        Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        ICML 2020, arXiv:2006.16236, Eq. 4-7.

    Deviations:
        The sublayer alone, `x + attention(norm(x))`: the feed-forward sublayer behind it is left out, and the
        normalisation stands in front. Every pixel reads every pixel: the causal form of Eq. 8-12 has no meaning on a
        map. The denominator has the authors' epsilon of 1e-6, which the equations do not show. Queries and keys are
        not divided by `sqrt(d)`, as in equations and authors' code.

    Example:
        >>> operator = LinearAttention(16)
        >>> operator.attention(torch.randn(2, 16, 5, 7), (0, 0)).shape
        torch.Size([2, 8, 5, 7])
    """

    spec = OperatorSpec(
        name="linear_attention",
        title="Linear attention",
        source=Source(
            title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
            venue="ICML",
            year=2020,
            url="https://arxiv.org/abs/2006.16236",
            equations="Eq. 4-7",
        ),
        reach="global",
        growth=1.0,
        deviations=(
            "The sublayer with its residual and a normalisation in front, without the feed-forward sublayer.",
            "The denominator has the authors' epsilon of 1e-6, which the equations do not show.",
        ),
    )
    core: KernelAttention

    def __init__(self, channels: int, *, num_heads: int = 8) -> None:
        super().__init__(channels)
        self.head_dim = head_width("LinearAttention", channels, num_heads)
        self.num_heads = num_heads
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.core = KernelAttention()
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the heads read."""
        self.expect_map(x)
        read = merge_heads(self.core(*self._project(x)))  # (B, N, C)
        return x + to_map(self.out(read), x)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values `(B, h, N, d)`."""
        parts = self.qkv(to_tokens(self.norm(x))).chunk(3, dim=2)  # 3 x (B, N, C)
        return tuple(split_heads(part, self.num_heads) for part in parts)

    def macs(self, height: int, width: int) -> int:
        """`4 N C^2 + 2 N C d + N C`."""
        return height * width * self.channels * (4 * self.channels + 2 * self.head_dim + 1)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, h, H, W)` of each head, which the forward pass never builds; each sums to one."""
        self.expect_position(x, position)
        query, key, _ = self._project(x)
        weights = self.core.weights(query[:, :, position_of(x, position)], key)  # (B, h, 1, N)
        return torch.unflatten(weights.squeeze(2), 2, x.shape[-2:])
