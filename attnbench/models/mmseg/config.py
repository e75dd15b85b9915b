"""mmsegmentation's configurations of decode heads, made complete and checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from attnbench.config import near
from attnbench.errors import UsageError

FCN_OPTIONS: Mapping[str, Any] = {"num_convs": 2, "kernel_size": 3, "concat_input": True, "dilation": 1}
SLOT_OPTIONS: Mapping[str, Any] = {"concat_input": True, "kernel_size": 3, "dilation": 1}

PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ANNHead": {"project_channels": 256, "query_scales": (1,), "key_pool_scales": (1, 3, 6, 8)},
        "APCHead": {"pool_scales": (1, 2, 3, 6), "fusion": True},
        "ASPPHead": {"dilations": (1, 12, 24, 36)},
        "CCHead": {**SLOT_OPTIONS, "recurrence": 2},
        "DAHead": {"pam_channels": 64},
        "DMHead": {"filter_sizes": (1, 3, 5, 7), "fusion": False},
        "DNLHead": {
            **SLOT_OPTIONS,
            "reduction": 2,
            "use_scale": True,
            "mode": "embedded_gaussian",
            "temperature": 0.05,
        },
        "DepthwiseSeparableASPPHead": {"dilations": (1, 12, 24, 36), "c1_in_channels": 256, "c1_channels": 48},
        "EMAHead": {"ema_channels": 512, "num_bases": 64, "num_stages": 3, "concat_input": True, "momentum": 0.1},
        "EncHead": {"num_codes": 32, "use_se_loss": True, "add_lateral": False},
        "FCNHead": FCN_OPTIONS,
        "GCHead": {
            **SLOT_OPTIONS,
            "ratio": 0.25,
            "pooling_type": "att",
            "fusion_types": ("channel_add",),
        },
        "ISAHead": {"isa_channels": 256, "down_factor": (8, 8)},
        "LightHamHead": {"ham_channels": 512, "ham_kwargs": {}},
        "NLHead": {**SLOT_OPTIONS, "reduction": 2, "use_scale": True, "mode": "embedded_gaussian"},
        "OCRHead": {"ocr_channels": 256, "scale": 1},
        "PSAHead": {
            "mask_size": (97, 97),
            "psa_type": "bi-direction",
            "compact": False,
            "shrink_factor": 2,
            "normalization_factor": 1.0,
            "psa_softmax": True,
        },
        "PSPHead": {"pool_scales": (1, 2, 3, 6)},
    }
)
"""Each head's own options, at the values of the published R-50-D8 configurations."""

_MAPS: Mapping[str, tuple[Any, Any]] = {
    "ANNHead": ([1024, 2048], [2, 3]),
    "EncHead": ([512, 1024, 2048], [1, 2, 3]),
    "LightHamHead": ([512, 1024, 2048], [1, 2, 3]),
}

_COMMON = (
    "type",
    "in_channels",
    "channels",
    "num_classes",
    "out_channels",
    "in_index",
    "input_transform",
    "dropout_ratio",
    "norm_cfg",
    "conv_cfg",
    "act_cfg",
    "align_corners",
)
_TRAINING = (
    "loss_decode",
    "loss_se_decode",
    "sampler",
    "ignore_index",
    "init_cfg",
    "threshold",
    "train_cfg",
    "test_cfg",
)
SEVERAL = ("ANNHead", "EncHead", "LightHamHead")
"""Heads that take more than one feature map."""

_BATCH_NORMS = ("BN", "SyncBN", "BN2d", "MMSyncBN", "naiveSyncBN")


@dataclass(frozen=True)
class Norm:
    """Normalisation behind a head's convolutions.

    Args:
        kind: `"BN"` or `"GN"`.
        eps: what is added to the variance.
        groups: groups of `"GN"`.
    """

    kind: str = "BN"
    eps: float = 1e-5
    groups: int = 32


@dataclass(frozen=True)
class HeadConfig:
    """A decode head's configuration with nothing left open.

    Args:
        type: mmsegmentation's name of the head.
        in_channels: channels of each feature map that it takes.
        in_index: which feature maps these are among the backbone's.
        transform: `"one"`, `"concat"` (resized to the first and concatenated) or `"several"`.
        channels: channels in front of the classifier.
        num_classes: classes.
        out_channels: channels of the logits; other than the classes where two classes share one.
        dropout: rate in front of the classifier.
        norm: normalisation.
        align_corners: how feature maps and logits are resized.
        options: the head's own options.
    """

    type: str
    in_channels: tuple[int, ...]
    in_index: tuple[int, ...]
    transform: str
    channels: int
    num_classes: int
    out_channels: int
    dropout: float
    norm: Norm
    align_corners: bool
    options: Mapping[str, Any]

    @property
    def features(self) -> int:
        """Channels of the one feature map that the head takes."""
        return sum(self.in_channels)


