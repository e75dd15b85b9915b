"""Object-contextual representations: each pixel reads the object regions that it is related to (OCR)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.interface import (
    AttentionOperator,
    Auxiliary,
    Implementation,
    OperatorSpec,
    Source,
    merge_positions,
)
from operators.layers import branch_width, conv_norm_relu
from operators.registry import register
from operators.scaled_attention import ScaledAttention, project_twice


class SpatialGather(nn.Module):
    """Means of the pixels under soft object regions.

    Equation: `f_k = sum_i softmax_i(l_ki) x_i`, the softmax over all pixels.

    Shape:
        `x (B, C, N), logits (B, K, N) -> (B, C, K)`.

    Cost:
        `N K C` multiply-accumulates.
    """

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """The representation of each region."""
        return torch.bmm(x, self.weights(logits).transpose(1, 2))

    @staticmethod
    def weights(logits: Tensor) -> Tensor:
        """Weights `(B, K, N)`; those of a region sum to one over the pixels."""
        return torch.softmax(logits, dim=2)


class ObjectAttention(nn.Module):
    """Regions gathered from pixels, and attention of the pixels to the regions.

    Equation: `y_i = sum_k softmax_k(q_i . key(f_k) / sqrt(d)) value(f_k)` with `f` of `SpatialGather`; `key` is two
    projections (1x1 convolution, batch normalisation, ReLU), `value` is one.

    Args:
        channels: width `C` of the pixels.
        width: `d`, channels of queries, keys and values.
        scale: whether the products are divided by `sqrt(d)`.
        implementation: `"reference"` builds the `N x K` weights, `"fused"` does not.

    Shape:
        `x (B, C, N), logits (B, K, N), query (B, d, N) -> (B, d, N)`.

    Cost:
        `N K (C + 2 d) + K d (2 C + d)` multiply-accumulates.
    """

    def __init__(self, channels: int, width: int, *, scale: bool, implementation: Implementation) -> None:
        super().__init__()
        self.gather = SpatialGather()
        self.key = project_twice(channels, width)
        self.value = conv_norm_relu(channels, width)
        self.read = ScaledAttention(width, scale=scale, implementation=implementation)

    def forward(self, x: Tensor, logits: Tensor, query: Tensor) -> Tensor:
        """What each pixel reads."""
        regions = self.gather(x, logits).unsqueeze(3)  # (B, C, K, 1)
        key, value = merge_positions(self.key(regions)), merge_positions(self.value(regions))
        read: Tensor = self.read(query, key, value)
        return read

    def relation(self, x: Tensor, logits: Tensor, query: Tensor) -> Tensor:
        """Weights `(B, M, K)` of the regions for each of `M` queries; each row sums to one."""
        regions = self.gather(x, logits).unsqueeze(3)  # (B, C, K, 1)
        return self.read.weights(query, merge_positions(self.key(regions)))


@register
class ObjectContextual(AttentionOperator):
    """Object-contextual representations: soft object regions are gathered from the map, and read by each pixel.

    Equation: `z_i = ReLU(BN(W_z [up(y_i); x_i]))` with `y` of `ObjectAttention` on the queries `query(x_i)`, two
    projections (1x1 convolution, batch normalisation, ReLU) of the pixels, and on the logits `l = W_l x + b_l` of the
    soft regions; `up` is one projection to `C` channels. The logits have a loss of their own, and its gradient and
    the block's both reach them.

    Args:
        channels: width `C` of the map.
        num_classes: `K`, number of regions; with `None` the block has no classifier and reads prior logits alone.
        width: `d`, channels of queries, keys and values; by default `C / 2`.
        scale: whether the products of queries and keys are divided by `sqrt(d)`.
        implementation: `"reference"` builds the `N x K` weights, `"fused"` runs `scaled_dot_product_attention`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; prior logits are `(B, K, H, W)` for any `K`.

    Cost:
        `N (2 C d + d^2 + 2 C^2) + 2 N K (C + d) + K d (2 C + d)` multiply-accumulates; `N K C` less on prior logits.

    Raises:
        ValueError: if an argument is outside its range, `channels` is odd and `width` not given, the logits do not
            fit the map, or there are neither prior logits nor a classifier.

    Source:
        Yuan et al., "Object-Contextual Representations for Semantic Segmentation", ECCV 2020, arXiv:1909.11065,
        the object contextual representation, pixel-region relation and augmented representation.

    Deviations:
        Relations are scaled by `1/sqrt(d)`, as in the authors' code and mmsegmentation, not in the paper (`scale`).
        The regions are classified by a 1x1 convolution of the block's own input; the paper does so on an earlier
        stage of the backbone, mmsegmentation takes the logits of another head: pass them to `forward`. The dropout
        behind the last normalisation belongs to the head.

    Example:
        >>> block = ObjectContextual(16, num_classes=5).eval()
        >>> x = torch.randn(2, 16, 5, 7)
        >>> block.responsibilities(x).shape
        torch.Size([2, 5, 5, 7])
        >>> torch.equal(block(x), block(x, block.regions(x)))
        True
    """

    spec = OperatorSpec(
        name="object_contextual",
        title="OCR",
        source=Source(
            title="Object-Contextual Representations for Semantic Segmentation",
            venue="ECCV",
            year=2020,
            url="https://arxiv.org/abs/1909.11065",
            equations="object contextual and augmented representations, pixel-region relation",
        ),
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        auxiliary={"regions": Auxiliary("pixel", 0.4)},
        deviations=(
            "Relations are scaled by 1/sqrt(d) as in the authors' code and mmsegmentation, not in the paper: `scale`.",
            "The regions are classified on the block's input; the paper takes an earlier stage, mmsegmentation another "
            "head's logits: `forward(x, prior_logits)`.",
            "The dropout behind the last normalisation belongs to the head.",
        ),
    )
    core: ObjectAttention

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int | None,
        width: int | None = None,
        scale: bool = True,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        self.width = branch_width("ObjectContextual", channels, width, 2)
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"ObjectContextual: expected num_classes >= 1, got {num_classes!r}")
        self.regions = None if num_classes is None else nn.Conv2d(channels, num_classes, 1)
        self.query = project_twice(channels, self.width)
        self.core = ObjectAttention(channels, self.width, scale=scale, implementation=implementation)
        self.up = conv_norm_relu(self.width, channels)
        self.fuse = conv_norm_relu(2 * channels, channels)

    def forward(self, x: Tensor, prior_logits: Tensor | None = None) -> Tensor:
        """The map fused with what it reads from its regions: those of `prior_logits`, or else its own."""
        self.expect_map(x)
        return self._fuse(x, self._classify(x) if prior_logits is None else self._expect_logits(x, prior_logits))

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The fused map, and the logits of the regions."""
        self.expect_map(x)
        logits = self._classify(x)
        return self._fuse(x, logits), {"regions": logits}

    def _fuse(self, x: Tensor, logits: Tensor) -> Tensor:
        query = merge_positions(self.query(x))
        read = self.core(merge_positions(x), merge_positions(logits), query)  # (B, d, N)
        context = self.up(read.reshape(len(x), self.width, *x.shape[-2:]))  # (B, C, H, W)
        fused: Tensor = self.fuse(torch.cat((context, x), dim=1))
        return fused

    def _classify(self, x: Tensor) -> Tensor:
        if self.regions is None:
            raise ValueError("ObjectContextual: expected prior_logits or a block with num_classes, got neither")
        logits: Tensor = self.regions(x)
        return logits

    def _expect_logits(self, x: Tensor, logits: Tensor) -> Tensor:
        if logits.ndim != 4 or len(logits) != len(x) or logits.shape[-2:] != x.shape[-2:]:
            expected = f"({len(x)}, K, {x.shape[2]}, {x.shape[3]})"
            raise ValueError(f"ObjectContextual: expected prior_logits {expected}, got {tuple(logits.shape)}")
        return logits

    def macs(self, height: int, width: int) -> int:
        """Classifier where there is one, gathering, projections of pixels and regions, attention, fusion.

        Raises:
            ValueError: without `num_classes`, which tells how many regions there are.
        """
        if self.regions is None:
            raise ValueError("ObjectContextual: expected a block with num_classes to count, got one without")
        pixels, classes, inner = height * width, self.regions.out_channels, self.width
        convolutions = 2 * self.channels * inner + inner**2 + 2 * self.channels**2
        regions = classes * inner * (2 * self.channels + inner)
        return pixels * (convolutions + 2 * classes * (self.channels + inner)) + regions

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """Relation `(B, K, H, W)` of each pixel to the regions; it sums to one over them.

        Raises:
            IndexError: if `stage` is not the only one there is.
        """
        self.expect_map(x)
        if stage not in (-1, 0):
            raise IndexError(f"ObjectContextual: expected stage 0 or -1, got {stage!r}")
        relation = self._relation(x, merge_positions(self._classify(x)), merge_positions(x))  # (B, N, K)
        return relation.transpose(1, 2).reshape(len(x), -1, *x.shape[-2:])

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` over the pixels: the relation to each region times its weights over the map."""
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        index = position[0] * width + position[1]
        logits, pixels = merge_positions(self._classify(x)), merge_positions(x)
        relation = self._relation(x, logits, pixels)[:, index : index + 1]  # (B, 1, K)
        return torch.bmm(relation, self.core.gather.weights(logits)).reshape(-1, 1, height, width)

    def _relation(self, x: Tensor, logits: Tensor, pixels: Tensor) -> Tensor:
        return self.core.relation(pixels, logits, merge_positions(self.query(x)))
