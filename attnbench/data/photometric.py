"""Photometric distortion: brightness, contrast, saturation and hue of an image, changed at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS = 32.0
"""Largest change of brightness, of 255."""
FACTORS = (0.5, 1.5)
"""Smallest and largest factor of contrast and of saturation."""
HUE = 18 / 180
"""Largest turn of the hue, as a part of the circle."""


@dataclass(frozen=True)
class Distortion:
    """Changes of an image's colours; the defaults change nothing.

    Equation: brightness `x + b`, contrast `c x`, in HSV saturation `s S` and hue `H + h`; each is cut off at the ends
    of its range, the hue goes round.

    Args:
        brightness: `b`, of 255.
        contrast: `c`.
        saturation: `s`.
        hue: `h`, as a part of the circle.
        contrast_first: whether contrast follows upon brightness; otherwise it comes last.

    Source:
        Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016 (its data augmentation), as mmsegmentation's
        `PhotoMetricDistortion` has it.

    Deviations:
        mmsegmentation cuts values off to whole numbers after each step, and turns the hue by whole steps of two
        degrees; here nothing is rounded.

    Example:
        >>> red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(3, 1, 1)
        >>> Distortion(brightness=20.0, hue=1 / 3)(red).flatten().round()
        tensor([ 20., 220.,  20.])
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True

    def __call__(self, image: Tensor) -> Tensor:
        """The image with its colours changed.

        Args:
            image: values from 0 to 255, `(3, H, W)`.

        Returns:
            float32 `(3, H, W)`.
        """
        image = image.float()
        if self.brightness:
            image = (image + self.brightness).clamp_(0, 255)
        if self.contrast_first:
            image = self._contrasted(image)
        if self.saturation != 1:
            image = _saturated(image, self.saturation)
        if self.hue:
            image = _turned(image, self.hue)
        return image if self.contrast_first else self._contrasted(image)

    def _contrasted(self, image: Tensor) -> Tensor:
        return image if self.contrast == 1 else (image * self.contrast).clamp_(0, 255)


def draw_distortion(draw: np.random.Generator) -> Distortion:
    """A distortion whose every part happens with probability 1/2; nine numbers are drawn, whatever happens.

    Example:
        >>> draw_distortion(np.random.default_rng(0)) == draw_distortion(np.random.default_rng(0))
        True
    """
    happens = draw.random(4) < 0.5
    brightness, hue = draw.uniform(-BRIGHTNESS, BRIGHTNESS), draw.uniform(-HUE, HUE)
    contrast, saturation = draw.uniform(*FACTORS), draw.uniform(*FACTORS)
    return Distortion(
        brightness=brightness if happens[0] else 0.0,
        contrast=contrast if happens[1] else 1.0,
        saturation=saturation if happens[2] else 1.0,
        hue=hue if happens[3] else 0.0,
        contrast_first=bool(draw.random() < 0.5),
    )


def _saturated(image: Tensor, factor: float) -> Tensor:
    """The image with its saturation `(V - min) / V` multiplied by `factor`, at most 1; value and hue stay."""
    value = image.amax(0)
    return value - (value - image).mul_((value / _divisor(value - image.amin(0))).clamp_(max=factor))


def _turned(image: Tensor, turn: float) -> Tensor:
    """The image with its hue turned by a part of the circle; value and saturation stay."""
    red, green, blue = image
    value = image.amax(0)
    chroma = value - image.amin(0)
    divisor = _divisor(chroma)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )  # (H, W), in sixths of the circle
    along = (torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1) + (hue + 6 * turn)) % 6  # (3, H, W)
    return value - torch.minimum(along, 4 - along).clamp_(0, 1).mul_(chroma)


def _divisor(chroma: Tensor) -> Tensor:
    return chroma.where(chroma > 0, 1)