def published_head(kind: str, num_classes: int) -> dict[str, Any]:
    """The configuration of the head `kind` as published on a ResNet-50 of output stride 8.

    Example:
        >>> config = published_head("CCHead", 19)
        >>> config["in_channels"], config["channels"], config["recurrence"]
        (2048, 512, 2)
    """
    in_channels, in_index = _MAPS.get(kind, (2048, 3))
    return {
        "type": kind,
        "in_channels": in_channels,
        "in_index": in_index,
        "channels": 256 if kind == "EMAHead" else 512,
        "num_classes": num_classes,
        "norm_cfg": {"type": "BN"},
        **PUBLISHED[kind],
    }


def head_config(config: Mapping[str, Any]) -> HeadConfig:
    """Reads a decode head's configuration as mmsegmentation 0.x and 1.x write it.

    What only training reads (losses, samplers, initialisation) is passed over.

    Raises:
        UsageError: if the head is not supported, with the list of those that are; if a key is unknown or missing, or
            a value is of another kind.
    """
    kind = config.get("type")
    if not isinstance(kind, str) or kind not in PUBLISHED:
        raise UsageError(f"decode head: expected one of {', '.join(PUBLISHED)}, got {kind!r}")
    known = (*_COMMON, *PUBLISHED[kind])
    for key in config:
        if key not in known and key not in _TRAINING:
            raise UsageError(f"{kind}: unknown key {key!r}{near(key, known)}")
    for key in ("in_channels", "channels", "num_classes"):
        if key not in config:
            raise UsageError(f"{kind}: expected {key}, got a configuration without it")
    if config.get("conv_cfg") is not None:
        raise UsageError(f"{kind}: expected plain convolutions, got conv_cfg {config['conv_cfg']!r}")
    activation = config.get("act_cfg", {"type": "ReLU"})
    if not isinstance(activation, Mapping) or activation.get("type") != "ReLU":
        raise UsageError(f"{kind}: expected act_cfg of type 'ReLU', got {activation!r}")
    in_channels, in_index = _positives(kind, config, "in_channels"), _indices(kind, config)
    transform = _transform(kind, config.get("input_transform"), in_channels, in_index)
    (channels,), (num_classes,) = (_positives(kind, config, key) for key in ("channels", "num_classes"))
    out_channels = config.get("out_channels") or num_classes
    if out_channels not in (num_classes, 1):
        raise UsageError(f"{kind}: expected out_channels {num_classes} or 1, got {out_channels!r}")
    options = {key: _tupled(config.get(key, default)) for key, default in PUBLISHED[kind].items()}
    return HeadConfig(
        type=kind,
        in_channels=in_channels,
        in_index=in_index,
        transform=transform,
        channels=channels,
        num_classes=num_classes,
        out_channels=out_channels,
        dropout=float(config.get("dropout_ratio", 0.1)),
        norm=_norm(kind, config.get("norm_cfg")),
        align_corners=bool(config.get("align_corners", False)),
        options=MappingProxyType(options),
    )


def _norm(kind: str, norm: Any) -> Norm:
    if not isinstance(norm, Mapping) or norm.get("type") not in (*_BATCH_NORMS, "GN"):
        raise UsageError(f"{kind}: expected norm_cfg of type 'BN', 'SyncBN' or 'GN', got {norm!r}")
    group = norm["type"] == "GN"
    if group and kind != "LightHamHead":
        raise UsageError(f"{kind}: expected norm_cfg of type 'BN' or 'SyncBN', got 'GN'")
    return Norm("GN" if group else "BN", float(norm.get("eps", 1e-5)), int(norm.get("num_groups", 32)))


def _transform(kind: str, transform: Any, in_channels: tuple[int, ...], in_index: tuple[int, ...]) -> str:
    if len(in_channels) != len(in_index):
        raise UsageError(f"{kind}: expected as many in_channels as in_index, got {in_channels} and {in_index}")
    if kind in SEVERAL:
        return "several"
    if transform == "resize_concat":
        return "concat"
    if transform is not None or len(in_channels) != 1:
        raise UsageError(f"{kind}: expected one feature map or input_transform 'resize_concat', got {transform!r}")
    return "one"


def _positives(kind: str, config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = config[key]
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values or any(type(item) is not int or item < 1 for item in values):
        raise UsageError(f"{kind}: expected {key} >= 1, got {value!r}")
    return values


def _indices(kind: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    value = config.get("in_index", -1)
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values or any(type(item) is not int for item in values):
        raise UsageError(f"{kind}: expected in_index to name feature maps, got {value!r}")
    return values


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def expect(config: HeadConfig, key: str, allowed: Collection[Any]) -> None:
    """Raises a `UsageError` unless the option `key` has one of the `allowed` values."""
    value = config.options[key]
    if value not in allowed:
        raise UsageError(f"{config.type}: expected {key} in {tuple(allowed)}, got {value!r}")
