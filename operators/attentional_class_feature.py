"""Attentional class feature: each pixel reads the centres of the classes that it may belong to (ACFNet)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import (
    AttentionOperator,
    Auxiliary,
    Implementation,
    OperatorSpec,
    Source,
    merge_positions,
)
from operators.layers import conv_norm_relu
from operators.registry import register


class ClassAttention(nn.Module):
    """Class centres, the mean that each pixel's classes make of them, and a 1x1 convolution of it.

    Equation: `y_i = W sum_k p_ki c_k` with `c_k = sum_j p_kj x_j / sum_j p_kj` and `p_i = softmax(l_i)` over the
    classes.

    Args:
        width: channels `d` of the pixels.
        fused: whether `W` maps the `K` centres instead of the `N` pixels; it commutes with the mean.

    Shape:
        `x (B, d, N), logits (B, K, N) -> (B, d, N)`.

    Cost:
        `2 N K d + N d^2` multiply-accumulates; fused, `2 N K d + K d^2`.
    """

    def __init__(self, width: int, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.refine = nn.Conv1d(width, width, 1, bias=False)
        nn.init.kaiming_normal_(self.refine.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """What each pixel reads, refined."""
        shares, members = self.weights(logits)
        centres = torch.bmm(x, members.transpose(1, 2))  # (B, d, K)
        if self.fused:
            return torch.bmm(self.refine(centres), shares)
        refined: Tensor = self.refine(torch.bmm(centres, shares))
        return refined

    @staticmethod
    def weights(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities `(B, K, N)`, which sum to one over the classes, and the same scaled to do so over the pixels.

        A class whose probability underflows at every pixel has a centre all the same.
        """
        logarithms = F.log_softmax(logits, dim=1)
        # exp(log p) / sum exp(log p), which is never 0 / 0.
        return logarithms.exp(), torch.softmax(logarithms, dim=2)


@register
class AttentionalClassFeature(AttentionOperator):
    """Attentional class feature: a coarse segmentation gathers class centres, and each pixel reads them by it.

    Equation: `z_i = ReLU(BN(W_z [ReLU(BN(y_i)); x_i]))` with `y` of `ClassAttention` on `ReLU(BN(W_r x))` and on the
    logits `l = W_l x + b_l` of the coarse segmentation. The logits have a loss of their own, and its gradient and the
    block's both reach them.

    Args:
        channels: width `C` of the map.
        num_classes: `K`, number of classes.
        width: `d`, channels of the centres; by default `C`.
        implementation: `"reference"` refines what the pixels read, `"fused"` refines the centres.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N (2 C d + C^2 + d^2) + N K (C + 2 d)` multiply-accumulates; fused, `K d^2` in the place of `N d^2`.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Zhang et al., "ACFNet: Attentional Class Feature Network for Semantic Segmentation", ICCV 2019,
        arXiv:1909.09408, class center block and class attention block.

    Deviations:
        No code of the authors was found. Common copies take a softmax over the channels of the negated products of
        logits and pixels for centres, which are then no means of pixels, and read them by the logits without a
        softmax: neither is followed. The coarse segmentation is a 1x1 convolution of the block's own input; the paper
        has that of its base network. The weight of its loss is the copies' 0.6 over the 0.7 that they give the final
        loss. The paper classifies the concatenation; here it is first fused to the width of the map.

    Example:
        >>> block = AttentionalClassFeature(16, num_classes=5).eval()
        >>> x = torch.randn(2, 16, 5, 7)
        >>> y, logits = block.forward_with_auxiliary(x)
        >>> y.shape, logits["classes"].shape
        (torch.Size([2, 16, 5, 7]), torch.Size([2, 5, 5, 7]))
    """

    spec = OperatorSpec(
        name="attentional_class_feature",
        title="ACF",
        source=Source(
            title="ACFNet: Attentional Class Feature Network for Semantic Segmentation",
            venue="ICCV",
            year=2019,
            url="https://arxiv.org/abs/1909.09408",
            equations="class center block, class attention block",
        ),
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        auxiliary={"classes": Auxiliary("pixel", 0.6 / 0.7)},
        deviations=(
            "Centres are means over pixels as in the paper; common copies take a softmax over channels instead, and "
            "read by logits instead of probabilities.",
            "The classes are told apart on the block's own input; the paper does so in its base network.",
            "The concatenation is fused to the width of the map; the paper classifies it.",
        ),
    )
    core: ClassAttention

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        width: int | None = None,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        if num_classes < 1:
            raise ValueError(f"AttentionalClassFeature: expected num_classes >= 1, got {num_classes!r}")
        if width is not None and width < 1:
            raise ValueError(f"AttentionalClassFeature: expected width >= 1, got {width!r}")
        if implementation not in self.spec.implementations:
            raise ValueError(
                f"AttentionalClassFeature: expected implementation in {self.spec.implementations}, "
                f"got {implementation!r}"
            )
        self.num_classes = num_classes
        self.width = channels if width is None else width
        self.classes = nn.Conv2d(channels, num_classes, 1)
        self.reduce = conv_norm_relu(channels, self.width)
        self.core = ClassAttention(self.width, fused=implementation == "fused")
        self.norm = nn.BatchNorm2d(self.width)
        self.fuse = conv_norm_relu(channels + self.width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The map fused with the class centres that its pixels read."""
        return self.forward_with_auxiliary(x)[0]

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The fused map, and the logits of the coarse segmentation."""
        self.expect_map(x)
        logits = self.classes(x)
        read = self.core(merge_positions(self.reduce(x)), merge_positions(logits))  # (B, d, N)
        feature = F.relu(self.norm(read.reshape(len(x), self.width, *x.shape[-2:])))  # (B, d, H, W)
        return self.fuse(torch.cat((feature, x), dim=1)), {"classes": logits}

    def macs(self, height: int, width: int) -> int:
        """Coarse segmentation, reduction, centres and reading, refinement, fusion."""
        pixels, classes, inner = height * width, self.num_classes, self.width
        refined = classes if self.core.fused else pixels
        convolutions = pixels * (2 * self.channels * inner + self.channels**2) + refined * inner**2
        return convolutions + pixels * classes * (self.channels + 2 * inner)

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """Probabilities `(B, K, H, W)` of each pixel's classes.

        Raises:
            IndexError: if `stage` is not the only one there is.
        """
        self.expect_map(x)
        if stage not in (-1, 0):
            raise IndexError(f"AttentionalClassFeature: expected stage 0 or -1, got {stage!r}")
        return torch.softmax(self.classes(x), dim=1)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` over the pixels: the probability of each class times its weights over the map."""
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        index = position[0] * width + position[1]
        shares, members = self.core.weights(merge_positions(self.classes(x)))
        row = shares[:, :, index].unsqueeze(1)  # (B, 1, K)
        return torch.bmm(row, members).reshape(-1, 1, height, width)
