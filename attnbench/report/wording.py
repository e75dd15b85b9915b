"""Numbers and settings as people read them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

STATUSES = {
    "out_of_memory": "out of memory",
    "error": "error",
    "timeout": "timeout",
    "crashed": "crashed",
    "nonconforming": "nonconforming",
    "unsupported": "unsupported",
    "not measured": "–",
}
_DEVICES = {"cpu": "CPU", "cuda": "GPU"}
_LEVELS = {"core": "Core", "operator": "Operator", "head": "Head", "network": "Network"}
_EXECUTION = {"channels_last": "channels last", "compiled": "torch.compile", "predicted": "predicted"}
_DATASETS = {
    "context": "embedded context task",
    "camvid": "CamVid",
    "voc": "Pascal VOC 2012",
    "cityscapes": "Cityscapes",
    "ade20k": "ADE20K",
    "pascal_context_59": "Pascal Context (59 classes)",
    "pascal_context_60": "Pascal Context (60 classes)",
    "coco_stuff": "COCO-Stuff",
}


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, never in exponents; whole from a thousand on.

    Example:
        >>> significant(0.0123456), significant(12.0), significant(1234.5), significant(0)
        ('0.0123', '12.0', '1234', '0')

    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{decimals}f}" if decimals > 0 else f"{value:.0f}"


def mean_std(mean: float, std: float | None, *, scale: float = 100.0, signed: bool = False) -> str:
    """`mean ± std` in percent; without `± std` where there is one value.

    Example:
        >>> mean_std(0.71234, 0.0041), mean_std(-0.0001, None, signed=True)
        ('71.2 ± 0.4', '+0.0')

    """
    text = f"{mean * scale:{'+' if signed else ''}z.1f}"
    return f"{text} ± {std * scale:.1f}" if std is not None else text


def present(value: Any) -> bool:
    """Whether a cell holds something: neither none, nor NaN, nor an empty text."""
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))


def label(row: Mapping[str, Any]) -> str:
    """Title of a row's operator, and its implementation and hyper-parameters where not the default."""
    settings = json.loads(row["settings"])
    parts = [] if row["implementation"] == "reference" else [str(row["implementation"])]
    parts += [f"{key} = {value}" for key, value in sorted(settings.items())]
    return f"{row['title']} ({', '.join(parts)})" if parts else str(row["title"])


def cost_title(cost: Mapping[str, Any]) -> str:
    """Heading of a cost setting: level, size, channels, batch, type and device."""
    size = f"{cost['height']}×{cost['width']}"
    parts = [
        _LEVELS[cost["level"]] + " level",
        f"{size} map",
        f"{cost['channels']} channels",
        f"batch {cost['batch']}",
    ]
    if cost["level"] in ("head", "network") and "network.backbone" in cost:
        parts.insert(
            1,
            str(cost["network.backbone"]) if cost["level"] == "network" else f"{cost.get('in_channels')} inputs",
        )
    parts += [words for key, words in _EXECUTION.items() if cost.get(key)]
    return ", ".join([*parts, cost["dtype"], _DEVICES[cost["device"]]])


def accuracy_title(accuracy: Mapping[str, Any]) -> str:
    """Heading of an accuracy setting: dataset, backbone, iterations and device."""
    parts = [_DATASETS.get(accuracy["dataset"], accuracy["dataset"])]
    if "image_size" in accuracy:
        parts.append("×".join(map(str, accuracy["image_size"])) + " images")
    if "network.backbone" in accuracy:
        parts.append(f"{accuracy['network.backbone']} backbone{_frozen(accuracy)}")
    if accuracy.get("network.head") == "linear":
        parts.append("linear head")
    if "inference.mode" in accuracy:
        parts.append(_reading(accuracy))
    if "recipe.iterations" in accuracy:
        parts.append(f"{accuracy['recipe.iterations']} iterations of {accuracy.get('recipe.batch_size', '?')} images")
    return ", ".join([*parts, _DEVICES[accuracy["device"]]])


def _frozen(accuracy: Mapping[str, Any]) -> str:
    if not accuracy.get("freeze_backbone"):
        return ""
    return " (frozen, features cached)" if accuracy.get("cache_features") else " (frozen)"


def _reading(accuracy: Mapping[str, Any]) -> str:
    """How images were read, where that is not whole and once."""
    scales = accuracy["inference.scales"]
    read = "whole"
    if accuracy["inference.mode"] == "slide":
        read = "in windows of " + "×".join(map(str, accuracy["inference.crop_size"]))
    if scales != [1.0]:
        read += " at scales " + ", ".join(f"{scale:g}" for scale in scales)
    return "read " + read + (" and mirrored" if accuracy["inference.flip"] else "")


def details(setting: Mapping[str, Any]) -> str:
    """All fields of a setting as `name value`, for those who want to repeat it."""
    shown = ((key, value) for key, value in setting.items() if key not in ("protocol", "environment", "device"))
    return ", ".join(f"{key} {'×'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in shown)


def slug(*parts: Any) -> str:
    """A file name of lower-case words and dashes.

    Example:
        >>> slug("operator", "65x65", "CamVid 11")
        'operator-65x65-camvid-11'

    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, parts)).lower()).strip("-")


def distinct(values: Iterable[Any]) -> list[Any]:
    """Values in the order of their first appearance, each once, empty ones left out."""
    return list(dict.fromkeys(value for value in values if present(value)))
