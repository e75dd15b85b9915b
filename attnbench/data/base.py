"""What a dataset of images and label maps offers, and how files of one are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from attnbench.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@runtime_checkable
class SegmentationDataset(Protocol):
    """Images with a label for each pixel.

    An item is the image, uint8 `(3, H, W)`, and the target `(H, W)`, with 255 where a pixel does not count.

    Args:
        name: name of the dataset.
        classes: name of each class.
        palette: colour of each class.
        mean: mean of each colour channel, as a fraction of 255.
        std: standard deviation of each colour channel, as a fraction of 255.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and target."""
        ...


_UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    struct.error,
)
"""What decoders raise on files that are cut short, broken, or no images."""

GREY_OR_PALETTE = ("P", "L")
"""Kinds of mask files whose pixels are labels."""

COLOURED = ("RGB", "P", "L", "1")
"""Kinds of mask files whose pixels may be colours: black and white are colours, too."""

_STRETCHED = {"L;2": 85, "L;4": 17}
"""By how much pillow multiplies grey values of two or four bits, to make the largest of them white."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@contextmanager
def reading(path: Path, what: str) -> Iterator[Image.Image]:
    """Context with the opened image of a file; what its decoder raises becomes a `UsageError` that names the file."""
    if not path.is_file():
        raise UsageError(f"{what} {str(path)!r}: expected an existing file, got none")
    try:
        with Image.open(path) as opened:
            yield opened
    except UsageError:
        raise
    except _UNREADABLE as error:
        raise UsageError(f"{what} {str(path)!r}: expected a readable image, got {error}") from error


def check_pair(image: Path, mask: Path, *, modes: tuple[str, ...] = GREY_OR_PALETTE) -> None:
    """Reads the headers of an image and of its mask, without decoding either.

    Args:
        image: file of the image.
        mask: file of the mask.
        modes: kinds of mask files that are expected, as pillow names them.

    Raises:
        UsageError: if a file is missing or no image, or the mask is of another kind or size.
    """
    with reading(image, "image") as opened:
        size = opened.size
    with reading(mask, "mask") as opened:
        _expect_mask(opened, mask, size, modes)


def _expect_mask(mask: Image.Image, path: Path, size: tuple[int, int], modes: tuple[str, ...]) -> None:
    if mask.mode not in modes:
        kind = "a colour image (mode RGB)" if modes == COLOURED else "a palette or grey image (mode P or L)"
        raise UsageError(f"mask {str(path)!r}: expected {kind}, got mode {mask.mode}")
    if mask.size != size:
        raise UsageError(
            f"mask {str(path)!r}: expected the size of its image, {size[0]}x{size[1]}, "
            f"got {mask.size[0]}x{mask.size[1]}"
        )


def image_shape(path: Path) -> tuple[int, int]:
    """Height and width in the header of an image.

    Raises:
        UsageError: if the file is missing or not an image.
    """
    with reading(path, "image") as opened:
        return opened.height, opened.width


def read_image(path: Path) -> Image.Image:
    """RGB image of a file; 16 bits become 8.

    Raises:
        UsageError: if the file is missing, not an image, or of more than 16 bits.
    """
    with reading(path, "image") as opened:
        return eight_bits(opened, path).convert("RGB")


def eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Image of 8 bits for each channel; pillow by itself makes everything white that is above 255.

    Args:
        image: as its file has it.
        path: the file, for the error.

    Raises:
        UsageError: if values are floating point or do not fit into 16 bits.
    """
    if image.mode == "F":
        raise UsageError(f"image {str(path)!r}: expected 8 or 16 bits for each channel, got floating point")
    if image.mode not in _SIXTEEN_BITS:
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UsageError(
            f"image {str(path)!r}: expected 8 or 16 bits for each channel, got values up to {values.max()}"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def read_mask(path: Path, *, size: tuple[int, int], modes: tuple[str, ...] = GREY_OR_PALETTE) -> NDArray[np.uint8]:
    """Values of a mask file: `(H, W)`, or `(H, W, 3)` where they are colours.

    Args:
        path: the file.
        size: width and height of the image that the mask belongs to.
        modes: kinds of files that are expected, as pillow names them.

    Raises:
        UsageError: if the file is missing, not an image, or of another kind or size.
    """
    with reading(path, "mask") as opened:
        _expect_mask(opened, path, size, modes)
        if modes == COLOURED:
            return np.array(opened.convert("RGB"), dtype=np.uint8)
        tiles = getattr(opened, "tile", None)
        stretched = _STRETCHED.get(str(tiles[0][3]), 1) if tiles else 1
        return np.array(opened, dtype=np.uint8) // np.uint8(stretched)


def image_tensor(image: Image.Image) -> Tensor:
    """RGB image as uint8 `(3, H, W)`."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()  # (3, H, W)
