"""The modules behind published rows, each as its source describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from attnbench.reproducing import parts
from attnbench.reproducing.networks import cascade, hamnet, published_network, resnet_101
from operators.atrous_pyramid import AtrousSpatialPyramidPooling
from operators.criss_cross import CrissCross
from operators.double_attention import DoubleAttention
from operators.dual_branches import PositionAttention
from operators.dynamic_multi_scale import DynamicMultiScale
from operators.ema import EMAUnit
from operators.hamburger import ConceptDecompositionHamburger, Hamburger
from operators.interface import AttentionOperator
from operators.layers import conv_norm_relu
from operators.non_local import NonLocal
from operators.object_context import ObjectContextual
from operators.object_context_pooling import BaseObjectContext
from operators.point_wise import PointWiseSpatialAttention
from operators.pyramid_pooling import PyramidPooling

Shape = tuple[int, ...]

_CLASSES = 150
_BASES = 64


@dataclass(frozen=True)
class Built:
    """What a row is computed from.

    Args:
        module: the module.
        inputs: its inputs.
        left_out_macs: multiply-accumulates that the source does not count.
        more_params: what the source counts as parameters and the project does not.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    left_out_macs: int = 0
    more_params: int = 0


Build = Callable[[], Built]


def _on(module: nn.Module, *shapes: Shape, left_out_macs: int = 0, more_params: int = 0) -> Built:
    return Built(module, tuple(torch.empty(shape) for shape in shapes), left_out_macs, more_params)


_EMANET = (1, 2048, 65, 65)
_OCR = (1, 2048, 128, 128)
_HAMBURGER = (1, 512, 128, 128)
_IMAGE = (1, 3, 512, 2048)
_POSITIONS = 64 * 256
"""Positions of the features of `_IMAGE`."""


def _resnet_101() -> Built:
    return _on(parts.Features(resnet_101()), (1, 3, 513, 513))


def _aspp(shape: Shape) -> Built:
    return _on(AtrousSpatialPyramidPooling(2048, width=256, out_channels=256, fuse_kernel=1), shape)


def _deeplab_v3_plus() -> Built:
    return _on(parts.FinerPyramid(), _EMANET, (1, 256, 129, 129))


def _psanet() -> Built:
    operator = PointWiseSpatialAttention(2048, mask_size=(65, 65), width=512, out_channels=256)
    return _on(operator, _EMANET, left_out_macs=2 * (33 * 33) ** 2 * 512)


def _emanet(channels: int) -> Built:
    module = nn.Sequential(conv_norm_relu(2048, channels, 3), EMAUnit(channels, num_bases=_BASES))
    return _on(module, _EMANET, more_params=channels * _BASES)


def _criss_cross(recurrence: int) -> Built:
    return _on(CrissCross(512, recurrence=recurrence), (1, 512, 97, 97))


def _position() -> Built:
    return _on(PositionAttention(512), (1, 512, 97, 97))


def _hamburger_sa() -> Built:
    return _on(NonLocal(512, reduction=1, norm=False), _HAMBURGER)


def _hamburger_da() -> Built:
    return _on(parts.DualBranches(512), _HAMBURGER)


def _hamburger_a2() -> Built:
    return _on(DoubleAttention(512, width=512, num_maps=512, fusion="add"), _HAMBURGER)


def _hamburger_apc() -> Built:
    scales = (1, 2, 3, 6)
    product = 128 * 128 * sum(scale**2 for scale in scales) * 512
    return _on(parts.AdaptiveRegions(512, scales), _HAMBURGER, left_out_macs=product)


def _hamburger_dm() -> Built:
    operator = DynamicMultiScale(512, width=512, fusion=True)
    operator.fuse = nn.Sequential()
    return _on(operator, _HAMBURGER)


def _hamburger_cd() -> Built:
    return _on(ConceptDecompositionHamburger(512, num_bases=_BASES, eval_steps=6), _HAMBURGER)


def _hamburger_nmf() -> Built:
    return _on(Hamburger(512, num_bases=_BASES, eval_steps=6), _HAMBURGER)


def _ocr_ppm() -> Built:
    operator = PyramidPooling(2048)
    operator.fuse = conv_norm_relu(4096, 512, 3)
    return _on(operator, _OCR)


def _ocr_sa() -> Built:
    return _on(BaseObjectContext(2048, inner_channels=512, out_channels=512, share=False), _OCR)


def _behind_convolution(operator: AttentionOperator) -> Built:
    return _on(nn.Sequential(conv_norm_relu(2048, operator.channels, 3), operator), _OCR)


def _ocr_double() -> Built:
    return _behind_convolution(DoubleAttention(512, width=128, num_maps=128, fusion="concatenate"))


def _ocr_ocr() -> Built:
    operator = ObjectContextual(512, num_classes=19)
    operator.query, operator.core.key = conv_norm_relu(512, 256), conv_norm_relu(512, 256)
    return _behind_convolution(operator)


def _ocr_concatenated(branch: Callable[[], nn.Module]) -> Built:
    return _on(nn.Sequential(conv_norm_relu(2048, 512, 3), parts.Concatenated(branch(), 512)), _OCR)


def _network_danet() -> Built:
    return _on(published_network("DAHead", _CLASSES), _IMAGE, left_out_macs=_POSITIONS**2 * (64 + 512))


def _network_ocrnet() -> Built:
    return _on(cascade(_CLASSES), _IMAGE, left_out_macs=_POSITIONS * _CLASSES * (512 + 2 * 256))


def _network_dnl() -> Built:
    return _on(published_network("DNLHead", _CLASSES), _IMAGE)


def _network_hamnet(concat_input: bool) -> Built:
    operator = Hamburger(512, num_bases=_BASES)
    network = hamnet(operator, _CLASSES, concat_input=concat_input)
    return _on(network, _IMAGE, left_out_macs=operator.core.macs(_POSITIONS))


_MODULES: Mapping[str, Build] = MappingProxyType(
    {
        "resnet_101": _resnet_101,
        "deeplab_v3": partial(_aspp, _EMANET),
        "deeplab_v3_plus": _deeplab_v3_plus,
        "psanet": _psanet,
        "emanet_256": partial(_emanet, 256),
        "emanet_512": partial(_emanet, 512),
        "criss_cross_1": partial(_criss_cross, 1),
        "criss_cross_2": partial(_criss_cross, 2),
        "criss_cross_3": partial(_criss_cross, 3),
        "position": _position,
        "hamburger_sa": _hamburger_sa,
        "hamburger_da": _hamburger_da,
        "hamburger_a2": _hamburger_a2,
        "hamburger_apc": _hamburger_apc,
        "hamburger_dm": _hamburger_dm,
        "hamburger_cd": _hamburger_cd,
        "hamburger_nmf": _hamburger_nmf,
        "network_danet": _network_danet,
        "network_ocrnet": _network_ocrnet,
        "network_dnl": _network_dnl,
        "network_hamnet": partial(_network_hamnet, False),
        "network_hamnet_plus": partial(_network_hamnet, True),
        "ocr_ppm": _ocr_ppm,
        "ocr_aspp": partial(_aspp, _OCR),
        "ocr_danet": partial(_ocr_concatenated, partial(parts.DualSum, 512)),
        "ocr_cc": partial(_ocr_concatenated, partial(CrissCross, 512)),
        "ocr_sa": _ocr_sa,
        "ocr_double": _ocr_double,
        "ocr_ocr": _ocr_ocr,
    }
)


def modules() -> Mapping[str, Build]:
    """Name of a module in `complexity.csv` -> what builds it."""
    return _MODULES
