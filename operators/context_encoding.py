"""Context encoding module: a dictionary of the scene gates the channels of every pixel (EncNet)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, Auxiliary, OperatorSpec, Source, merge_positions
from operators.layers import conv_norm_relu
from operators.registry import register

Aggregation = Literal["mean", "sum"]


class Encoding(nn.Module):
    """Residuals of the pixels to learnt codewords, summed under a soft assignment.

    Equation: `e_k = sum_i a_ik (x_i - d_k)` with `a_ik = softmax_k(s_k ||x_i - d_k||^2)`; the smoothing factors `s_k`
    start in `(-1, 0)`, the codewords in `(-1, 1) / sqrt(K C)`.

    Args:
        channels: width `C` of the pixels.
        num_codes: number `K` of codewords.

    Shape:
        `(B, C, N) -> (B, K, C)`.

    Cost:
        `2 N K C` multiply-accumulates.

    Deviations:
        Distances are taken as `||x||^2 - 2 x . d + ||d||^2` and sums as `sum_i a_ik x_i - d_k sum_i a_ik`: the same
        function without the `(N, K, C)` residuals.
    """

    def __init__(self, channels: int, num_codes: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(num_codes * channels)
        self.codewords = nn.Parameter(torch.empty(num_codes, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(num_codes).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """The encoders `e_k`."""
        assignment = self.assign(x)  # (B, K, N)
        totals = assignment.sum(dim=2, keepdim=True)  # (B, K, 1)
        sums = torch.bmm(assignment, x.transpose(1, 2).to(assignment.dtype))  # (B, K, C)
        return (sums - totals * self.codewords).to(x.dtype)

    def assign(self, x: Tensor) -> Tensor:
        """Weights `(B, K, N)` of each pixel over the codewords, which they sum to one over."""
        codewords = self.codewords.expand(len(x), -1, -1)  # (B, K, C)
        products = torch.bmm(codewords.to(x.dtype), x)  # (B, K, N)
        lengths = _squares(x).unsqueeze(1)  # (B, 1, N)
        distances = lengths - 2 * products + _squares(self.codewords).unsqueeze(1)  # (B, K, N)
        return torch.softmax(self.scale.unsqueeze(1) * distances, dim=1)


def _squares(x: Tensor) -> Tensor:
    """Sums of squares along the second axis, in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(1)


@register
class ContextEncoding(AttentionOperator):
    """Context encoding module: the encoded semantics of the scene gate the channels of the map.

    Equation: `y = ReLU(x + x * sigmoid(W_g e + b_g))` with `e = mean_k ReLU(BN(e_k))`, where `e_k` are `Encoding` of
    `ReLU(BN(W_p x))` and the normalisation counts each codeword as a channel. With `num_classes`, `W_s e + b_s` are
    logits of the classes present in the image, for the semantic encoding loss.

    Args:
        channels: width `C` of the map.
        num_codes: number `K` of codewords.
        num_classes: classes of the semantic encoding loss, whose linear map `forward` does not run; without it there
            is none.
        aggregation: how the encoders become one, `"mean"` or `"sum"`.
        residual: whether the gated map is added to the map and rectified; otherwise it is `x` times the gate.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N C^2 + 2 N K C + C^2` multiply-accumulates.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018, arXiv:1803.08904, Eq. 1 and 2,
        featuremap attention and semantic encoding loss.

    Deviations:
        The encoders are averaged as in the authors' code and mmsegmentation; the paper sums them
        (`aggregation="sum"`). The gated map is added to the map and rectified as there; the paper multiplies
        (`residual=False`). The (N, K, C) residuals are not built; see `Encoding`.

    Example:
        >>> block = ContextEncoding(16, num_codes=4, num_classes=5).eval()
        >>> y, logits = block.forward_with_auxiliary(torch.zeros(2, 16, 5, 7))
        >>> y.shape, logits["presence"].shape
        (torch.Size([2, 16, 5, 7]), torch.Size([2, 5]))
    """

    spec = OperatorSpec(
        name="context_encoding",
        title="EncNet",
        source=Source(
            title="Context Encoding for Semantic Segmentation",
            venue="CVPR",
            year=2018,
            url="https://arxiv.org/abs/1803.08904",
            equations="(1) and (2), featuremap attention, semantic encoding loss",
        ),
        reach="global",
        growth=1.0,
        auxiliary={"presence": Auxiliary("presence", 0.2)},
        deviations=(
            "The encoders are averaged as in the authors' code and mmsegmentation; the paper sums them: `aggregation`.",
            "The gated map is added to the map and rectified as in the authors' code and mmsegmentation; the paper "
            "multiplies: `residual`.",
            "Distances and sums are matrix products, which never build an (N, K, C) tensor of residuals.",
        ),
    )
    core: Encoding

    def __init__(
        self,
        channels: int,
        *,
        num_codes: int = 32,
        num_classes: int | None = None,
        aggregation: Aggregation = "mean",
        residual: bool = True,
    ) -> None:
        super().__init__(channels)
        for name, value in {"num_codes": num_codes, "num_classes": num_classes}.items():
            if value is not None and value < 1:
                raise ValueError(f"ContextEncoding: expected {name} >= 1, got {value!r}")
        if aggregation not in get_args(Aggregation):
            raise ValueError(f"ContextEncoding: expected aggregation in {get_args(Aggregation)}, got {aggregation!r}")
        self.num_codes = num_codes
        self.aggregation = aggregation
        self.residual = residual
        self.project = conv_norm_relu(channels, channels)
        self.core = Encoding(channels, num_codes)
        self.norm = nn.BatchNorm1d(num_codes)
        self.gate = nn.Linear(channels, channels)
        self.presence = None if num_classes is None else nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The gated map."""
        self.expect_map(x)
        return self._gate(x, self._encode(x))

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The gated map, and the logits of the present classes where `num_classes` was given."""
        self.expect_map(x)
        encoded = self._encode(x)
        logits = {} if self.presence is None else {"presence": self.presence(encoded)}
        return self._gate(x, encoded), logits

    def _encode(self, x: Tensor) -> Tensor:
        encoders = F.relu(self.norm(self.core(merge_positions(self.project(x)))))  # (B, K, C)
        return encoders.mean(dim=1) if self.aggregation == "mean" else encoders.sum(dim=1)  # (B, C)

    def _gate(self, x: Tensor, encoded: Tensor) -> Tensor:
        gated = x * torch.sigmoid(self.gate(encoded))[:, :, None, None]
        return F.relu(x + gated) if self.residual else gated

    def macs(self, height: int, width: int) -> int:
        """Projection, distances and sums, and the gate."""
        return height * width * self.channels * (self.channels + 2 * self.num_codes) + self.channels**2

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """Assignment `(B, K, H, W)` of each pixel to the codewords; it sums to one over them.

        Raises:
            IndexError: if `stage` is not the only one there is.
        """
        self.expect_map(x)
        if stage not in (-1, 0):
            raise IndexError(f"ContextEncoding: expected stage 0 or -1, got {stage!r}")
        return self.core.assign(merge_positions(self.project(x))).reshape(len(x), -1, *x.shape[-2:])
