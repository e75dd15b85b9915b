"""Object context pooling: self-attention whose result stands beside the map that it reads (OCNet)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source, merge_positions
from operators.layers import branch_width, conv_macs, conv_norm_relu, interpolation_matrix, output_channels, resize
from operators.registry import register
from operators.scaled_attention import ScaledAttention, project_twice

SOURCE = Source(
    title="OCNet: Object Context for Semantic Segmentation",
    venue="IJCV",
    year=2021,
    url="https://arxiv.org/abs/1809.00916",
    equations="object context pooling, Base-OC and ASP-OC",
)
DROPOUT = "The dropout behind the last normalisation belongs to the head."


class ObjectContextPooling(nn.Module):
    """Self-attention of a map whose queries and keys are normalised, rectified projections.

    Equation: `y_i = W_o sum_j softmax_j(q_i . k_j / sqrt(d)) (W_v x_j + b_v) + b_o`, where `q` and `k` are one or two
    projections (1x1 convolution, batch normalisation, ReLU). `W_o` and `b_o` start at zero.

    Args:
        channels: width `C` of the map.
        width: `d`, channels of queries, keys and values.
        key_layers: projections of queries and of keys, 1 or 2.
        share: whether keys are the queries.
        subsample: side of the cells whose maxima stand for the map inside; the result is resized bilinearly, corners
            aligned.
        implementation: `"reference"` builds the weights, `"fused"` runs `scaled_dot_product_attention`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; a side shorter than a cell is one cell.

    Raises:
        ValueError: if `key_layers` or `subsample` is out of range.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        key_layers: int,
        share: bool,
        subsample: int,
        implementation: Implementation,
    ) -> None:
        super().__init__()
        if key_layers not in (1, 2):
            raise ValueError(f"ObjectContextPooling: expected key_layers 1 or 2, got {key_layers!r}")
        if subsample < 1:
            raise ValueError(f"ObjectContextPooling: expected subsample >= 1, got {subsample!r}")
        project = conv_norm_relu if key_layers == 1 else project_twice
        self.width = width
        self.subsample = subsample
        self.key = project(channels, width)
        self.query = None if share else project(channels, width)
        self.value = nn.Conv2d(channels, width, 1)
        self.core = ScaledAttention(width, implementation=implementation)
        self.out = nn.Conv2d(width, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)
        for module in (*self.key.modules(), *(() if self.query is None else self.query.modules())):
            if isinstance(module, nn.Conv2d):
                # PyTorch's own draw: before statistics are learned, a wider one would saturate the softmax.
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """What each pixel reads."""
        pooled = self._pool(x)  # (B, C, h, w)
        query, key = self._project(pooled)
        read = self.core(query, key, merge_positions(self.value(pooled)))  # (B, d, M)
        read = read.reshape(len(x), self.width, *pooled.shape[-2:])
        return resize(self.out(read), x.shape[-2:], align_corners=True)

    def _project(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.key(pooled)  # (B, d, h, w)
        queries = keys if self.query is None else self.query(pooled)
        return merge_positions(queries), merge_positions(keys)

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self._cell(*x.shape[-2:])) if self.subsample > 1 else x

    def _cell(self, height: int, width: int) -> tuple[int, int]:
        return min(self.subsample, height), min(self.subsample, width)

    def macs(self, height: int, width: int) -> int:
        """Convolutions and attention on the `M` cells."""
        tall, wide = self._cell(height, width)
        cells = (height // tall) * (width // wide)
        return conv_macs(self, cells) + 2 * cells**2 * self.width

    def pixel_weights(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` that `position` reads with; a cell's is spread evenly over its pixels."""
        height, width = x.shape[-2:]
        pooled = self._pool(x)
        rows, columns = (
            interpolation_matrix(source, target, x, align_corners=True)[index]
            for source, target, index in zip(pooled.shape[-2:], (height, width), position, strict=True)
        )
        shares = torch.outer(rows, columns).flatten()  # (M,)
        near = shares.nonzero()[:, 0]
        query, key = self._project(pooled)
        weights = shares[near] @ self.core.weights(query[:, :, near], key)  # (B, M)
        tall, wide = self._cell(height, width)
        cells = weights.reshape(-1, 1, *pooled.shape[-2:]) / (tall * wide)
        spread = cells.repeat_interleave(tall, dim=2).repeat_interleave(wide, dim=3)
        return F.pad(spread, (0, width - spread.shape[3], 0, height - spread.shape[2]))  # (B, 1, H, W)


@register
class BaseObjectContext(AttentionOperator):
    """Base-OC: the map beside the object context that each of its pixels reads, fused.

    Equation: `y = ReLU(BN(W [P(f); f]))` with `P` of `ObjectContextPooling`, where `f` is the map `x`, or a 3x3
    convolution of it (with batch normalisation and ReLU).

    Args:
        channels: width `C` of the map.
        inner_channels: channels `E` of the 3x3 convolution in front; with `None` there is none, and `E = C`.
        width: `d`, channels of queries, keys and values; by default `E / 2`.
        out_channels: channels `O` of the output; by default `C`.
        key_layers: projections of queries and of keys, 1 or 2.
        share: whether keys are the queries.
        subsample: side of the cells that the map is max-pooled by inside.
        implementation: `"reference"` builds the `N x N` weights, `"fused"` runs `scaled_dot_product_attention`.

    Shape:
        `(B, C, H, W) -> (B, O, H, W)`.

    Cost:
        `3 N E d + 2 N^2 d + 2 N E O` multiply-accumulates (`N E d` more without `share`; `N d^2` more for each second
        projection; `9 N C E` more with `inner_channels`); cells take the place of pixels inside with `subsample`.

    Raises:
        ValueError: if an argument is outside its range, or `E` is odd and `width` not given.

    Source:
        Yuan et al., "OCNet: Object Context for Semantic Segmentation", IJCV 2021, arXiv:1809.00916, object context
        pooling and Base-OC.

    Deviations:
        Queries and keys are one projection, as in the authors' first code; their later code has two of each, apart
        (`key_layers=2, share=False`), and the self-attention of OCR's comparison one of each (`share=False`). The
        first code rectifies with leaky ReLUs of slope 0.01, the later one with ReLUs: ReLUs. The shared projection is
        computed once, there twice. The 3x3 convolution in front belongs to the head, unless `inner_channels` asks for
        it. The dropout behind the last normalisation belongs to the head. Projections have no biases, which the
        normalisations behind them would take out again; the first code has them.

    Example:
        >>> block = BaseObjectContext(16).eval()
        >>> x = torch.randn(2, 16, 5, 7)
        >>> block(x).shape
        torch.Size([2, 16, 5, 7])
        >>> round(block.attention(x, (0, 0))[0].sum().item(), 4)
        1.0
    """

    spec = OperatorSpec(
        name="base_oc",
        title="OCNet (Base-OC)",
        source=SOURCE,
        reach="global",
        growth=2.0,
        implementations=("reference", "fused"),
        deviations=(
            "Queries and keys are one projection as in the authors' first code; their later code has two of each, "
            "apart: `key_layers`, `share`.",
            "Projections are rectified by ReLUs as in the authors' later code; the first has leaky ones.",
            "The 3x3 convolution in front belongs to the head: `inner_channels`.",
            DROPOUT,
        ),
    )
    core: ScaledAttention

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        width: int | None = None,
        out_channels: int | None = None,
        key_layers: int = 1,
        share: bool = True,
        subsample: int = 1,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        if inner_channels is not None and inner_channels < 1:
            raise ValueError(f"BaseObjectContext: expected inner_channels >= 1, got {inner_channels!r}")
        inner = channels if inner_channels is None else inner_channels
        self.front = nn.Identity() if inner_channels is None else conv_norm_relu(channels, inner, 3)
        self.context = ObjectContextPooling(
            inner,
            branch_width("BaseObjectContext", inner, width, 2),
            key_layers=key_layers,
            share=share,
            subsample=subsample,
            implementation=implementation,
        )
        self.core = self.context.core
        self.fuse = conv_norm_relu(2 * inner, output_channels("BaseObjectContext", channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Fuses the map with what its pixels read."""
        self.expect_map(x)
        features = self.front(x)  # (B, E, H, W)
        fused: Tensor = self.fuse(torch.cat((self.context(features), features), dim=1))
        return fused

    def macs(self, height: int, width: int) -> int:
        """The convolution in front where there is one, attention with its projections, fusion."""
        pixels = height * width
        return conv_macs(self.front, pixels) + self.context.macs(height, width) + conv_macs(self.fuse, pixels)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` over the pixels, behind the convolution in front where there is one."""
        self.expect_position(x, position)
        return self.context.pixel_weights(self.front(x), position)
