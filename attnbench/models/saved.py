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

from attnbench.config import Network, from_mapping
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.models.heads import DecodeHead
from attnbench.models.mmseg.checkpoint import Checkpoint, read_checkpoint
from attnbench.models.mmseg.heads import DualHead
from attnbench.models.mmseg.segmentor import MMSegSegmentor, from_checkpoint
from attnbench.models.segmentor import Segmentor
from attnbench.models.weights import mismatch
from attnbench.records import Implementation
from operators.interface import AttentionOperator
from operators.registry import names

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
    """

    model: nn.Module
    operator: str
    network: Network
    num_classes: int
    implementation: Implementation = "reference"
    settings: str = "{}"


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
    """The network in the file `path`, ours or mmsegmentation's; no code from the file runs.

    Raises:
        UsageError: if the file cannot be read, or the network in it is not supported or not complete.
    """
    checkpoint = read_checkpoint(path)
    built = checkpoint.meta.get(_FORMAT)
    if built is None:
        return _theirs(from_checkpoint(checkpoint))
    return _ours(checkpoint, built, str(path))


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


def _theirs(model: MMSegSegmentor) -> Saved:
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
    return Saved(model, _operator_name(head), network, classifier.out_channels)


def _operator_name(head: nn.Module) -> str:
    if isinstance(head, DualHead):
        return "dual"
    inside = [module for module in head.modules() if isinstance(module, AttentionOperator)]
    known = [module.spec.name for module in inside if hasattr(module, "spec") and module.spec.name in names()]
    return known[0] if known else "identity"
