"""An operator that keeps the whole contract."""

from __future__ import annotations

from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source

SPEC = OperatorSpec(
    name="sound",
    title="Sound",
    source=Source(title="None", venue="None", year=2000, url="https://example.org"),
    reach="pixel",
    growth=1.0,
)


class Sound(AttentionOperator):
    """`x + W x`: keeps the whole contract, so that a subclass breaks it by what it changes alone."""

    spec = SPEC

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.expect_map(x)
        return x + self.conv(x)

    def macs(self, height: int, width: int) -> int:
        return height * width * self.channels**2
