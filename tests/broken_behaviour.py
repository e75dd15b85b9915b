"""Operators that are not one function of their input in evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sound_operator import Sound
from torch import Tensor


class Cancellation(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e5 - 1e5


class CancellationInHalf(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return x + ((self.conv(x) + 1000.0) - 1000.0)


class AssumesContiguous(Sound):
    def forward(self, x: Tensor) -> Tensor:
        plain = torch.empty(x.shape, device="meta").stride()
        return super().forward(x.as_strided(x.shape, plain))


class DropoutInEvaluation(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=True)


class MovesRandomState(Sound):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(x)


class DriftsPerCall(Sound):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) + 1e-3 * self.calls


class SoftmaxOverBatch(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.softmax(self.conv(x), dim=0)


class CountsCalls(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class RectifiesInput(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu_(x))


class RectifiesInputInTraining(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu_(x) if self.training else x)


class HiddenWeights(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scale = torch.rand(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale.to(x))


class HoldsFunction(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.activation = lambda x: x


class BranchesOnData(Sound):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if float(x.sum()) > 0 else y + 0
