"""Operators whose claims, gradients or fused implementations are wrong."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from sound_operator import SPEC, Sound
from torch import Tensor, nn


class UnusedParameter(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gamma = nn.Parameter(torch.zeros(1))


class InfiniteGradient(Sound):
    def forward(self, x: Tensor) -> Tensor:
        self.expect_map(x)
        return x + (self.conv(x) * 0.0).abs().sqrt()


class RectifiesZeros(Sound):
    """Nothing of it moves from where it starts, and noise in its parameters would hide that."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(channels)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        self.expect_map(x)
        return x + F.relu(self.norm(self.conv(x)))


class CutGradient(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach()) + 0.0 * x


class ClaimsCut(Sound):
    spec = replace(SPEC, gradient="cut")


class ReadsWindow(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(x, 3, stride=1, padding=1))


class ReadsMapWithoutGradient(Sound):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            mean = x.mean((2, 3), keepdim=True)
        return super().forward(x) + mean


class ReadsRow(Sound):
    spec = replace(SPEC, reach="window")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(3, keepdim=True)


class ClaimsSquare(Sound):
    spec = replace(SPEC, growth=2.0)


class ForgetsProduct(Sound):
    def macs(self, height: int, width: int) -> int:
        return 0


class CountsSquareMaps(Sound):
    def macs(self, height: int, width: int) -> int:
        return height * height * self.channels**2


class CountsInFloats(Sound):
    def macs(self, height: int, width: int) -> int:
        return float(super().macs(height, width))


class HiddenFusedAttention(Sound):
    """Fused attention that `macs` leaves out, as the counter does on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
        read = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return super().forward(x) + read.squeeze(1).transpose(1, 2).reshape(x.shape)


class RepeatsPerImage(Sound):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[0]):
            y = super().forward(x)
        return y


class _Fused(Sound):
    spec = replace(SPEC, implementations=("reference", "fused"))

    def __init__(self, channels: int, *, implementation: str = "reference") -> None:
        super().__init__(channels)
        if implementation not in self.spec.implementations:
            raise ValueError(f"{type(self).__name__}: expected an implementation, got {implementation!r}")
        self.fused = implementation == "fused"


class FusedScales(_Fused):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * (1 + 1e-6) if self.fused else y


class FusedCutsGradient(_Fused):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach() + 0 * x if self.fused else x)


class FusedFreezes(_Fused):
    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return x + F.conv2d(x, self.conv.weight, self.conv.bias.detach())
        return super().forward(x)


class FusedForgetsBuffer(_Fused):
    def __init__(self, channels: int, *, implementation: str = "reference") -> None:
        super().__init__(channels, implementation=implementation)
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.fused:
            self.mean.copy_(x.detach().mean((0, 2, 3)))
        return super().forward(x)


class StandardisesInTraining(Sound):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.training:
            return y
        count = y.shape[0] * y.shape[2] * y.shape[3]
        centred = y - y.mean((0, 2, 3), keepdim=True)
        variance = centred.square().sum((0, 2, 3), keepdim=True) / torch.tensor(count - 1.0)
        return centred / variance.sqrt()
