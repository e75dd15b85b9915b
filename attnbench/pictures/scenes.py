"""The images that are shown, and the pixels that are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnbench.data.base import SegmentationDataset
from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX
from attnbench.pictures.colours import Picture

Pixel = tuple[int, int]
"""Row and column."""

_INSIDE = 2
"""Pixels to every side that have the class of a telling pixel, too."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One image of a dataset.

    Args:
        index: its number in the split.
        image: uint8 `(3, H, W)`.
        target: labels `(H, W)`; 255 where a pixel does not count.
        pixels: those whose weights are shown.
    """

    index: int
    image: Tensor
    target: Tensor
    pixels: tuple[Pixel, ...]

    @property
    def picture(self) -> Picture:
        """The image as `(H, W, 3)`."""
        return np.asarray(self.image.permute(1, 2, 0).numpy())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.target.shape
        return height, width


def scenes_of(
    dataset: SegmentationDataset, indices: Sequence[int], pixels: Sequence[Pixel] | None = None
) -> list[Scene]:
    """The images `indices` of `dataset`.

    Args:
        dataset: images and targets.
        indices: numbers of the images, from 0.
        pixels: pixels to ask about in each; none for each image's `telling_pixel`.

    Raises:
        UsageError: if there is no such image, or a pixel lies outside of one.
    """
    for index in indices:
        if not 0 <= index < len(dataset):
            raise UsageError(f"--images: expected numbers from 0 to {len(dataset) - 1}, got {index}")
    scenes = []
    for index in indices:
        image, target = dataset[index]
        height, width = target.shape
        for row, column in pixels or ():
            if not (0 <= row < height and 0 <= column < width):
                raise UsageError(
                    f"--pixel: expected a row and a column inside the {height}x{width} pixels of image {index}, "
                    f"got {row},{column}"
                )
        asked = tuple(pixels) if pixels else (telling_pixel(dataset, index),)
        scenes.append(Scene(index, image, target, asked))
    return scenes


def telling_pixel(dataset: SegmentationDataset, index: int) -> Pixel:
    """The pixel whose class is decided farthest away, where the dataset knows what decides it; otherwise the middle.

    Pixels at the edge of a shape are left out: a position of the feature map there sees both sides.

    Example:
        >>> from attnbench.data.synthetic import ContextDataset
        >>> dataset = ContextDataset("val")
        >>> row, column = telling_pixel(dataset, 0)
        >>> int(dataset[0][1][row, column]) > 0
        True
    """
    _, target = dataset[index]
    height, width = target.shape
    middle = (height // 2, width // 2)
    cue_of = getattr(dataset, "cue", None)
    if cue_of is None:
        return middle
    best, farthest = middle, -1.0
    for row, column in _inner_pixels(target):
        cue = cue_of(index, (row, column))
        if cue is None:
            continue
        top, left, side = cue
        away = float(np.hypot(row - top - side / 2, column - left - side / 2))
        if away > farthest:
            best, farthest = (row, column), away
    return best


def _inner_pixels(target: Tensor) -> list[Pixel]:
    """Labelled pixels whose neighbours within `_INSIDE` have their class."""
    span = 2 * _INSIDE + 1
    labels = target.float()[None]
    highest = torch.nn.functional.max_pool2d(labels, span, 1, _INSIDE)[0]
    lowest = -torch.nn.functional.max_pool2d(-labels, span, 1, _INSIDE)[0]
    inside = (highest == lowest) & (target != IGNORE_INDEX)
    return [(int(row), int(column)) for row, column in inside.nonzero()]


def place_on_map(pixel: Pixel, size: tuple[int, int], map_size: tuple[int, int]) -> Pixel:
    """The position of the feature map that a pixel lies in: the one that weighs most in the pixel's logits.

    Logits are resized bilinearly without aligned corners, so that position `i` of `h` stands for the rows from
    `i H / h` to `(i + 1) H / h`.

    Args:
        pixel: row and column in the image.
        size: height and width of the image.
        map_size: height and width of the feature map.

    Example:
        >>> place_on_map((12, 47), (48, 48), (12, 12))
        (3, 11)
    """
    return pixel[0] * map_size[0] // size[0], pixel[1] * map_size[1] // size[1]
