"""Checkpoint files of the project's own networks, and the reading of any."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnbench.config import WHOLE, Inference, Network, from_mapping
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.models.exported import SUFFIX, load_segmentor
from attnbench.models.heads import DecodeHead
from attnbench.models.mmseg.checkpoint import Checkpoint, read_checkpoint
from attnbench.models.mmseg.heads import DualHead
from attnbench.models.mmseg.segmentor import MMSegSegmentor, from_checkpoint
from attnbench.models.segmentor import Segmentor
from attnbench.models.weights import mismatch
from attnbench.records import Implementation
from operators.interface import AttentionOperator
from operators.registry import names

Colour = tuple[int, ...]
"""Red, green and blue from 0 to 255."""

_FORMAT = "attnbench"


@dataclass(frozen=True)
class Saved:
    """A network out of a checkpoint file, in evaluation mode.

    Args:
        model: from images to logits at their size.
        operator: registry name of its operator.
        network: what stands around the operator.
        num_classes: classes of its logits.
        implementation: of the operator.
        settings: JSON of the operator's hyper-parameters, where the file names them.
        inference: how the file wants images to be read.
        classes: name of each class; empty where the file does not name them.
        palette: colour of each class; empty where the file does not name them.
        mean: mean of each colour channel that images are normalised by, as a fraction of 255; none where the file does
            not say.
        std: standard deviation of each colour channel, likewise.
        image_size: size that the network's images were loaded at; none where they kept theirs.
    """

    model: nn.Module
    operator: str
    network: Network
    num_classes: int
    implementation: Implementation = "reference"
    settings: str = "{}"
    inference: Inference = WHOLE
    classes: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: tuple[int, int] | None = None


def save_checkpoint(
    model: Segmentor,
    path: str | Path,
    *,
    operator: str,
    network: Network,
    implementation: Implementation = "reference",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes weights of `model` and what builds it again: tensors and plain data alone.

    Args:
        model: a network of `build_segmentor`.
        path: the file.
        operator: registry name of its operator.
        network: what it was built with.
        implementation: of the operator.
        settings: of the operator.
    """
    built = {
        "operator": operator,
        "network": {key: value for key, value in dataclasses.asdict(network).items() if value is not None},
        "num_classes": model.decode_head.num_classes,
        "implementation": implementation,
        "settings": dict(settings or {}),
    }
    torch.save({"meta": {_FORMAT: built}, "state_dict": model.state_dict()}, path)


def load_any(path: str | Path) -> Saved:
    """The network in the file `path`, ours (`*.safetensors` or not) or mmsegmentation's; no code from the file runs.

    Raises:
        UsageError: if the file cannot be read, or the network in it is not supported or not complete.
    """
    if str(path).endswith(SUFFIX):
        return _exported(path)
    checkpoint = read_checkpoint(path)
    built = checkpoint.meta.get(_FORMAT)
    if built is None:
        try:
            return _theirs(from_checkpoint(checkpoint), checkpoint.meta)
        except UsageError as error:
            reason = str(error).removeprefix("checkpoint: ")
            raise UsageError(f"checkpoint {str(path)!r}: {reason}") from error
    return _ours(checkpoint, built, str(path))


def _exported(path: str | Path) -> Saved:
    model, metadata = load_segmentor(path)
    described = (metadata.operator, metadata.network, len(metadata.classes))
    return Saved(
        model,
        *described,
        metadata.implementation,
        metadata.settings,
        metadata.inference,
        classes=metadata.classes,
        palette=metadata.palette,
        mean=metadata.mean,
        std=metadata.std,
        image_size=metadata.image_size,
    )


def _ours(checkpoint: Checkpoint, built: Any, path: str) -> Saved:
    if not isinstance(built, Mapping) or not {"operator", "network", "num_classes"} <= built.keys():
        raise UsageError(f"checkpoint {path!r}: expected operator, network and num_classes, got {built!r}")
    network = from_mapping(Network, {**built["network"], "backbone_weights": None}, f"checkpoint {path!r}, network")
    implementation, settings = built.get("implementation", "reference"), built.get("settings", {})
    auxiliary = any(name.startswith("auxiliary_head.") for name in checkpoint.state_dict)
    model = build_segmentor(
        built["operator"],
        network,
        built["num_classes"],
        implementation=implementation,
        settings=settings,
        auxiliary_weight=1.0 if auxiliary else 0.0,
    )
    found = mismatch(model.state_dict(), checkpoint.state_dict)
    if found:
        raise UsageError(f"checkpoint {path!r}: expected the weights of its own description, got {found}")
    model.load_state_dict(checkpoint.state_dict, strict=False)
    return Saved(model.eval(), built["operator"], network, built["num_classes"], implementation, json.dumps(settings))


def _theirs(model: MMSegSegmentor, meta: Mapping[str, Any]) -> Saved:
    head = model.decode_heads[-1].head
    assert isinstance(head, nn.Module)
    classifier = head.classifier
    assert isinstance(classifier, nn.Conv2d)
    slot = head.operator.channels if isinstance(head, DecodeHead) else classifier.in_channels
    network = Network(
        backbone=f"resnet{model.depth}",  # type: ignore[arg-type]
        output_stride=model.backbone.output_stride,
        stem="7x7" if isinstance(model.backbone.conv1, nn.Conv2d) else "32-32-64",
        slot_channels=slot,
        head_channels=classifier.in_channels,
        concat_input=isinstance(head, DecodeHead) and head.fusion is not None,
    )
    classes, palette = _described(meta, classifier.out_channels)
    return Saved(
        model,
        _operator_name(head),
        network,
        classifier.out_channels,
        inference=model.inference,
        classes=classes,
        palette=palette,
    )


def _described(meta: Mapping[str, Any], count: int) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and colours of the classes in a file of mmsegmentation 0.x or 1.x, where it has one for each of them."""
    described = meta.get("dataset_meta")
    described = described if isinstance(described, Mapping) else {}
    names = described.get("classes", meta.get("CLASSES"))
    colours = described.get("palette", meta.get("PALETTE"))
    classes = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    palette = tuple(map(tuple, colours)) if isinstance(colours, list | tuple) and all(map(_is_colour, colours)) else ()
    return classes if len(classes) == count else (), palette if len(palette) == count else ()


def _is_colour(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(v) is int and 0 <= v < 256 for v in value)


def _operator_name(head: nn.Module) -> str:
    if isinstance(head, DualHead):
        return "dual"
    inside = [module for module in head.modules() if isinstance(module, AttentionOperator)]
    known = [module.spec.name for module in inside if hasattr(module, "spec") and module.spec.name in names()]
    return known[0] if known else "identity"
