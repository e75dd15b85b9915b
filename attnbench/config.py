"""What an experiment is: frozen dataclasses, their TOML presets, and errors that name a near key.

An `Experiment` is the whole of what was asked for. `attnbench.planning.plan` unfolds it into `Trial`s, the units that
are measured, recorded and resumed. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from attnbench.errors import UsageError

Level = Literal["core", "operator", "head", "network"]
Mode = Literal["forward", "training"]
DType = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["sgd", "adamw"]
Backbone = Literal["small", "resnet18", "resnet34", "resnet50", "resnet101"]
Stem = Literal["7x7", "32-32-64", "64-64-128"]
Amp = Literal["off", "bfloat16", "float16"]
Head = Literal["slot", "linear"]
BatchNorm = Literal["shared", "process", "frozen"]
Kernel = Literal[1, 3]

ClassBalance = Literal["none", "median_frequency", "enet"]
Reading = Literal["whole", "slide"]

_T = TypeVar("_T")


LATER = types.MappingProxyType({"later": True})
"""Metadata of a field that the first records were written without: its default is neither recorded nor identifies."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the same for every operator.

    Args:
        optimizer: `"sgd"` or `"adamw"`.
        learning_rate: initial learning rate.
        head_learning_rate_factor: multiplier of the learning rate for everything that is not the backbone.
        momentum: momentum of SGD.
        weight_decay: weight decay.
        power: exponent of the poly schedule `lr * (1 - t/T)^power`.
        iterations: number of optimiser steps `T`.
        batch_size: images per step.
        crop_size: height and width of the training crop; none for the whole image.
        scale_range: random resize before the crop.
        flip: whether to mirror half of the images.
        auxiliary_weight: weight of the auxiliary head's loss (0 builds no auxiliary head).
        clip_gradient_norm: largest norm of the gradient (0 does not clip).
        amp: autocast precision of the forward pass.
        channels_last: whether images and weights are laid out with channels innermost.
        photometric: whether brightness, contrast, saturation and hue are distorted at random.
        base_scale: long and short side that an image is fitted into, keeping its aspect, before the random resize;
            none takes it as it is.
        category_max_ratio: largest share of one class among the labelled pixels of a crop; up to ten crops are drawn.
        ohem_threshold: pixels whose class has at least this probability do not count in the loss; 0 counts all.
        ohem_min_kept: pixels of each image that count all the same, the hardest first.
        class_weights: weight of each class in the pixel losses; none weighs them alike.
        class_balance: weights computed from the training split in place of `class_weights`; see
            `attnbench.training.balance`.
        warmup_iterations: iterations in which the learning rate rises linearly to that of the schedule.
        warmup_ratio: factor of the learning rate that the rise begins at.
        min_learning_rate: learning rate that the schedule ends at, in every group.
        bias_learning_rate_factor: multiplier of the learning rate of biases.
        decay_weights_only: whether weight decay is kept off biases and normalisations: the weights of convolutions and
            linear layers alone decay.
        batch_norm_momentum: momentum of every batch normalisation; none leaves what the layers have.
        accumulate: micro-batches that a step's `batch_size` images are cut into.
        compile: whether `torch.compile` compiles the model for training, without the deterministic algorithms under
            which torch 2.13 compiles wrong gradients.
        batch_norm: what batch normalisation takes its statistics from in training: the images of all processes
            (`"shared"`), of each process alone (`"process"`), or its running statistics, which then stay (`"frozen"`).
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 0.005
    head_learning_rate_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.01
    power: float = 0.9
    iterations: int = 300
    batch_size: int = 16
    crop_size: tuple[int, int] | None = None
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    auxiliary_weight: float = 0.0
    clip_gradient_norm: float = 0.0
    amp: Amp = "off"
    channels_last: bool = True
    photometric: bool = field(default=False, metadata=LATER)
    base_scale: tuple[int, int] | None = field(default=None, metadata=LATER)
    category_max_ratio: float = field(default=1.0, metadata=LATER)
    ohem_threshold: float = field(default=0.0, metadata=LATER)
    ohem_min_kept: int = field(default=100_000, metadata=LATER)
    class_weights: tuple[float, ...] = field(default=(), metadata=LATER)
    class_balance: ClassBalance = field(default="none", metadata=LATER)
    warmup_iterations: int = field(default=0, metadata=LATER)
    warmup_ratio: float = field(default=1e-6, metadata=LATER)
    min_learning_rate: float = field(default=0.0, metadata=LATER)
    bias_learning_rate_factor: float = field(default=1.0, metadata=LATER)
    decay_weights_only: bool = field(default=False, metadata=LATER)
    batch_norm_momentum: float | None = field(default=None, metadata=LATER)
    accumulate: int = field(default=1, metadata=LATER)
    compile: bool = field(default=False, metadata=LATER)
    batch_norm: BatchNorm = field(default="shared", metadata=LATER)


