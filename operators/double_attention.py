"""Double attention: features of the whole map are gathered into a few vectors, which each pixel mixes (A2-Nets)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from operators.gather_attention import GatherAttention, GatherCore
from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source
from operators.layers import branch_width, conv_norm_relu
from operators.registry import register

Fusion = Literal["add_norm", "add", "concatenate"]


@register
class DoubleAttention(AttentionOperator):
    """Double attention block (A2): second-order pooling of the map, then a mixture of what it pooled at each pixel.

    Equation: `y = x + BN(W_o z + b_o)` with `z_i = sum_k softmax_k(v_i) g_k` and `g_k = sum_j softmax_j(b_k) a_j`,
    where `a` has `c_m` channels and `b` and `v` have `c_n`, each an affine map of the pixels: `a_j = W_a x_j + b_a`.
    The attention maps `softmax_j(b_k)` sum to one over the positions, the attention vectors `softmax_k(v_i)` over the
    `c_n` maps. Without the normalisation, efficient attention with softmax and one head is the same function.

    Args:
        channels: width `C` of the map.
        width: `c_m`, channels of the gathered features; by default `C / 4`.
        num_maps: `c_n`, number of attention maps and length of the attention vectors; by default `C / 4`.
        fusion: `"add_norm"`, the equation; `"add"`, without the normalisation; or `"concatenate"`,
            `y = ReLU(BN(W [W_o z + b_o; x]))` with `W_o = b_o = 0` at the start.
        implementation: `"reference"` maps every pixel to `a` and back to `C` channels, `"fused"` only the `c_n`
            gathered vectors.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C (c_m + c_n) + 2 N c_m c_n` multiply-accumulates; fused, `4 N C c_n + 2 C c_m c_n`; `2 N C^2` more where
        the map is concatenated. `2 C (c_m + c_n)` weights.

    Raises:
        ValueError: if an argument is outside its range, or 4 does not divide `channels` and a width is not given.

    Source:
        Chen et al., "A^2-Nets: Double Attention Networks", NeurIPS 2018, arXiv:1810.11579, sections 3.1-3.3.

    Deviations:
        Each softmax has the axis of the paper. A widely copied implementation names no axis, and so normalises over
        the batch; others take the positions for both. The copies have no batch normalisation
        (`fusion="add"`). The code of the OCR paper's comparison concatenates output and input
        (`fusion="concatenate"`), and has a second layer in front of each softmax, which is left out.

    Example:
        >>> operator = DoubleAttention(16).eval()
        >>> operator.responsibilities(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 4, 5, 7])
    """

    spec = OperatorSpec(
        name="double_attention",
        title="A2",
        source=Source(
            title="A^2-Nets: Double Attention Networks",
            venue="NeurIPS",
            year=2018,
            url="https://arxiv.org/abs/1810.11579",
            equations="sections 3.1-3.3",
        ),
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=(
            "Attention maps are normalised over positions and attention vectors over maps, as in the paper; common "
            "copies normalise over the batch, or both over positions.",
            "The output is batch normalised before the residual; the copies have no batch normalisation: `fusion`.",
            "The code of the OCR paper's comparison concatenates instead of adding: `fusion`; its second layer in "
            "front of each softmax is left out.",
        ),
    )
    core: GatherCore

    def __init__(
        self,
        channels: int,
        *,
        width: int | None = None,
        num_maps: int | None = None,
        fusion: Fusion = "add_norm",
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        if fusion not in get_args(Fusion):
            raise ValueError(f"DoubleAttention: expected fusion in {get_args(Fusion)}, got {fusion!r}")
        if num_maps is not None and num_maps < 1:
            raise ValueError(f"DoubleAttention: expected num_maps >= 1, got {num_maps!r}")
        width = branch_width("DoubleAttention", channels, width)
        maps = branch_width("DoubleAttention", channels, num_maps)
        self.fusion: Fusion = fusion
        self.stage = GatherAttention(channels, maps, width, implementation=implementation)
        self.core = self.stage.core
        self.norm = nn.BatchNorm2d(channels) if fusion == "add_norm" else nn.Identity()
        if fusion == "concatenate":
            self.fuse = conv_norm_relu(2 * channels, channels)
            for parameter in self.stage.out.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Fuses the map with what it gathered and distributed."""
        self.expect_map(x)
        read = self.stage(x)
        if self.fusion == "concatenate":
            fused: Tensor = self.fuse(torch.cat((read, x), dim=1))
            return fused
        added: Tensor = x + self.norm(read)
        return added

    def macs(self, height: int, width: int) -> int:
        """Attention with its convolutions, and the fusing convolution where there is one."""
        pixels = height * width
        fusing = 2 * pixels * self.channels**2 if self.fusion == "concatenate" else 0
        return self.stage.macs(pixels) + fusing

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` with which `z` at `position` sums `a`; they sum to one."""
        self.expect_position(x, position)
        return self.stage.pixel_weights(x, position)

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """Attention vectors `(B, c_n, H, W)`: how each pixel mixes the gathered features.

        Raises:
            IndexError: if `stage` is not the only one there is, 0 or -1.
        """
        self.expect_map(x)
        if stage not in (0, -1):
            raise IndexError(f"DoubleAttention: expected stage 0 or -1, got {stage!r}")
        vectors, _ = self.stage.weights(x)
        return vectors.reshape(len(x), -1, *x.shape[-2:])
