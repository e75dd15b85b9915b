"""Whole networks behind published rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from attnbench.models.backbone import ResNet
from attnbench.models.heads import DecodeHead, FCNHead
from attnbench.models.mmseg import segmentor
from attnbench.models.mmseg.config import published_head
from attnbench.models.segmentor import Segmentor
from operators.interface import AttentionOperator

_NORM: Mapping[str, Any] = {"type": "BN"}
_BACKBONE: Mapping[str, Any] = {
    "type": "ResNetV1c",
    "depth": 101,
    "strides": (1, 2, 1, 1),
    "dilations": (1, 1, 2, 4),
    "contract_dilation": True,
    "norm_cfg": _NORM,
}


def resnet_101() -> ResNet:
    """The backbone of EMANet and CCNet."""
    return ResNet(101, stem="64-64-128", multi_grid=(1, 2, 4))


def first_head(num_classes: int) -> dict[str, Any]:
    """One-convolution head of mmsegmentation on the third stage: auxiliary, and the first of OCRNet's two."""
    return {
        "type": "FCNHead",
        "in_channels": 1024,
        "in_index": 2,
        "channels": 256,
        "num_convs": 1,
        "concat_input": False,
        "num_classes": num_classes,
        "norm_cfg": _NORM,
    }


def published_network(kind: str, num_classes: int) -> nn.Module:
    """The network of mmsegmentation on ResNet-101 with the head `kind` and an auxiliary head."""
    head, auxiliary = published_head(kind, num_classes), first_head(num_classes)
    return segmentor(
        {"type": "EncoderDecoder", "backbone": _BACKBONE, "decode_head": head, "auxiliary_head": auxiliary}
    )


def cascade(num_classes: int) -> nn.Module:
    """OCRNet of mmsegmentation on ResNet-101."""
    heads = [first_head(num_classes), published_head("OCRHead", num_classes)]
    return segmentor({"type": "CascadeEncoderDecoder", "backbone": _BACKBONE, "decode_head": heads, "num_stages": 2})


def hamnet(operator: AttentionOperator, num_classes: int, *, concat_input: bool) -> nn.Module:
    """HamNet on ResNet-101, with an auxiliary head."""
    backbone = ResNet(101, stem="32-32-64")
    head = DecodeHead(backbone.channels, num_classes, operator, channels=512, concat_input=concat_input)
    return Segmentor(backbone, head, FCNHead(backbone.auxiliary_channels, num_classes, 256))
