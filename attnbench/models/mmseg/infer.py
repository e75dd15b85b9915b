"""A network's configuration, read off the names and shapes of its weights."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from attnbench.errors import UsageError
from attnbench.models.mmseg.config import PUBLISHED, SEVERAL
from attnbench.models.mmseg.shapes import READERS

_LOG = logging.getLogger(__name__)
State = Mapping[str, Tensor]

_MARKS: Mapping[str, str] = {
    "ema_module.": "EMAHead",
    "dnl_block.": "DNLHead",
    "nl_block.": "NLHead",
    "cca.": "CCHead",
    "pam_in_conv.": "DAHead",
    "gc_block.": "GCHead",
    "context.stages.": "ANNHead",
    "global_relation.": "ISAHead",
    "object_context_block.": "OCRHead",
    "enc_module.": "EncHead",
    "attention.1.weight": "PSAHead",
    "acm_modules.": "APCHead",
    "dcm_modules.": "DMHead",
    "hamburger.": "LightHamHead",
    "sep_bottleneck.": "DepthwiseSeparableASPPHead",
    "aspp_modules.": "ASPPHead",
    "psp_modules.": "PSPHead",
    "convs.": "FCNHead",
}
"""What a head's names begin with -> its type; the first that is there counts."""

_BLOCKS: Mapping[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 50, (3, 4, 23, 3): 101}


def infer_segmentor(state: State, written: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of the network that `state` holds.

    Types, depth and widths are read off names and shapes. What leaves no trace there (EM stages, recurrence, pooling
    scales, dilations) takes the value that is written in the file's own configuration, otherwise that of the
    published one, and is logged.

    Args:
        state: parameters under mmsegmentation's names.
        written: configuration that stands in the file, if one does.

    Raises:
        UsageError: if the backbone or a head is not recognised.
    """
    written = written or {}
    backbone = _backbone(state, written.get("backbone") or {})
    cascade = any(name.startswith("decode_head.0.") for name in state)
    config: dict[str, Any] = {
        "type": "CascadeEncoderDecoder" if cascade else "EncoderDecoder",
        "backbone": backbone,
        "decode_head": _heads(state, "decode_head", backbone, written),
        "auxiliary_head": _heads(state, "auxiliary_head", backbone, written),
    }
    if written.get("test_cfg"):
        config["test_cfg"] = written["test_cfg"]
    if cascade:
        config["num_stages"] = len(config["decode_head"])
    return config


def written_config(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's configuration as text in `meta`, read as data; empty where there is none or it is more than data.

    Files of 0.x have it under `"config"`, files of 1.x under `"cfg"`. Where `test_cfg` stands beside the model, as in
    the first versions, it is taken as the model's.

    Example:
        >>> written_config({"cfg": "model = dict(decode_head=dict(type='CCHead', recurrence=3))"})["decode_head"]
        {'type': 'CCHead', 'recurrence': 3}
    """
    text = meta.get("cfg", meta.get("config"))
    if not isinstance(text, str):
        return {}
    try:
        statements = ast.parse(text).body
        values = {
            name: _literal(item.value)
            for item in statements
            if isinstance(item, ast.Assign)
            for name in map(ast.unparse, item.targets)
            if name in ("model", "test_cfg")
        }
    except (SyntaxError, ValueError, RecursionError):
        return {}
    model, reading = values.get("model"), values.get("test_cfg")
    if not isinstance(model, dict):
        return {}
    return {"test_cfg": reading, **model} if isinstance(reading, dict) else model


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_literal, node.values), strict=True))
    return ast.literal_eval(node)


