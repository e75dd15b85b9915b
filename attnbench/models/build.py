"""From names and settings to operators, heads and segmentors; what does not fit is a `UsageError`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from attnbench.config import Head, Network, near
from attnbench.errors import UsageError
from attnbench.models.backbone import build_backbone
from attnbench.models.heads import DecodeHead, FCNHead, LinearHead
from attnbench.models.segmentor import Segmentor
from operators import registry
from operators.interface import AttentionOperator, Implementation

_NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
_GIVEN = ("self", "channels", "num_classes", "implementation")


def build_operator(
    name: str,
    channels: int,
    *,
    num_classes: int,
    implementation: Implementation = "reference",
    settings: Mapping[str, Any] = _NO_SETTINGS,
) -> AttentionOperator:
    """The operator called `name`.

    Args:
        name: registry name.
        channels: channels of the slot.
        num_classes: classes; handed on where the constructor declares it.
        implementation: `"reference"`, or `"fused"` where the operator has it.
        settings: hyper-parameters that differ from the operator's defaults.

    Raises:
        UsageError: if the name, a setting or the implementation is unknown, or the channels or a value do not
            fit.

    Example:
        >>> type(build_operator("conv3x3", 64, num_classes=5)).__name__
        'Conv3x3'
    """
    try:
        operator = registry.get(name)
    except registry.UnknownOperatorError as error:
        raise UsageError(f"{error}; one of your own is named by --operator FILE.py:CLASS, too") from error
    except registry.BrokenOperatorError as error:
        raise UsageError(str(error)) from error
    parameters = inspect.signature(operator.__init__).parameters
    _expect_settings(name, settings, [parameter for parameter in parameters if parameter not in _GIVEN])
    arguments = dict(settings)
    if "num_classes" in parameters:
        arguments["num_classes"] = num_classes
    if "implementation" in parameters:
        arguments["implementation"] = implementation
    if implementation not in operator.spec.implementations or (
        implementation != "reference" and "implementation" not in parameters
    ):
        offered = operator.spec.implementations if "implementation" in parameters else ("reference",)
        raise UsageError(f"operator {name!r}: expected implementation in {offered}, got {implementation!r}")
    try:
        return operator(channels, **arguments)
    except ValueError as error:
        raise UsageError(f"operator {name!r} on {channels} channels: {error}") from error


def _expect_settings(name: str, settings: Mapping[str, Any], known: list[str]) -> None:
    for setting in settings:
        if setting not in known:
            hint = near(setting, known) if known else "; it has none"
            raise UsageError(f"operator {name!r}: unknown setting {setting!r}{hint}")


def build_head(
    name: str,
    in_channels: int,
    network: Network,
    num_classes: int,
    implementation: Implementation = "reference",
    settings: Mapping[str, Any] = _NO_SETTINGS,
) -> DecodeHead | LinearHead:
    """The head of `network`, with the operator called `name` in its slot.

    Args:
        name: registry name of the operator; a linear head has no slot, so that it is `"identity"` there.
        in_channels: channels of the backbone's features.
        network: the network; `head`, `slot_channels`, `head_channels`, `concat_input` and `dropout` count.
        num_classes: classes of the logits.
        implementation: of the operator.
        settings: of the operator.

    Raises:
        UsageError: see `build_operator` and `DecodeHead`; if the head is linear and the operator not
            `"identity"`.
    """
    if network.head not in get_args(Head):
        raise UsageError(f"unknown head {network.head!r}{near(network.head, get_args(Head))}")
    operator = build_operator(
        name, network.slot_channels, num_classes=num_classes, implementation=implementation, settings=settings
    )
    if network.head == "linear":
        if name != "identity":
            raise UsageError(f"head 'linear': expected operator 'identity' in place of a slot, got {name!r}")
        return LinearHead(in_channels, num_classes, dropout=network.dropout)
    return DecodeHead(
        in_channels,
        num_classes,
        operator,
        channels=network.head_channels,
        reduction_kernel=network.reduction_kernel,
        concat_input=network.concat_input,
        dropout=network.dropout,
    )


def build_segmentor(
    name: str,
    network: Network,
    num_classes: int,
    *,
    implementation: Implementation = "reference",
    settings: Mapping[str, Any] = _NO_SETTINGS,
    auxiliary_weight: float = 0.0,
) -> Segmentor:
    """The whole network with the operator called `name` in its slot.

    The backbone is drawn first, so that under one seed every operator gets the same.

    Args:
        name: registry name of the operator.
        network: the network.
        num_classes: classes of the logits.
        implementation: of the operator.
        settings: of the operator.
        auxiliary_weight: weight of the auxiliary head's loss; 0 builds none. The head is a quarter as wide as
            its input.

    Raises:
        UsageError: see `build_backbone`, `build_operator` and `DecodeHead`; if `auxiliary_weight` is
            negative.

    Example:
        >>> import torch
        >>> segmentor = build_segmentor("conv3x3", Network(), 5)
        >>> tuple(segmentor(torch.zeros(2, 3, 48, 48)).shape)
        (2, 5, 48, 48)
    """
    if not auxiliary_weight >= 0:
        raise UsageError(f"segmentor: expected auxiliary_weight >= 0, got {auxiliary_weight!r}")
    backbone = build_backbone(network)
    auxiliary_head = None
    if auxiliary_weight > 0:
        width = max(backbone.auxiliary_channels // 4, 1)
        auxiliary_head = FCNHead(backbone.auxiliary_channels, num_classes, width, dropout=network.dropout)
    decode_head = build_head(name, backbone.channels, network, num_classes, implementation, settings)
    return Segmentor(backbone, decode_head, auxiliary_head, auxiliary_weight=auxiliary_weight)
