"""Bilinear resize of the window that a crop keeps: what the crop throws away is not computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resized_window(image: Tensor, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """Rows and columns of `image` resized to `size`: bilinear, antialiased where it shrinks, as float32.

    Everything is computed in double precision and rounded once, so that the result depends neither on the number of
    threads (which loading processes have fewer of) nor on the window.

    Args:
        image: `(C, H, W)` of numbers.
        size: height and width of the whole resized image.
        rows: which of its rows are wanted.
        columns: which of its columns are wanted.

    Shape:
        `(C, H, W)` -> `(C, len(rows), len(columns))`.

    Cost:
        Two products for each value of the window and of the source rows and columns under it; a shrinking image is
        resized whole, for then the window is most of it.

    Example:
        >>> image = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
        >>> whole = F.interpolate(image[None].double(), (6, 8), mode="bilinear")[0].float()
        >>> torch.equal(resized_window(image, (6, 8), slice(1, 4), slice(5, 8)), whole[:, 1:4, 5:8])
        True
    """
    if size[0] < image.shape[-2] or size[1] < image.shape[-1]:
        whole = F.interpolate(image[None].double(), size, mode="bilinear", align_corners=False, antialias=True)[0]
        return whole[:, rows, columns].float()
    above, below, down = _taps(image.shape[-2], size[0], rows)
    left, right, across = _taps(image.shape[-1], size[1], columns)
    first, last = int(left[0]), int(right[-1]) + 1
    source = image[:, :, first:last]
    band = _mixed(source, above, below, down[:, None], dim=-2)  # (C, rows, source columns)
    return _mixed(band, left - first, right - first, across, dim=-1).float()  # (C, rows, columns)


def _taps(source: int, size: int, wanted: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The two source positions that each wanted position lies between, and the weight of the second."""
    centre = (torch.arange(size, dtype=torch.double)[wanted] + 0.5) * (source / size) - 0.5
    centre = centre.clamp(min=0)
    lower = centre.long().clamp(max=source - 1)
    return lower, (lower + 1).clamp(max=source - 1), centre - lower


def _mixed(values: Tensor, lower: Tensor, upper: Tensor, weight: Tensor, dim: int) -> Tensor:
    # products and sum are operations of their own: fused ones round differently where a vector register ends
    low = values.index_select(dim, lower) * (1 - weight)
    return low.add_(values.index_select(dim, upper) * weight)
