"""External attention: every pixel reads a small memory that all images share, at linear cost (EANet)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source, merge_positions
from operators.layers import affine_map
from operators.registry import register

Memories = Literal["independent", "equal", "shared"]

# Keeps the division finite where no slot attends to a pixel; the authors' value.
_EPSILON = 1e-9


class ExternalMemory(nn.Module):
    """The memories, and what the pixels read from them.

    Equation: `y = M_v A`, where `A` is `softmax_N(M_k x)` divided by `eps` plus its sum over the `S` slots.

    Args:
        channels: width `C` of pixels and memories.
        num_slots: `S`.
        memories: see `ExternalAttention`.

    Shape:
        `x (B, C, N) -> (B, C, N)`.

    Cost:
        `2 N C S` multiply-accumulates.
    """

    def __init__(self, channels: int, num_slots: int, memories: Memories) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(num_slots, channels))
        self.value = None if memories == "shared" else nn.Parameter(torch.empty(channels, num_slots))
        # As in the authors' code, each memory's spread follows from its outputs; one of two that start equal has that
        # of the memory that is drawn last.
        nn.init.normal_(self.key, std=math.sqrt(2 / (num_slots if memories == "independent" else channels)))
        if self.value is not None:
            nn.init.normal_(self.value, std=math.sqrt(2 / channels))
        if self.value is not None and memories == "equal":
            self.value.data.copy_(self.key.data.t())

    def forward(self, x: Tensor) -> Tensor:
        """What the pixels read."""
        key, value = self.of_images(len(x))
        return torch.bmm(value, self.normalise(torch.bmm(key, x)))

    def of_images(self, batch: int) -> tuple[Tensor, Tensor]:
        """`M_k (B, S, C)` and `M_v (B, C, S)`, the same for each image."""
        key, value = self.pair()
        return key.expand(batch, -1, -1), value.expand(batch, -1, -1)

    def pair(self) -> tuple[Tensor, Tensor]:
        """`M_k (S, C)` and `M_v (C, S)`."""
        return self.key, self.key.t() if self.value is None else self.value

    @staticmethod
    def normalise(similarity: Tensor) -> Tensor:
        """Double normalisation of `(B, S, N)`: softmax over the positions, then division by the sum over the slots."""
        weights = torch.softmax(similarity, dim=2)
        return weights / (_EPSILON + weights.sum(dim=1, keepdim=True))


class FusedExternalMemory(ExternalMemory):
    """The same on memories that have both affine maps around them in them already.

    Equation: `y = (W_2 M_v) A`, where `A` normalises `(M_k W_1) x + M_k b_1`.

    Shape:
        `x (B, C, N), [M_k W_1, M_k b_1] (B, S, C + 1), W_2 M_v (B, C, S) -> (B, C, N)`.

    Cost:
        `2 N C S` multiply-accumulates, and `S C (2 C + 1)` to map the memories.
    """

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        """What the pixels read."""
        return torch.bmm(value, self.normalise(torch.bmm(key[:, :, :-1], x) + key[:, :, -1:]))

    def mapped(self, conv_in: nn.Conv2d, conv_out: nn.Conv2d, batch: int) -> tuple[Tensor, Tensor]:
        """`[M_k W_1, M_k b_1]` and `W_2 M_v`."""
        key, value = self.of_images(batch)
        # Once for each image, so that a batch costs what its images cost, as `macs` promises.
        of_key = affine_map(conv_in).expand(batch, -1, -1)  # (B, C, C + 1)
        of_value = conv_out.weight.flatten(1).expand(batch, -1, -1)  # (B, C, C)
        return torch.bmm(key, of_key), torch.bmm(of_value, value)


@register
class ExternalAttention(AttentionOperator):
    """External attention block of EANet: pixels read `S` learned slots instead of each other.

    Equation: `y = ReLU(x + BN(W_2 M_v A))`, where `A` is `softmax_N(M_k (W_1 x + b_1))`, normalised over the positions,
    divided by `1e-9` plus its sum over the slots. Only through that normalisation does a pixel depend on others.

    Args:
        channels: width `C` of the map.
        num_slots: `S`, slots of each memory.
        memories: `"independent"` draws two; `"equal"` starts `M_v` as the transpose of `M_k`; `"shared"` keeps it so.
        implementation: `"reference"` maps every pixel by `W_1` and `W_2`; `"fused"` maps the memories by them, so that
            no convolution is left.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C^2 + 2 N C S` multiply-accumulates; fused, `2 N C S + S C (2 C + 1)`.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Guo et al., "Beyond Self-Attention: External Attention Using Two Linear Layers for Visual Tasks", TPAMI 2022,
        arXiv:2105.02358, external attention and normalisation.

    Deviations:
        The memories are independent, as in the paper's equations with two of them. The authors' code makes `M_v` a view
        of `M_k` before it draws both: they stay one on a CPU, and come apart, equal at first, when the model is moved
        to another device or type. These are `memories="shared"`, also the paper's first equations, and
        `memories="equal"`. `b_1` shifts each slot alike at all positions, so that the softmax cancels it; it is kept
        as in the authors' code. The form with heads, which paper and code have in transformers for classification
        alone, is left out.

    Example:
        >>> operator = ExternalAttention(16, num_slots=4).eval()
        >>> operator.responsibilities(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 4, 5, 7])
    """

    spec = OperatorSpec(
        name="external_attention",
        title="External attention",
        source=Source(
            title="Beyond Self-Attention: External Attention Using Two Linear Layers for Visual Tasks",
            venue="TPAMI",
            year=2022,
            url="https://arxiv.org/abs/2105.02358",
            equations="external attention, normalization",
        ),
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=(
            "The two memories are independent (paper); the authors' code starts them equal, and on a CPU keeps them "
            "tied: `memories`.",
            "The form with heads, which the paper has in transformers alone, is left out.",
        ),
    )
    core: ExternalMemory

    def __init__(
        self,
        channels: int,
        *,
        num_slots: int = 64,
        memories: Memories = "independent",
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        if num_slots < 1:
            raise ValueError(f"ExternalAttention: expected num_slots >= 1, got {num_slots!r}")
        if memories not in get_args(Memories):
            raise ValueError(f"ExternalAttention: expected memories in {get_args(Memories)}, got {memories!r}")
        if implementation not in self.spec.implementations:
            raise ValueError(
                f"ExternalAttention: expected implementation in {self.spec.implementations}, got {implementation!r}"
            )
        self.num_slots = num_slots
        self.conv_in = nn.Conv2d(channels, channels, 1)
        self.core = (FusedExternalMemory if implementation == "fused" else ExternalMemory)(
            channels, num_slots, memories
        )
        self.conv_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        for conv in (self.conv_in, self.conv_out):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, memories, convolution and normalisation, residual, ReLU."""
        self.expect_map(x)
        return F.relu(x + self.norm(self._read(x)))

    def _read(self, x: Tensor) -> Tensor:
        if isinstance(self.core, FusedExternalMemory):
            memories = self.core.mapped(self.conv_in, self.conv_out, len(x))
            folded: Tensor = self.core(merge_positions(x), *memories)  # (B, C, N)
            return folded.reshape(x.shape)
        read: Tensor = self.conv_out(self.core(merge_positions(self.conv_in(x))).reshape(x.shape))
        return read

    def macs(self, height: int, width: int) -> int:
        """Both memories at each pixel, and two convolutions or the mapped memories."""
        pixels = height * width
        reading = 2 * pixels * self.channels * self.num_slots
        if isinstance(self.core, FusedExternalMemory):
            return reading + self.num_slots * self.channels * (2 * self.channels + 1)
        return reading + 2 * pixels * self.channels**2

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """Shares `(B, S, H, W)` of the slots in what each pixel reads, scaled to sum to one.

        A pixel to which no slot attends belongs to all slots alike.

        Raises:
            IndexError: if `stage` is not the only one there is, 0 or -1.
        """
        self.expect_map(x)
        if stage not in (0, -1):
            raise IndexError(f"ExternalAttention: expected stage 0 or -1, got {stage!r}")
        key, _ = self.core.pair()
        features = merge_positions(self.conv_in(x))  # (B, C, N)
        weights = torch.softmax(torch.matmul(key, features), dim=2)  # (B, S, N)
        total = weights.sum(dim=1, keepdim=True)
        shares = torch.where(total > 0, weights / total, 1 / self.num_slots)
        return shares.reshape(len(x), -1, *x.shape[-2:])
