"""What a dataset of images and label maps offers, and how files of one are read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
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


def _open(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise UsageError(f"{what} {str(path)!r}: expected an existing file, got none")
    try:
        opened = Image.open(path)
        opened.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{what} {str(path)!r}: expected a readable image, got {error}") from error
    return opened


def read_image(path: Path) -> Image.Image:
    """RGB image of a file.

    Raises:
        UsageError: if the file is missing or not an image.
    """
    return _open(path, "image").convert("RGB")


def read_mask(path: Path, *, size: tuple[int, int], num_labels: int) -> Image.Image:
    """Label map of a palette or grey file.

    Args:
        path: the file.
        size: width and height of the image that the mask belongs to.
        num_labels: labels lie in `0..num_labels - 1`.

    Raises:
        UsageError: if the file is missing, not an image, of another kind or size, or has a label out of range.
    """
    mask = _open(path, "mask")
    if mask.mode not in ("P", "L"):
        raise UsageError(f"mask {str(path)!r}: expected a palette or grey image (mode P or L), got mode {mask.mode}")
    if mask.size != size:
        raise UsageError(
            f"mask {str(path)!r}: expected the size of its image, {size[0]}x{size[1]}, "
            f"got {mask.size[0]}x{mask.size[1]}"
        )
    largest = int(np.asarray(mask).max())
    if largest >= num_labels:
        raise UsageError(f"mask {str(path)!r}: expected labels 0..{num_labels - 1}, got {largest}")
    return mask


def image_tensor(image: Image.Image) -> Tensor:
    """RGB image as uint8 `(3, H, W)`."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()  # (3, H, W)


def mask_tensor(mask: Image.Image) -> Tensor:
    """Label map as uint8 `(H, W)`."""
    return torch.from_numpy(np.array(mask, dtype=np.uint8))  # (H, W)