def _backbone(state: State, written: Mapping[str, Any]) -> dict[str, Any]:
    names = [name.removeprefix("backbone.") for name in state if name.startswith("backbone.")]
    counts = tuple(_count(names, f"layer{stage}.") for stage in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in names
    depth = 34 if counts == (3, 4, 6, 3) and not bottleneck else _BLOCKS.get(counts)
    first = state.get("backbone.layer1.0.conv1.weight")
    if depth is None or first is None:
        found = sorted({name.partition(".")[0] for name in names})
        raise UsageError(
            "checkpoint: expected the backbone of a ResNet, ResNetV1c or ResNetV1d of depth 18, 34, 50 or 101, "
            f"got parts {', '.join(found) or 'none'}"
        )
    deep, pooled = "stem.0.weight" in names, "layer2.0.downsample.2.weight" in names
    config: dict[str, Any] = {
        "type": "ResNetV1d" if pooled and deep else "ResNetV1c" if deep else "ResNet",
        "depth": depth,
        "base_channels": len(first),
        "norm_cfg": {"type": "BN"},
    }
    if pooled and not deep:
        config["avg_down"] = True
    defaults = {
        "strides": (1, 2, 1, 1),
        "dilations": (1, 1, 2, 4),
        "contract_dilation": True,
        "multi_grid": None,
    }
    return {**config, **_unread(defaults, written, "backbone")}


def _unread(defaults: Mapping[str, Any], written: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What leaves no trace in names and shapes, from the written configuration or the published one."""
    chosen = {key: written.get(key, default) for key, default in defaults.items()}
    for report, source, keys in (
        (_LOG.info, "the file's", [key for key in chosen if key in written]),
        (_LOG.warning, "the published", [key for key in chosen if key not in written]),
    ):
        if keys:
            told = ", ".join(f"{key}={chosen[key]!r}" for key in keys)
            report("%s: not to be read off the weights, taken from %s configuration: %s", what, source, told)
    return chosen


def _count(names: Iterable[str], prefix: str) -> int:
    """How many numbered parts follow `prefix`."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    return len(numbers)


def _heads(state: State, place: str, backbone: Mapping[str, Any], written: Mapping[str, Any]) -> Any:
    names = [name for name in state if name.startswith(f"{place}.")]
    if not names and place == "auxiliary_head":
        return None
    given = written.get(place)
    numbered = sorted({int(match[1]) for name in names if (match := re.match(rf"{place}\.(\d+)\.", name))})
    if not numbered:
        return _head(_below(state, place), _as_mapping(given), backbone, place)
    configs = given if isinstance(given, list) and len(given) == len(numbered) else [{} for _ in numbered]
    return [
        _head(_below(state, f"{place}.{index}"), _as_mapping(config), backbone, f"{place}.{index}")
        for index, config in zip(numbered, configs, strict=True)
    ]


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _below(state: State, place: str) -> dict[str, Tensor]:
    return {name[len(place) + 1 :]: tensor for name, tensor in state.items() if name.startswith(f"{place}.")}


def _head(state: State, written: Mapping[str, Any], backbone: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The configuration of the head at `what`, whose parameters are in `state` without that prefix."""
    kind = next((kind for mark, kind in _MARKS.items() if any(name.startswith(mark) for name in state)), None)
    if kind is None or "conv_seg.weight" not in state:
        found = sorted({name.partition(".")[0] for name in state})
        raise UsageError(
            f"{what}: expected the names of one of {', '.join(PUBLISHED)}, got parts {', '.join(found) or 'none'}"
        )
    classes, channels = state["conv_seg.weight"].shape[:2]
    if written.get("type") != kind:
        written = {}
    widths, read = READERS[kind](state)
    in_index = _in_index(widths, backbone, what)
    if kind in SEVERAL:
        maps: dict[str, Any] = {"in_channels": [_stages(backbone)[index] for index in in_index], "in_index": in_index}
    else:
        maps = {"in_channels": widths[0], "in_index": in_index[0]}
    open_values = {key: value for key, value in PUBLISHED[kind].items() if key not in read}
    if kind == "PSAHead" and "psa_type" not in read:
        open_values["psa_type"] = "collect"
    return {
        "type": kind,
        "channels": channels,
        "num_classes": 2 if classes == 1 else classes,
        "out_channels": classes,
        "norm_cfg": {"type": "BN"},
        **maps,
        **read,
        **_unread({**open_values, "align_corners": False}, written, f"{what} ({kind})"),
    }


def _stages(backbone: Mapping[str, Any]) -> list[int]:
    """Channels of the backbone's feature maps."""
    expansion = 4 if backbone["depth"] >= 50 else 1
    return [backbone["base_channels"] * expansion * 2**stage for stage in range(4)]


def _in_index(widths: list[int], backbone: Mapping[str, Any], what: str) -> list[int]:
    """Which maps have these widths; one width may also be the sum of the last ones."""
    stages = _stages(backbone)
    if all(width in stages for width in widths):
        return [stages.index(width) for width in widths]
    for first in range(4):
        if widths == [sum(stages[first:])]:
            return list(range(first, 4))
    raise UsageError(f"{what}: expected feature maps of {widths} channels, got a backbone with {stages}")
