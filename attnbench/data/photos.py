"""Photographs of any kind in, masks and overlays out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from attnbench.data.base import reading
from attnbench.errors import UsageError

LARGEST_PALETTE = 256
"""Colours that a palette file can have."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TRANSPARENT = ("RGBA", "LA", "PA")


def read_photo(path: Path) -> Image.Image:
    """RGB image of a file, upright, as a viewer shows it.

    Its EXIF orientation is applied, grey and other colour spaces become RGB, 16 bits become 8, and what is transparent
    becomes white.

    Raises:
        UsageError: if the file is missing, not an image, or of more than 16 bits.
    """
    with reading(path, "image") as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in _SIXTEEN_BITS:
            return _of_sixteen_bits(upright, path)
        if upright.mode == "F":
            raise UsageError(f"image {str(path)!r}: expected 8 or 16 bits for each channel, got floating point")
        if upright.mode in _TRANSPARENT or "transparency" in upright.info:
            layered = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
        return upright.convert("RGB")


def _of_sixteen_bits(image: Image.Image, path: Path) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UsageError(
            f"image {str(path)!r}: expected 8 or 16 bits for each channel, got values up to {values.max()}"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


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
    """Palette image whose values are the labels `(H, W)`.

    Raises:
        UsageError: if there are more colours than a palette has.
    """
    if len(palette) > LARGEST_PALETTE:
        raise UsageError(f"mask: expected at most {LARGEST_PALETTE} classes in a palette file, got {len(palette)}")
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
