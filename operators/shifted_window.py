"""Attention within windows, then within windows shifted by half their size (Swin)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.biased_attention import BiasedAttention, heads_by_width, position_table, projection
from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source
from operators.registry import register


@dataclass(frozen=True)
class Windows:
    """A map cut into square windows, padded below and on the right, and shifted cyclically up and to the left.

    Args:
        height: `H` of the map.
        width: `W` of the map.
        size: height and width `s` of a window.
        shift: rows and columns that the padded map is shifted by.
    """

    height: int
    width: int
    size: int
    shift: int

    @property
    def rows(self) -> int:
        """Windows in a column, `ceil(H / s)`."""
        return -(-self.height // self.size)

    @property
    def columns(self) -> int:
        """Windows in a row, `ceil(W / s)`."""
        return -(-self.width // self.size)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the padded map."""
        return self.rows * self.size, self.columns * self.size

    def pad(self, x: Tensor) -> Tensor:
        """`(B, H, W, C)` with zeros below and on the right."""
        height, width = self.padded
        return F.pad(x, (0, 0, 0, width - self.width, 0, height - self.height))

    def split(self, x: Tensor, num_heads: int) -> Tensor:
        """Padded map `(B, H', W', h d) -> (B, R h, s s, d)`: the pixels of each window together, for each head."""
        shifted = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        cells = shifted.reshape(len(x), self.rows, self.size, self.columns, self.size, num_heads, -1)
        return cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 3)

    def merge(self, x: Tensor, num_heads: int) -> Tensor:
        """`(B, R h, s s, d) -> (B, H, W, h d)`: every pixel back in its place, the padding dropped."""
        cells = x.reshape(len(x), self.rows, self.columns, num_heads, self.size, self.size, -1)
        shifted = cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(x), *self.padded, -1)  # (B, H', W', h d)
        return torch.roll(shifted, (self.shift, self.shift), dims=(1, 2))[:, : self.height, : self.width]

    def blocked(self, device: torch.device) -> Tensor:
        """Pairs `(R, s s, s s)` of a window's pixels that only the cyclic shift has brought together."""
        apart = [self._wrapped(count, device) for count in (self.rows, self.columns)]
        pairs = [sides[:, :, None] != sides[:, None, :] for sides in apart]  # (rows, s, s), (columns, s, s)
        either = pairs[0][:, None, :, None, :, None] | pairs[1][None, :, None, :, None, :]
        return either.reshape(self.rows * self.columns, self.size**2, self.size**2)

    def _wrapped(self, count: int, device: torch.device) -> Tensor:
        length = count * self.size
        return ((torch.arange(length, device=device) + self.shift) // length).reshape(count, self.size)

    def locate(self, position: tuple[int, int]) -> tuple[int, int]:
        """Index of the window that holds `position`, and index of the position in it."""
        row, column = ((at - self.shift) % side for at, side in zip(position, self.padded, strict=True))
        window = (row // self.size) * self.columns + column // self.size
        return window, (row % self.size) * self.size + column % self.size


class WindowAttention(nn.Module):
    """Multi-head self-attention of each window, after normalisation and with the residual.

    Equation: `y = x + W_o [head_1; ...; head_h] + b_o`, `head = softmax(Q K^T / sqrt(d) + P) V` for the rows `Q`, `K`
    and `V` that are one window's projections of `LN(x)`; `P` holds a learned bias for each offset between two pixels.

    Args:
        channels: width `C` of the map.
        num_heads: `h`.
        window_size: height and width `s` of a window.
        shift: rows and columns that the windows are shifted by.
        core: the attention.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, channels: int, num_heads: int, window_size: int, shift: int, core: BiasedAttention) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = projection(channels, 3 * channels)
        self.position = position_table(num_heads, window_size)
        self.core = core
        self.out = projection(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The map with what its pixels read from their windows."""
        windows = self.windows(x)
        query, key, value = self.project(x, windows)
        read = self.core(query, key, value, self.bias(windows))  # (B, R h, s s, d)
        out: Tensor = self.out(windows.merge(read, self.num_heads))  # (B, H, W, C)
        return x + out.permute(0, 3, 1, 2)

    def windows(self, x: Tensor) -> Windows:
        """The windows of the map `x`."""
        return Windows(x.shape[2], x.shape[3], self.window_size, self.shift)

    def project(self, x: Tensor, windows: Windows) -> tuple[Tensor, ...]:
        """Queries, keys and values `(B, R h, s s, d)`; those of the padding are their biases."""
        projected = self.query_key_value(windows.pad(self.norm(x.permute(0, 2, 3, 1))))  # (B, H', W', 3 C)
        return tuple(windows.split(part, self.num_heads) for part in projected.chunk(3, dim=3))

    def bias(self, windows: Windows) -> Tensor:
        """Biases `(R h, s s, s s)` of all pairs, minus infinity where the shift has brought strangers together."""
        steps = torch.arange(self.window_size, device=self.position.device)
        offsets = steps[:, None] - steps[None, :] + self.window_size - 1  # (s, s)
        table = self.position[:, offsets[:, None, :, None], offsets[None, :, None, :]]  # (h, s, s, s, s)
        pairs = table.flatten(3, 4).flatten(1, 2).expand(windows.rows * windows.columns, -1, -1, -1)
        if self.shift:
            pairs = pairs.masked_fill(windows.blocked(pairs.device)[:, None], float("-inf"))
        return pairs.flatten(0, 1)

    def macs(self, height: int, width: int) -> int:
        """Projections of the padded map, attention, and the output projection of the map."""
        windows = Windows(height, width, self.window_size, self.shift)
        channels, pixels = self.out.in_features, windows.rows * windows.columns * self.window_size**2
        return pixels * (3 * channels**2 + 2 * channels * self.window_size**2) + height * width * channels**2

    def pixel_weights(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, h, H, W)` with which the pixel at `position` reads its window."""
        windows = self.windows(x)
        window, member = windows.locate(position)
        groups = slice(window * self.num_heads, (window + 1) * self.num_heads)
        query, key, _ = (part[:, groups] for part in self.project(x, windows))
        pairs = self.bias(windows)
        spread = query.new_zeros(len(x), len(pairs), self.window_size**2, 1)
        row = slice(member, member + 1)
        spread[:, groups] = self.core.weights(query[:, :, row], key, pairs[groups, row]).transpose(2, 3)
        return windows.merge(spread, self.num_heads).permute(0, 3, 1, 2)


@register
class ShiftedWindow(AttentionOperator):
    """Shifted window attention: self-attention within windows, then within windows moved by half their size.

    Equation: `z = x + W-MSA(LN(x))`, `y = z + SW-MSA(LN(z))`, each a `WindowAttention`. The second has windows that are
    shifted by `floor(s / 2)` and so joins neighbours across the borders of the first. The shift is cyclic and a mask
    keeps apart what was not adjacent, so that both have equally many windows.

    Args:
        channels: width `C` of the map.
        num_heads: heads `h`; by default one for each 32 channels.
        window_size: height and width `s` of a window.
        implementation: `"reference"` builds all weights, `"fused"` runs `scaled_dot_product_attention`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; where windows do not divide the map it is padded below and on the right.

    Cost:
        `2 (3 M C^2 + 2 M s^2 C + N C^2)` multiply-accumulates for `M = s^2 ceil(H / s) ceil(W / s)` padded pixels.

    Raises:
        ValueError: if an argument is outside its range, or `num_heads` does not divide `channels`.

    Source:
        Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021,
        arXiv:2103.14030, Eq. 3 and 4, figure 4.

    Deviations:
        The operator is the attention of two successive blocks with normalisation and residual; their feed-forward parts
        belong to the network. The padding is zero behind the normalisation and takes part in the attention, as in the
        authors' segmentation code and mmsegmentation: it is read with the biases of keys and values. Maps smaller than
        a window are padded to one and still shifted, as there; the authors' classification code shrinks the window and
        does not shift. Masked pairs have weight zero; the authors add -100 to their products. The output projection
        leaves the padding out.

    Example:
        >>> ShiftedWindow(64).eval()(torch.zeros(1, 64, 5, 19)).shape
        torch.Size([1, 64, 5, 19])
    """

    spec = OperatorSpec(
        name="shifted_window",
        title="Swin (W-MSA, SW-MSA)",
        source=Source(
            title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
            venue="ICCV",
            year=2021,
            url="https://arxiv.org/abs/2103.14030",
            equations="Eq. 3 and 4, figure 4",
        ),
        reach="window",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=(
            "The attention of two successive blocks without their feed-forward parts.",
            "Zero padding takes part in the attention as in the authors' segmentation code and mmsegmentation.",
            "Maps smaller than a window are padded to one as in the authors' segmentation code; their classification "
            "code shrinks the window and does not shift it.",
            "Masked pairs have weight zero; the authors add -100 to their products.",
        ),
    )
    core: BiasedAttention

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int | None = None,
        window_size: int = 7,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        heads, width = heads_by_width("ShiftedWindow", channels, num_heads)
        if window_size < 1:
            raise ValueError(f"ShiftedWindow: expected window_size >= 1, got {window_size!r}")
        self.core = BiasedAttention(width, implementation=implementation)
        self.regular = WindowAttention(channels, heads, window_size, 0, self.core)
        self.shifted = WindowAttention(channels, heads, window_size, window_size // 2, self.core)

    def forward(self, x: Tensor) -> Tensor:
        """Attention within windows, then within shifted windows."""
        self.expect_map(x)
        out: Tensor = self.shifted(self.regular(x))
        return out

    def macs(self, height: int, width: int) -> int:
        """Both layers; the shift costs nothing."""
        return self.regular.macs(height, width) + self.shifted.macs(height, width)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 2 h, H, W)`: of each head of the first layer over the map, then of each of the second.

        The second layer reads what the first has made of the map. What falls on the padding is dropped.
        """
        self.expect_position(x, position)
        first = self.regular.pixel_weights(x, position)
        return torch.cat((first, self.shifted.pixel_weights(self.regular(x), position)), dim=1)
