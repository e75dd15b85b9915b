"""Operators that break what an operator declares, takes and returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from sound_operator import SPEC, Sound
from torch import Tensor, nn

from operators.interface import Auxiliary, Source


class NoSpec(Sound):
    spec = None


class NoSource(Sound):
    spec = replace(SPEC, source=Source(title="", venue="", year=2000, url=""))


class UnknownExpectedFailure(Sound):
    spec = replace(SPEC, expected_failures={"shape": "there is no such check"})


class AnyKeyword(Sound):
    def __init__(self, channels: int, **settings: Any) -> None:
        super().__init__(channels)


class PositionalSetting(Sound):
    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__(channels)


class RequiredSetting(Sound):
    def __init__(self, channels: int, *, reduction: int) -> None:
        super().__init__(channels)


class WidthFirst(Sound):
    def __init__(self, width: int) -> None:
        super().__init__(width)


class HiddenImplementation(Sound):
    spec = replace(SPEC, implementations=("reference", "fused"))


class AnyImplementation(Sound):
    def __init__(self, channels: int, *, implementation: str = "reference") -> None:
        super().__init__(channels)


class AuxiliaryWithoutClasses(Sound):
    spec = replace(SPEC, auxiliary={"region": Auxiliary("pixel", 0.4)})


class NoChannels(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(max(channels, 1))


class EvenSizes(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(F.avg_pool2d(x, 2, ceil_mode=True)), scale_factor=2.0)


class SinglePrecision(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class AnyRank(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return x


class NamelessError(Sound):
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError("bad input")
        return x + self.conv(x)


class UnusedCore(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.core = nn.Identity()


class _Remembers(nn.Module):
    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.last is None else x + self.last
        self.last = x
        return y


class CoreRemembers(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.core = _Remembers()

    def forward(self, x: Tensor) -> Tensor:
        return self.core(super().forward(x))


class AttentionEverywhere(Sound):
    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        self.expect_position(x, position)
        return torch.full_like(x[:, :1], 1 / x[0, 0].numel())


class AttentionFlat(Sound):
    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        self.expect_position(x, position)
        return torch.zeros_like(x[:, :1]).flatten(2)


class AttentionNotFinite(Sound):
    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        self.expect_position(x, position)
        return torch.zeros_like(x[:, :1]) / 0.0


class AttentionWraps(Sound):
    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        weights = torch.zeros_like(x[:, :1])
        weights[:, :, position[0] % x.shape[2], position[1] % x.shape[3]] = 1.0
        return weights


class ResponsibilitiesOverMap(Sound):
    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        return torch.softmax(x.flatten(2), dim=-1).reshape(x.shape)


class ResponsibilitiesFlat(Sound):
    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        return torch.softmax(x, dim=1).flatten(2)


class _Supervised(Sound):
    spec = replace(SPEC, auxiliary={"region": Auxiliary("pixel", 0.4)})

    def __init__(self, channels: int, *, num_classes: int) -> None:
        super().__init__(channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)


class AuxiliaryMissing(_Supervised):
    pass


class AuxiliaryPooled(_Supervised):
    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self(x), {"region": self.classifier(x).mean((2, 3))}


class AuxiliaryOther(_Supervised):
    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self(x) * 2, {"region": self.classifier(x)}
