"""Accuracy, training memory and speed that mmsegmentation publishes for its heads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from attnbench.published.figures import number, read
from attnbench.published.outcomes import Computed

VERSION = "0.21.1"
DEVICE = "V100"
SOURCE = f"https://github.com/open-mmlab/mmsegmentation/tree/v{VERSION}/configs"

HEADS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ANN": ("ANNHead", "asymmetric_pyramid"),
        "APCNet": ("APCHead", "adaptive_pyramid_context"),
        "CCNet": ("CCHead", "criss_cross"),
        "DANet": ("DAHead", "dual"),
        "DMNet": ("DMHead", "dynamic_multi_scale"),
        "DNL": ("DNLHead", "disentangled_non_local"),
        "DeepLabV3": ("ASPPHead", "aspp"),
        "DeepLabV3+": ("DepthwiseSeparableASPPHead", "separable_aspp"),
        "EMANet": ("EMAHead", "ema"),
        "EncNet": ("EncHead", "context_encoding"),
        "FCN": ("FCNHead", "identity"),
        "GCNet": ("GCHead", "global_context"),
        "ISANet": ("ISAHead", "interlaced_sparse"),
        "NonLocal": ("NLHead", "non_local"),
        "OCRNet": ("OCRHead", "object_contextual"),
        "PSANet": ("PSAHead", "point_wise_spatial"),
        "PSPNet": ("PSPHead", "pyramid_pooling"),
    }
)
"""Method -> mmsegmentation's head, and the operator inside it under its name in the registry."""

CROPS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"Cityscapes": (512, 1024), "ADE20K": (512, 512), "VOC12aug": (512, 512)}
)
"""Data set -> the crop whose runs are shown; the file has others."""

CLASSES: Mapping[str, int] = MappingProxyType({"Cityscapes": 19, "ADE20K": 150, "VOC12aug": 21})
"""Data set -> number of its classes."""


@dataclass(frozen=True)
class ZooRow:
    """One training run that mmsegmentation publishes.

    Args:
        method: name in the zoo.
        backbone: `"R-50-D8"` or `"R-101-D8"`, output stride 8.
        dataset: what was trained on and scored.
        crop: height and width of the training crops.
        iterations: length of the training.
        precision: `"FP32"` or `"FP16"`.
        miou: mIoU in percent, at a single scale.
        miou_multi_scale: at several scales and flipped.
        memory_gb: training memory of one GPU.
        fps: images per second in inference.
        folder: folder of the configuration.
        config: its name.
    """

    method: str
    backbone: str
    dataset: str
    crop: tuple[int, int]
    iterations: int
    precision: str
    miou: Decimal
    miou_multi_scale: Decimal | None
    memory_gb: Decimal | None
    fps: Decimal | None
    folder: str
    config: str

    @property
    def batch(self) -> int | None:
        """Batch size, where the name of the configuration tells runs apart by it."""
        found = re.search(r"_b(\d+)_", self.config)
        return int(found[1]) if found else None

    @property
    def source(self) -> str:
        """Address of the page that prints the row."""
        return f"{SOURCE}/{self.folder}/README.md"


def load_zoo() -> list[ZooRow]:
    """Every row of `zoo.csv`, in the order of the file.

    Example:
        >>> len(load_zoo())
        235
    """
    return [
        ZooRow(
            method=row["method"],
            backbone=row["backbone"],
            dataset=row["dataset"],
            crop=(int(row["crop_height"]), int(row["crop_width"])),
            iterations=int(row["iterations"]),
            precision=row["precision"],
            miou=Decimal(row["miou"]),
            miou_multi_scale=number(row["miou_multi_scale"]),
            memory_gb=number(row["memory_gb"]),
            fps=number(row["fps"]),
            folder=row["folder"],
            config=row["config"],
        )
        for row in read("zoo.csv")
    ]


@dataclass(frozen=True)
class ZooEntry:
    """The runs of one method on one data set, and what the project computes for the method's head.

    Args:
        runs: runs on one backbone and crop, the shortest first.
        computed: cost of the head on the features of one crop.
    """

    runs: tuple[ZooRow, ...]
    computed: Computed


def shown(rows: Iterable[ZooRow]) -> list[tuple[ZooRow, ...]]:
    """The runs that belong together: one method, data set and crop, in FP32 on ResNet-50.

    A method that has no run on ResNet-50 is shown on ResNet-101.
    """
    groups: dict[tuple[str, str], list[ZooRow]] = {}
    for row in rows:
        if row.crop == CROPS[row.dataset] and row.precision == "FP32":
            groups.setdefault((row.dataset, row.method), []).append(row)
    return [_on_the_smaller_backbone(groups[key]) for key in groups]


def _on_the_smaller_backbone(rows: list[ZooRow]) -> tuple[ZooRow, ...]:
    small = [row for row in rows if row.backbone == "R-50-D8"]
    return tuple(sorted(small or rows, key=lambda row: row.iterations))


def gain(run: ZooRow, rows: Iterable[ZooRow]) -> Decimal | None:
    """Percentage points of mIoU above FCN's on the same backbone, data set, crop and schedule.

    None for FCN itself, where FCN has no such run, and for runs that a batch size sets apart.
    """
    if run.method == "FCN" or run.batch is not None:
        return None
    alike = (run.backbone, run.dataset, run.crop, run.iterations, run.precision)
    for row in rows:
        if row.method == "FCN" and (row.backbone, row.dataset, row.crop, row.iterations, row.precision) == alike:
            return run.miou - row.miou
    return None
