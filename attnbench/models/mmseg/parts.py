"""What the builders of heads share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from attnbench.errors import UsageError
from attnbench.models.heads import DecodeHead
from attnbench.models.mmseg.config import HeadConfig, expect
from attnbench.models.mmseg.heads import ChainHead
from attnbench.models.mmseg.names import Names, conv_norm, prefixed
from operators.interface import AttentionOperator, Auxiliary

Built = tuple[nn.Module, Names]
"""A head, and the names of its parameters below mmsegmentation's head and below ours."""


def slot(config: HeadConfig, operator: AttentionOperator, names: Names) -> Built:
    """The shared head around `operator`, with FCNHead's names of its convolutions."""
    for key, value in (("kernel_size", 3), ("dilation", 1)):
        if key in config.options:
            expect(config, key, (value,))
    head = DecodeHead(
        config.features,
        config.out_channels,
        operator,
        channels=config.channels,
        concat_input=config.options["concat_input"],
        dropout=config.dropout,
    )
    convolutions = {**conv_norm("convs.0", "reduction"), **conv_norm("convs.1", "bottleneck")}
    return head, {**convolutions, **conv_norm("conv_cat", "fusion"), **prefixed(names, "", "operator.")}


def chained(
    config: HeadConfig, body: nn.Module, names: Names, auxiliary: Mapping[str, Auxiliary] | None = None
) -> Built:
    """The classifier on `body`."""
    head = ChainHead(body, config.channels, config.out_channels, dropout=config.dropout, auxiliary=auxiliary)
    return head, prefixed(names, "", "body.")


def divisor(config: HeadConfig, channels: int, width: int) -> int:
    """What `channels` is divided by to give `width`.

    Raises:
        UsageError: if `width` does not divide `channels`.
    """
    if width < 1 or channels % width:
        raise UsageError(f"{config.type}: expected a width inside that divides {channels}, got {width}")
    return channels // width
