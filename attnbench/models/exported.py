"""Trained weights as safetensors, with all that predicting takes in the file's metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from attnbench.atomic import write_atomically
from attnbench.config import WHOLE, Inference, Network, from_mapping
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.models.segmentor import Segmentor
from attnbench.records import Implementation

SUFFIX = ".safetensors"
_KEY = "attnbench"


@dataclass(frozen=True)
class Metadata:
    """What a network was trained as, and what its predictions mean.

    Args:
        operator: registry name of its operator.
        network: what stands around the operator.
        dataset: name of the dataset.
        classes: name of each class.
        palette: colour of each class.
        mean: mean of each colour channel that images are normalised by, as a fraction of 255.
        std: standard deviation of each colour channel, as a fraction of 255.
        implementation: of the operator.
        settings: JSON of the operator's hyper-parameters that differ from its defaults.
        image_size: size that images were loaded at; none keeps them.
        inference: how images were read when it was scored.
    """

    operator: str = "identity"
    network: Network = field(default_factory=Network)
    dataset: str = ""
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    implementation: Implementation = "reference"
    settings: str = "{}"
    image_size: tuple[int, int] | None = None
    inference: Inference = WHOLE


def export_weights(model: Segmentor, metadata: Metadata, path: str | Path) -> None:
    """Writes the weights and buffers of `model` to `path`, whole or not at all.

    Args:
        model: a network of `build_segmentor`.
        metadata: what it is; the place of its file of backbone weights is left out.
        path: the file, `*.safetensors`.

    Raises:
        UsageError: if the folder cannot be written.
    """
    # cloned, as two names of one tensor are not taken
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    metadata = dataclasses.replace(metadata, network=dataclasses.replace(metadata.network, backbone_weights=None))
    built = {key: value for key, value in dataclasses.asdict(metadata).items() if value is not None}
    data = safetensors.torch.save(tensors, {_KEY: json.dumps(built), "format": "pt"})
    write_atomically(Path(path), data)


def load_segmentor(path: str | Path) -> tuple[Segmentor, Metadata]:
    """The network in the file `path`, in evaluation mode on the CPU, and what it is.

    Raises:
        UsageError: if the file is missing, cut short, not one of `export_weights`, or its weights are not those of its
            description.
    """
    tensors, metadata = _read(Path(path))
    auxiliary = any(name.startswith("auxiliary_head.") for name in tensors)
    model = build_segmentor(
        metadata.operator,
        metadata.network,
        len(metadata.classes),
        implementation=metadata.implementation,
        settings=json.loads(metadata.settings),
        auxiliary_weight=1.0 if auxiliary else 0.0,
    )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"weights {str(path)!r}: expected those of its own description, got {error}") from error
    return model.eval(), metadata


def _read(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    if not path.is_file():
        raise UsageError(f"weights: expected an existing file, got {str(path)!r}")
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            described = (opened.metadata() or {}).get(_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise UsageError(f"weights {str(path)!r}: expected a whole safetensors file, got {error}") from error
    return tensors, _metadata(described, f"weights {str(path)!r}")


def _metadata(described: str | None, where: str) -> Metadata:
    try:
        fields: Any = json.loads(described or "null")
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, Mapping) or not {"operator", "network", "classes"} <= fields.keys():
        raise UsageError(f"{where}: expected a file of train.py, with operator, network and classes, got none of them")
    return from_mapping(Metadata, fields, f"{where}, metadata")
