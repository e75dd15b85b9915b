"""Photographs of any kind in, masks and overlays out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from attnbench.data.base import eight_bits, reading

LARGEST_PALETTE = 256
"""Colours that a palette file can have."""

_TRANSPARENT = ("RGBA", "LA", "PA")


def read_photo(path: Path) -> Image.Image:
    """RGB image of a file, upright, as a viewer shows it.

    Its EXIF orientation is applied, grey and other colour spaces become RGB, 16 bits become 8, and what is transparent
    becomes white.

    Raises:
        UsageError: if the file is missing, not an image, or of more than 16 bits.
    """
    with reading(path, "image") as opened:
        upright = eight_bits(ImageOps.exif_transpose(opened), path)
        if upright.mode in _TRANSPARENT or "transparency" in upright.info:
            layered = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
        return upright.convert("RGB")


def check_photo(path: Path) -> None:
    """Reads the header of an image, without decoding it.

    Raises:
        UsageError: if the file is missing or not an image.
    """
    with reading(path, "image"):
        return


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Image resized to lie within `size`, its aspect kept; a long side is fitted to the long side.

    Args:
        image: RGB image.
        size: height and width.

    Example:
        >>> fitted(Image.new("RGB", (400, 200)), (100, 100)).size, fitted(Image.new("RGB", (60, 80)), (30, 40)).size
        ((100, 50), (30, 40))
    """
    factor = min(wanted / side for wanted, side in zip(sorted(size), sorted(image.size), strict=True))
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def palette_mask(labels: NDArray[np.uint8], palette: Sequence[Sequence[int]]) -> Image.Image:
    """Palette image whose values are the labels `(H, W)`, of at most 256 classes."""
    mask = Image.fromarray(labels)
    mask.putpalette([value for colour in palette for value in colour])
    return mask


def overlay(
    image: Image.Image, labels: NDArray[np.uint8], palette: Sequence[Sequence[int]], opacity: float
) -> Image.Image:
    """The image with the colours of its labels over it.

    Equation: `(1 - opacity) image + opacity palette[labels]`.

    Args:
        image: RGB image.
        labels: class of each of its pixels, `(H, W)`.
        palette: colour of each class.
        opacity: share of the colour, from 0 to 1.

    Example:
        >>> grey = Image.new("RGB", (1, 1), (100, 100, 100))
        >>> overlay(grey, np.zeros((1, 1), np.uint8), [(200, 0, 100)], 0.5).getpixel((0, 0))
        (150, 50, 100)
    """
    colours = Image.fromarray(np.array(palette, dtype=np.uint8)[labels])
    return Image.blend(image, colours, opacity)
