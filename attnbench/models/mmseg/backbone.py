"""mmsegmentation's residual networks on the project's, and the names of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from attnbench.config import Stem, near
from attnbench.errors import UsageError
from attnbench.models.backbone import ResNet
from attnbench.models.blocks import BasicBlock, Bottleneck
from attnbench.models.mmseg.names import Names

_KINDS: Mapping[str, tuple[bool, bool]] = {
    "ResNet": (False, False),
    "ResNetV1c": (True, False),
    "ResNetV1d": (True, True),
}
"""Name -> whether its stem is deep, and whether its shortcuts average."""

_LAYOUTS: Mapping[tuple[tuple[int, ...], tuple[int, ...]], Literal[8, 16]] = {
    ((1, 2, 1, 1), (1, 1, 2, 4)): 8,
    ((1, 2, 2, 1), (1, 1, 1, 2)): 16,
}
_DEPTHS = (18, 34, 50, 101)
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "in_channels": (3,),
    "stem_channels": (64,),
    "num_stages": (4,),
    "out_indices": ((0, 1, 2, 3),),
    "style": ("pytorch",),
    "conv_cfg": (None,),
    "dcn": (None,),
    "plugins": (None,),
}
_READ = ("type", "depth", "base_channels", "strides", "dilations", "contract_dilation", "multi_grid", "norm_cfg")
_STEM = ("deep_stem", "avg_down")
_TRAINING = ("frozen_stages", "norm_eval", "with_cp", "zero_init_residual", "pretrained", "init_cfg", "stage_with_dcn")


def build_backbone(config: Mapping[str, Any]) -> tuple[ResNet, Names]:
    """The residual network that mmsegmentation builds from `config`, and the names of its parameters.

    Raises:
        UsageError: if the backbone, its layout or an option is not supported.
    """
    kind = config.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UsageError(f"backbone: expected one of {', '.join(_KINDS)}, got {kind!r}")
    known = (*_READ, *_STEM, *_FIXED)
    for key in config:
        if key not in known and key not in _TRAINING:
            raise UsageError(f"backbone {kind!r}: unknown key {key!r}{near(key, known)}")
    for key, allowed in _FIXED.items():
        value = config.get(key, allowed[0])
        if (tuple(value) if isinstance(value, list) else value) not in allowed:
            raise UsageError(f"backbone {kind!r}: expected {key} {allowed[0]!r}, got {value!r}")
    norm = config.get("norm_cfg", {"type": "BN"})
    if not isinstance(norm, Mapping) or norm.get("type") not in ("BN", "SyncBN"):
        raise UsageError(f"backbone {kind!r}: expected norm_cfg of type 'BN' or 'SyncBN', got {norm!r}")
    if config.get("depth") not in _DEPTHS:
        raise UsageError(f"backbone {kind!r}: expected depth in {_DEPTHS}, got {config.get('depth')!r}")
    deep, pooled = (bool(config.get(key, default)) for key, default in zip(_STEM, _KINDS[kind], strict=True))
    stem: Stem = "32-32-64" if deep else "7x7"
    backbone = ResNet(
        config["depth"],
        output_stride=_output_stride(kind, config),
        stem=stem,
        base_channels=config.get("base_channels", 64),
        contract_dilation=bool(config.get("contract_dilation", False)),
        pooled_shortcut=pooled,
    )
    if config.get("multi_grid") is not None:
        _dilate(backbone.layer4, tuple(config["multi_grid"]))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = float(norm.get("eps", 1e-5))
    return backbone, _names(deep)


def _output_stride(kind: str, config: Mapping[str, Any]) -> Literal[8, 16]:
    layout = tuple(config.get("strides", (1, 2, 2, 2))), tuple(config.get("dilations", (1, 1, 1, 1)))
    if layout not in _LAYOUTS:
        expected = " or ".join(f"strides {strides} with dilations {dilations}" for strides, dilations in _LAYOUTS)
        raise UsageError(f"backbone {kind!r}: expected {expected}, got {layout[0]} with {layout[1]}")
    return _LAYOUTS[layout]


def _dilate(stage: nn.Sequential, grid: tuple[int, ...]) -> None:
    """Gives each block of the last stage its dilation; mmsegmentation's grid takes the stage's place, not times it."""
    if len(grid) != len(stage) or min(grid) < 1:
        raise UsageError(f"backbone: expected multi_grid with {len(stage)} dilations, got {grid}")
    for block, dilation in zip(stage, grid, strict=True):
        assert isinstance(block, BasicBlock | Bottleneck)
        conv = block.conv1 if isinstance(block, BasicBlock) else block.conv2
        conv.dilation = conv.padding = (dilation, dilation)


def _names(deep: bool) -> Names:
    names = {f"layer{stage}": f"layer{stage}" for stage in range(1, 5)}
    if not deep:
        return {**names, "conv1": "conv1", "bn1": "bn1"}
    return {**names, **{f"stem.{index}": f"conv1.{index}" for index in range(7)}, "stem.7": "bn1"}