@dataclass(frozen=True)
class Network:
    """The network around the slot.

    Args:
        backbone: name of the backbone.
        output_stride: 8 or 16; 4 for the small backbone.
        stem: the ResNet's first layers.
        multi_grid: dilation multipliers of the last stage's blocks.
        dilate_both: whether both convolutions of a basic block are dilated, so that ResNet-18 and -34 compute what
            they were pretrained to; mmsegmentation dilates the first alone.
        feature_stages: stages of a ResNet whose outputs, concatenated at the last one's size, are the head's features;
            they rise and end with 4 (mmsegmentation's `in_index` and `resize_concat`).
        backbone_weights: file with ImageNet weights under torchvision's names; none for random initialisation.
        head: `"slot"` for the decode head with the operator's slot, `"linear"` for a 1x1 classifier on the backbone
            alone.
        slot_channels: channels `C` of the operator's slot.
        head_channels: channels behind the slot (the bottleneck in front of the classifier).
        reduction_kernel: 1 or 3, kernel of the convolution in front of the slot.
        concat_input: whether the head concatenates its input before the bottleneck's output, as mmsegmentation does.
        dropout: rate in front of the classifier.
    """

    backbone: Backbone = "small"
    output_stride: int = 4
    stem: Stem = "7x7"
    multi_grid: tuple[int, ...] = (1, 1, 1)
    dilate_both: bool = False
    feature_stages: tuple[int, ...] = field(default=(4,), metadata=LATER)
    backbone_weights: str | None = None
    head: Head = "slot"
    slot_channels: int = 64
    head_channels: int = 64
    reduction_kernel: Kernel = field(default=3, metadata=LATER)
    concat_input: bool = False
    dropout: float = 0.1


@dataclass(frozen=True)
class Cost:
    """What to measure of an operator's cost.

    Args:
        levels: any of core, operator, head, network.
        sizes: heights and widths of the feature map; the network level sees images of `output_stride * (size - 1) + 1`.
        channels: channels of the slot.
        batches: batch sizes.
        dtypes: floating-point types.
        modes: `"forward"` (evaluation, no gradients) and `"training"` (forward and backward).
        channels_last: whether weights and inputs are laid out with channels innermost.
        compiled: whether latency is that of `torch.compile`.
        predicted: whether parameters, MACs and memory are predicted, without running anything or holding a tensor.
        num_classes: classes of the head and network levels.
        in_channels: input channels of the head level.
        network: the network of the network level.
        seconds_per_trial: time budget of the latency samples of one trial.
        min_samples: samples that are taken whatever the budget.
        target_width: width of the 95 % interval of the ratio to the control, relative to it, that ends the samples.
        timeout: seconds after which a step is given up.
    """

    levels: tuple[Level, ...] = ("operator",)
    sizes: tuple[tuple[int, int], ...] = ((65, 65),)
    channels: tuple[int, ...] = (512,)
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[DType, ...] = ("float32",)
    modes: tuple[Mode, ...] = ("forward", "training")
    channels_last: bool = False
    compiled: bool = False
    predicted: bool = False
    num_classes: int = 21
    in_channels: int = 2048
    network: Network = field(
        default_factory=lambda: Network(backbone="resnet50", output_stride=8, slot_channels=512, head_channels=256)
    )
    seconds_per_trial: float = 1.5
    min_samples: int = 6
    target_width: float = 0.05
    timeout: float = 300.0


@dataclass(frozen=True)
class Inference:
    """How a trained network reads an image; docs/training.md says what is averaged where.

    Args:
        mode: `"whole"` reads the image at once, `"slide"` in windows whose logits are averaged.
        crop_size: height and width of the window; smaller images are read at once.
        stride: rows and columns from one window to the next, at most those of the window.
        scales: factors that the image is read at; of several, and with `flip`, probabilities are averaged.
        flip: whether the mirrored image is read, too.
    """

    mode: Reading = "whole"
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


WHOLE = Inference()
"""The image at once, as it is."""


