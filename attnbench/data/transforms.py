"""Augmentation of an image together with its target, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attnbench.data.photometric import draw_distortion
from attnbench.data.resizing import resized_window
from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX

CROPS = 10
"""Crops that are drawn, at most, in place of one that a single class fills."""


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(image / 255 - mean) / std` for each colour channel, as float32.

    Args:
        image: values from 0 to 255, `(..., 3, H, W)`.
        mean: mean of each channel, as a fraction of 255.
        std: standard deviation of each channel, as a fraction of 255.

    Example:
        >>> normalise(torch.full((3, 1, 1), 255, dtype=torch.uint8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).flatten()
        tensor([2., 2., 2.])
    """
    offset = torch.tensor([255.0 * value for value in mean]).view(-1, 1, 1)
    scale = torch.tensor([255.0 * value for value in std]).view(-1, 1, 1)
    return (image.float() - offset).div_(scale)


class Augmentation:
    """Random resize, random crop with padding, random mirror, distortion of colours, normalisation.

    What is drawn depends on `(seed, iteration, slot)` alone, so that neither the number of workers nor their order
    matters. Where the resized image is smaller than the crop, the image is padded with the mean colour and the target
    with 255.

    Args:
        mean: mean of each colour channel, as a fraction of 255.
        std: standard deviation of each colour channel, as a fraction of 255.
        seed: seed of all draws.
        crop_size: height and width of the crop; none keeps the image whole.
        scale_range: smallest and largest factor of the resize.
        flip: whether to mirror half of the images.
        photometric: whether brightness, contrast, saturation and hue are distorted at random.
        base_scale: long and short side that an image is fitted into, keeping its aspect, before the random resize;
            none takes it as it is.
        category_max_ratio: largest share of one class among the labelled pixels of a crop; where it is exceeded
            another crop is drawn, up to ten times.

    Raises:
        UsageError: if the range of scales or the crop size is not positive, or images are resized and not cropped.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        seed: int,
        crop_size: tuple[int, int] | None = None,
        scale_range: tuple[float, float] = (1.0, 1.0),
        flip: bool = True,
        photometric: bool = False,
        base_scale: tuple[int, int] | None = None,
        category_max_ratio: float = 1.0,
    ) -> None:
        if not 0 < scale_range[0] <= scale_range[1]:
            raise UsageError(f"scale_range: expected 0 < smallest <= largest, got {scale_range}")
        if crop_size is None and scale_range != (1.0, 1.0):
            raise UsageError(f"crop_size: expected a size where images are resized by {scale_range}, got none")
        if crop_size is None and base_scale is not None:
            raise UsageError(f"crop_size: expected a size where images are fitted into {base_scale}, got none")
        if crop_size is not None and min(crop_size) < 1:
            raise UsageError(f"crop_size: expected a positive height and width, got {crop_size}")
        self.mean, self.std, self.seed = tuple(mean), tuple(std), seed
        self.crop_size, self.scale_range, self.flip = crop_size, scale_range, flip
        self.photometric, self.base_scale, self.category_max_ratio = photometric, base_scale, category_max_ratio

    def __call__(self, image: Tensor, target: Tensor, *, iteration: int, slot: int) -> tuple[Tensor, Tensor]:
        """Augments one sample.

        Args:
            image: uint8 `(3, H, W)`.
            target: labels `(H, W)`.
            iteration: number of the batch.
            slot: place in the batch.

        Returns:
            Normalised float32 image and int64 target.
        """
        draw = np.random.default_rng((self.seed, iteration, slot))
        scale, mirror, top, left = (
            draw.uniform(*self.scale_range),
            draw.random() < 0.5,
            draw.random(),
            draw.random(),
        )
        distortion = draw_distortion(draw) if self.photometric else None
        if self.base_scale is not None:
            scale *= _fitting(target, self.base_scale)
        size = _scaled(target, scale)
        target = _resized_labels(target, size)
        if self.crop_size is not None:
            place = self._varied_place(target, self.crop_size, (top, left), draw)
            target = _crop(target, place)
            image = _crop(image, place) if size == image.shape[-2:] else resized_window(image, size, *place)
        if self.flip and mirror:
            image, target = image.flip(-1), target.flip(-1)
        if distortion is not None:
            image = distortion(image)
        image = normalise(image, self.mean, self.std)
        if self.crop_size is not None:
            image, target = _pad(image, target, self.crop_size, mirrored=self.flip and mirror)
        return image.contiguous(), target.long().contiguous()

    def _varied_place(
        self, target: Tensor, size: tuple[int, int], fractions: tuple[float, float], draw: np.random.Generator
    ) -> _Place:
        place = _place(target, size, fractions)
        if self.category_max_ratio < 1:
            for _ in range(CROPS):
                if _varied(_crop(target, place), self.category_max_ratio):
                    break
                place = _place(target, size, (draw.random(), draw.random()))
        return place


def _fitting(target: Tensor, base: tuple[int, int]) -> float:
    """Factor that brings an image's long and short side within `base`, keeping its aspect."""
    return min(wanted / side for wanted, side in zip(sorted(base), sorted(target.shape), strict=True))


def _varied(target: Tensor, largest: float) -> bool:
    """Whether a crop has several classes, and each fills less than `largest` of the labelled pixels."""
    counts = torch.unique(target[target != IGNORE_INDEX], return_counts=True)[1]
    return len(counts) > 1 and int(counts.max()) < largest * int(counts.sum())


def _scaled(target: Tensor, scale: float) -> tuple[int, int]:
    height, width = (max(1, round(scale * side)) for side in target.shape)
    return height, width


def _resized_labels(target: Tensor, size: tuple[int, int]) -> Tensor:
    if size == target.shape:
        return target
    # `nearest` takes the upper left corner of the source pixel and would shift the labels by half a pixel
    labels = F.interpolate(target[None, None].float(), size, mode="nearest-exact")[0, 0]
    return labels.to(target.dtype)


_Place = tuple[slice, slice]
"""Rows and columns of a crop."""


def _place(target: Tensor, size: tuple[int, int], fractions: tuple[float, float]) -> _Place:
    starts = [
        int(fraction * (max(0, side - crop) + 1))
        for fraction, side, crop in zip(fractions, target.shape, size, strict=True)
    ]
    rows, columns = (slice(start, start + crop) for start, crop in zip(starts, size, strict=True))
    return rows, columns


def _crop(values: Tensor, place: _Place) -> Tensor:
    return values[..., place[0], place[1]]


def _pad(image: Tensor, target: Tensor, size: tuple[int, int], *, mirrored: bool) -> tuple[Tensor, Tensor]:
    below, beside = size[0] - target.shape[0], size[1] - target.shape[1]
    if not (below or beside):
        return image, target
    amounts = (beside, 0, 0, below) if mirrored else (0, beside, 0, below)
    return F.pad(image, amounts), F.pad(target, amounts, value=IGNORE_INDEX)


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images `(B, 3, H, W)` and targets `(B, H, W)` of samples of one size.

    Raises:
        UsageError: if the sizes differ.
    """
    sizes = sorted({tuple(target.shape) for _, target in samples})
    if len(sizes) != 1:
        raise UsageError(
            f"batch: expected images of one size (--image-size, or crop_size in the recipe of a preset), got {sizes}"
        )
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(targets)
