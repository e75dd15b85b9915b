"""Features of a frozen backbone in memory-mapped files, and crops of them to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from attnbench.config import Recipe
from attnbench.data.loading import Batch, Place
from attnbench.errors import UsageError

FEATURES, TARGETS, ABOUT = "features.npy", "targets.npy", "about.json"
"""Files of a folder of features; the last is written last, and says that the others are whole."""


class FeatureSet:
    """What a backbone makes of a dataset: an item is the features `(C, h, w)` of a whole image, and its target.

    Args:
        folder: folder with the files that `attnbench.training.features` writes.
    """

    def __init__(self, folder: Path) -> None:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.name: str = about["name"]
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.palette = tuple((red, green, blue) for red, green, blue in about["palette"])
        self.output_stride: int = about["output_stride"]
        self.mirrored: bool = about["mirrored"]
        self._features: NDArray[np.float16] = np.load(folder / FEATURES, mmap_mode="r")  # (n, 1 or 2, h, w, C)
        self._targets: NDArray[np.uint8] = np.load(folder / TARGETS, mmap_mode="r")  # (n, H, W)
        # Features enter a head as they are: what `normalise` does to 8-bit colours is undone beforehand.
        self.mean, self.std = (0.0,) * self._features.shape[-1], (1 / 255,) * self._features.shape[-1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image."""
        height, width = self._targets.shape[1:]
        return height, width

    def __len__(self) -> int:
        """Number of images."""
        return len(self._features)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Features float32 `(C, h, w)` and target uint8 `(H, W)`."""
        return _maps(np.array(self._features[index, 0])).contiguous(), self.target(index)

    def target(self, index: int) -> Tensor:
        """Target uint8 `(H, W)`."""
        return torch.from_numpy(np.array(self._targets[index]))

    def crops(self, recipe: Recipe, seed: int) -> Dataset[Batch]:
        """Batches of random crops, half of them mirrored where the recipe says so; the seed alone decides which.

        Raises:
            UsageError: if the crop is no multiple of the output stride, or larger than the images.
        """
        expect_fitting(recipe, self.output_stride)
        size = recipe.crop_size or self.image_size
        if any(crop > side for crop, side in zip(size, self.image_size, strict=True)):
            raise UsageError(f"crop_size: expected at most the images' {self.image_size}, got {size}")
        return _Crops(self, recipe.crop_size, recipe.flip, seed)


def expect_fitting(recipe: Recipe, output_stride: int) -> None:
    """Holds a recipe against what features of whole, unchanged images allow.

    Raises:
        UsageError: naming the first field that does not fit.
    """
    for name, changed in (
        ("scale_range", recipe.scale_range != (1.0, 1.0)),
        ("photometric", recipe.photometric),
        ("base_scale", recipe.base_scale is not None),
        ("category_max_ratio", recipe.category_max_ratio < 1),
        ("auxiliary_weight", recipe.auxiliary_weight > 0),
    ):
        if changed:
            raise UsageError(
                f"{name}: cached features are those of whole images as they are; "
                f"leave it out, or train on images (--freeze-backbone images, cache_features = false), "
                f"got {getattr(recipe, name)!r}"
            )
    if recipe.crop_size is not None and any(side % output_stride for side in recipe.crop_size):
        raise UsageError(f"crop_size: expected multiples of the output stride {output_stride}, got {recipe.crop_size}")


class _Crops(Dataset[Batch]):
    def __init__(self, source: FeatureSet, crop_size: tuple[int, int] | None, flip: bool, seed: int) -> None:
        self.source, self.crop_size, self.flip, self.seed = source, crop_size, flip, seed

    def __getitem__(self, places: list[Place]) -> Batch:
        features, targets = zip(*map(self._crop, places), strict=True)
        # stacked with channels innermost, as they lie in the file: whoever wants that order need not copy them again
        return _maps(np.stack(features)), torch.from_numpy(np.stack(targets)).long()

    def _crop(self, place: Place) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        iteration, slot, index = place
        draw = np.random.default_rng((self.seed, iteration, slot))
        mirror, fractions = self.flip and draw.random() < 0.5, (draw.random(), draw.random())
        features, target = self.source._features[index, int(mirror)], self.source._targets[index]
        if mirror:
            target = target[:, ::-1]
        return (features, target) if self.crop_size is None else self._cut(features, target, fractions)

    def _cut(
        self, features: NDArray[np.float16], target: NDArray[np.uint8], fractions: tuple[float, float]
    ) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        assert self.crop_size is not None
        stride = self.source.output_stride
        inner: list[slice] = []
        outer: list[slice] = []
        for fraction, side, crop in zip(fractions, target.shape, self.crop_size, strict=True):
            start = int(fraction * ((side - crop) // stride + 1))
            inner.append(slice(start, start + crop // stride))
            outer.append(slice(start * stride, start * stride + crop))
        return features[tuple(inner)], target[tuple(outer)]


def _maps(features: NDArray[np.float16]) -> Tensor:
    """`(..., h, w, C)` to float32 `(..., C, h, w)`."""
    # torch widens float16 several times as fast as numpy
    return torch.from_numpy(features).float().movedim(-1, -3)