@dataclass(frozen=True)
class Accuracy:
    """What to train and score.

    Args:
        dataset: `"context"` (the embedded synthetic task), or a name of docs/datasets.md.
        data_root: folder of the dataset; none for the embedded task.
        image_size: height and width that images are resized to when they are loaded; none keeps them.
        train_split: split to train on.
        eval_split: split to score.
        seeds: one training run each.
        jobs: training runs at a time; 0 is one for each core on CPU, one on CUDA.
        workers: processes that load data for each training run; 0 loads in the run's own. Results do not depend on it.
        freeze_backbone: whether only what stands behind the backbone is trained (a probe of its features).
        cache_features: whether a frozen backbone's features are computed once and kept on disk.
        network: the network.
        recipe: the training recipe.
        inference: how images are read when the network is scored.
        boundary: whether the boundary F-score is computed, too.
        timeout: seconds without progress after which a run is given up.
    """

    dataset: str = "context"
    data_root: str | None = None
    image_size: tuple[int, int] | None = None
    train_split: str = "train"
    eval_split: str = "val"
    seeds: tuple[int, ...] = (0,)
    jobs: int = 0
    workers: int = 0
    freeze_backbone: bool = False
    cache_features: bool = False
    network: Network = field(default_factory=Network)
    recipe: Recipe = field(default_factory=Recipe)
    inference: Inference = field(default_factory=Inference)
    boundary: bool = False
    timeout: float = 600.0


@dataclass(frozen=True)
class Experiment:
    """Everything that one run of `compare.py` does.

    Args:
        about: what a preset is for, and how long it takes.
        operators: names in the registry; `("all",)` for every one.
        operator_files: `path/to/file.py:Class` of further operators, compared beside the others.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        settings: for each operator that is to differ from its defaults, its hyper-parameters.
        cost: what to measure; none measures no cost.
        accuracy: what to train; none trains nothing.
    """

    about: str = ""
    operators: tuple[str, ...] = ("all",)
    operator_files: tuple[str, ...] = ()
    device: str = "auto"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    cost: Cost | None = field(default_factory=Cost)
    accuracy: Accuracy | None = field(default_factory=Accuracy)


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the package."""
    folder = resources.files("attnbench") / "presets"
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def load_preset(name_or_path: str) -> Experiment:
    """Reads a preset of the package by name, or a TOML file by path.

    Raises:
        UsageError: if there is no such preset, it is not TOML, or a key or value is unknown; a near name is suggested.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UsageError(f"preset: expected an existing file, got {name_or_path!r}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"preset {name_or_path!r}: expected a TOML file in UTF-8, got {error}") from error
    else:
        known = preset_names()
        if name_or_path not in known:
            raise UsageError(f"unknown preset {name_or_path!r}{near(name_or_path, known)}")
        text = (resources.files("attnbench") / "presets" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"preset {name_or_path!r}: expected TOML, got {error}") from error
    return from_mapping(Experiment, table, where=f"preset {name_or_path!r}")


def near(name: str, known: typing.Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for a near name, otherwise the known names."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known: {', '.join(known)}"


def from_mapping(cls: type[_T], values: Mapping[str, Any], where: str) -> _T:
    """Builds the dataclass `cls` from plain data; an unknown key or a value of another type is an error.

    A sub-table that is absent takes the field's default; `key = false` sets an optional sub-table to none; a
    sub-table that is there starts from the field's default, so that it only names what differs.

    Raises:
        UsageError: naming the key, what was expected, and a near key if there is one.
    """
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    default = cls()
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UsageError(f"{where}: unknown key {key!r}{near(key, fields)}")
        given[key] = _convert(hints[key], value, getattr(default, key), where=f"{where}, {key}")
    return dataclasses.replace(default, **given)  # type: ignore[type-var]


def _convert(hint: Any, value: Any, default: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or value is False:
            return None
        return _convert(next(item for item in arguments if item is not type(None)), value, default, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: expected a table, got {value!r}")
        base = dataclasses.asdict(default) if default is not None else {}
        return from_mapping(typing.cast(type, hint), _merge(base, value), where)
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"{where}: unknown value {value!r}{near(str(value), map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, got {value!r}")
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, None, where) for item in value)
        if len(value) != len(arguments):
            raise UsageError(f"{where}: expected {len(arguments)} values, got {value!r}")
        return tuple(_convert(item_hint, item, None, where) for item_hint, item in zip(arguments, value, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: expected a table, got {value!r}")
        return {key: _convert(arguments[1], item, None, f"{where}, {key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in update.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def updated(experiment: Experiment, changes: Mapping[str, Any], where: str) -> Experiment:
    """`experiment` with nested `changes` applied, for example `{"accuracy": {"recipe": {"iterations": 500}}}`."""
    return from_mapping(Experiment, _merge(dataclasses.asdict(experiment), changes), where)
