"""Nystrom attention: softmax attention rebuilt from a few landmarks and an iterated pseudoinverse (Nystromformer)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.head_attention import HeadAttention, merge_heads, position_of, split_heads, to_map, to_tokens
from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source
from operators.layers import ChannelNorm, head_width
from operators.registry import register


class NystromApproximation(nn.Module):
    """Attention through `m` landmarks, each head by itself; without parameters.

    Equation: `y = A(q, k~) A(q~, k~)^+ A(q~, k) v` with `A(q, k) = softmax(q k^T / sqrt(d))`, landmarks `q~` and `k~`
    that are means over `m` segments of the sequence, and the pseudoinverse by `pseudoinverse`. Sequences of `m` tokens
    or fewer have the softmax attention itself, `y = A(q, k) v`.

    Args:
        width: `d`, channels of a head's queries and keys.
        num_landmarks: `m`.
        iterations: `T`, steps towards the pseudoinverse.
        implementation: `"reference"` builds the three matrices and multiplies them from both sides towards the
            values. `"fused"` builds the middle one alone and multiplies from the values outwards.

    Shape:
        `query, key, value (B, h, N, d) -> (B, h, N, d)`.

    Cost:
        For `N > m`, `h (4 N m d + m^2 d + 4 T m^3 + N m^2)` multiply-accumulates; fused, `m^2 d` in place of `N m^2`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> tokens = torch.randn(2, 8, 35, 4)
        >>> NystromApproximation(4, num_landmarks=6)(tokens, tokens, tokens).shape
        torch.Size([2, 8, 35, 4])
    """

    def __init__(
        self, width: int, *, num_landmarks: int = 64, iterations: int = 6, implementation: Implementation = "reference"
    ) -> None:
        super().__init__()
        for name, value in {"num_landmarks": num_landmarks, "iterations": iterations}.items():
            if value < 1:
                raise ValueError(f"NystromApproximation: expected {name} >= 1, got {value!r}")
        self.width, self.num_landmarks, self.iterations = width, num_landmarks, iterations
        self.softmax = HeadAttention(width, implementation=implementation)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The sums `y`."""
        if query.shape[2] <= self.num_landmarks:
            out: Tensor = self.softmax(query, key, value)
            return out
        # The inverse has large entries of both signs that cancel: bfloat16 leaves nothing of their sum.
        precise = torch.promote_types(value.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            read = self._through_landmarks(query.to(precise), key.to(precise), value.to(precise))
        return read.to(value.dtype)

    def _through_landmarks(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries, keys = self.landmarks(query), self.landmarks(key)
        inverse = self.pseudoinverse(self.softmax.weights(queries, keys))  # (B, h, m, m)
        gathered = self.softmax(queries, key, value)  # (B, h, m, d)
        if self.softmax.fused:
            out: Tensor = self.softmax(query, keys, torch.matmul(inverse, gathered))
            return out
        return torch.matmul(torch.matmul(self.softmax.weights(query, keys), inverse), gathered)

    def weights(self, query: Tensor, key: Tensor, rows: slice) -> Tensor:
        """Weights `(B, h, rows, N)` of some of the queries; they may be negative and sum to one in the limit alone."""
        reading = query[:, :, rows]
        if query.shape[2] <= self.num_landmarks:
            return self.softmax.weights(reading, key)
        queries, keys = self.landmarks(query), self.landmarks(key)
        inverse = self.pseudoinverse(self.softmax.weights(queries, keys))
        return self.softmax.weights(reading, keys) @ inverse @ self.softmax.weights(queries, key)

    def landmarks(self, tokens: Tensor) -> Tensor:
        """Means `(B, h, m, d)` over segments whose lengths differ by one at most, the shorter ones first."""
        # a tracer has tensors for sizes, which divmod does not take
        short, longer = divmod(int(tokens.shape[2]), self.num_landmarks)
        border = (self.num_landmarks - longer) * short
        first = torch.unflatten(tokens[:, :, :border], 2, (-1, short)).mean(3)
        if not longer:
            return first
        last = torch.unflatten(tokens[:, :, border:], 2, (longer, short + 1)).mean(3)
        return torch.cat((first, last), dim=2)

    def pseudoinverse(self, matrix: Tensor) -> Tensor:
        """`T` steps towards the Moore-Penrose inverse of `A` `(B, h, m, m)`, whose rows sum to one.

        Equation: `Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4` from `Z = A^T / (|A|_1 |A|_inf)`.
        """
        # Norms of each matrix by itself: a maximum over the batch would let images change each other.
        columns, rows = (matrix.sum(dim, keepdim=True).amax((2, 3), keepdim=True) for dim in (2, 3))
        inverse = matrix.transpose(2, 3) / (columns * rows)
        identity = torch.eye(matrix.shape[2], dtype=matrix.dtype, device=matrix.device)
        for _ in range(self.iterations):
            product = torch.matmul(matrix, inverse)
            inner = 15 * identity - torch.matmul(product, 7 * identity - product)
            inverse = torch.matmul(inverse, 13 * identity - torch.matmul(product, inner)) / 4
        return inverse

    def macs(self, positions: int, num_heads: int) -> int:
        """Multiply-accumulates for `N` tokens in `h` heads."""
        landmarks = self.num_landmarks
        if positions <= landmarks:
            return 2 * num_heads * positions**2 * self.width
        products = 4 * positions * landmarks * self.width + landmarks**2 * self.width
        association = landmarks**2 * (self.width if self.softmax.fused else positions)
        return num_heads * (products + association + 4 * self.iterations * landmarks**3)


@register
class NystromAttention(AttentionOperator):
    """Nystrom attention: multi-head attention whose `N x N` weights are rebuilt from `m` landmarks.

    Equation: `y = x + W_o [head_1; ...; head_h] + b_o`, `head = A(q, k~) A(q~, k~)^+ A(q~, k) v + conv(v)` with
    `A(q, k) = softmax(q k^T / sqrt(d))`, the approximation of `NystromApproximation`, a convolution along the
    sequence that each head has one kernel for, and `[q; k; v] = W norm(x) + b` of `d = C / h` channels in each head.

    Args:
        channels: width `C` of the map.
        num_heads: number `h` of heads; 8 are 64 channels a head at `C = 512`.
        num_landmarks: number `m` of landmarks; maps of `m` pixels or fewer have the softmax attention itself.
        iterations: steps `T` towards the pseudoinverse.
        kernel_size: odd number `k` of taps of the convolution of the values; `None` is without it.
        implementation: `"reference"` multiplies three matrices as the paper does. `"fused"` builds neither of the
            two large ones, with `scaled_dot_product_attention`, and multiplies from the values outwards.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        For `N > m`, `4 N C^2 + 4 N m C + m^2 C + 4 T h m^3 + h N m^2 + N C k` multiply-accumulates; fused, `m^2 C` in
        place of `h N m^2`. Otherwise `4 N C^2 + 2 N^2 C + N C k`.

    Raises:
        ValueError: if an argument is outside its range, or `num_heads` does not divide `channels`.

    Source:
        Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention", AAAI 2021,
        arXiv:2102.03902, algorithm 1 and figure 3.

    Deviations:
        The sublayer alone, `x + attention(norm(x))`: the feed-forward sublayer behind it is left out. The sequence is
        the map row by row, as in the authors' image classification: segments and the convolution's taps run over the
        ends of rows. The iteration starts from the norms of each matrix, as in the paper; the authors' first code
        takes the largest of all matrices, so that the images of a batch change each other. Segments of a length that
        does not divide differ by one, as in their image classification. The convolution has the 35 taps of their
        long-range experiments; their image classification has none (`kernel_size=None`). The approximation is
        computed in float32 where the map is in a shorter type. Dropout is left out.

    Example:
        >>> operator = NystromAttention(16, num_landmarks=4)
        >>> operator.attention(torch.randn(2, 16, 5, 7), (0, 0)).shape
        torch.Size([2, 8, 5, 7])
    """

    spec = OperatorSpec(
        name="nystrom_attention",
        title="Nystrom attention",
        source=Source(
            title="Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention",
            venue="AAAI",
            year=2021,
            url="https://arxiv.org/abs/2102.03902",
            equations="algorithm 1, figure 3",
        ),
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=(
            "The sublayer with its normalisation and residual, without the feed-forward sublayer.",
            "The sequence is the map row by row: segments and the taps of the convolution run over the ends of rows.",
            "The pseudoinverse starts from the norms of each matrix (paper); the authors' first code takes the largest "
            "of the batch.",
            "The convolution of the values has the 35 taps of the authors' long-range experiments; their image "
            "classification has none: `kernel_size`.",
        ),
    )
    core: NystromApproximation

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        num_landmarks: int = 64,
        iterations: int = 6,
        kernel_size: int | None = 35,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(f"NystromAttention: expected an odd kernel_size or None, got {kernel_size!r}")
        self.core = NystromApproximation(
            head_width("NystromAttention", channels, num_heads),
            num_landmarks=num_landmarks,
            iterations=iterations,
            implementation=implementation,
        )
        self.num_heads = num_heads
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.conv: nn.Conv2d | None = None
        if kernel_size is not None:
            kernel, padding = (kernel_size, 1), (kernel_size // 2, 0)
            self.conv = nn.Conv2d(num_heads, num_heads, kernel, padding=padding, groups=num_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the heads read, and their convolved values."""
        self.expect_map(x)
        query, key, value = self._project(x)
        read = self.core(query, key, value)  # (B, h, N, d)
        if self.conv is not None:
            read = read + self.conv(value)
        return x + to_map(self.out(merge_heads(read)), x)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, h, N, d)`."""
        query, key, value = self.qkv(to_tokens(self.norm(x))).chunk(3, dim=2)  # 3 x (B, N, C)
        return split_heads(query, self.num_heads), split_heads(key, self.num_heads), split_heads(value, self.num_heads)

    def macs(self, height: int, width: int) -> int:
        """Projections, the approximation, and the convolution of the values."""
        pixels = height * width
        taps = 0 if self.conv is None else self.conv.kernel_size[0]
        return pixels * self.channels * (4 * self.channels + taps) + self.core.macs(pixels, self.num_heads)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, h, H, W)` of each head with those of its convolution; they may be negative."""
        self.expect_position(x, position)
        query, key, _ = self._project(x)
        rows = position_of(x, position)
        weights = self.core.weights(query, key, rows).squeeze(2)  # (B, h, N)
        if self.conv is not None:
            weights = weights + self._taps(rows.start, weights.shape[2])
        return torch.unflatten(weights, 2, x.shape[-2:])

    def _taps(self, token: int, tokens: int) -> Tensor:
        """Weights `(h, N)` with which the convolution reads for `token`; zero beyond its taps."""
        assert self.conv is not None
        kernel = self.conv.weight[:, 0, :, 0]  # (h, k)
        reach = kernel.shape[1] // 2
        offsets = torch.arange(tokens, device=kernel.device) - token + reach
        inside = (offsets >= 0) & (offsets < kernel.shape[1])
        return torch.where(inside, kernel[:, offsets.clamp(0, kernel.shape[1] - 1)], 0)
