"""Bilinear resize of the window that a crop keeps: what the crop throws away is not computed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
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
    window = np.empty((len(image), len(above), len(left)), np.float32)
    # channel by channel: what is computed on stays in the cache
    for channel, values in enumerate(image[:, :, first:last].double().numpy()):
        band = _mixed(values, above, below, down[:, None], axis=0)  # (rows, source columns)
        window[channel] = _mixed(band, left - first, right - first, across, axis=1)
    return torch.from_numpy(window)


_Positions = NDArray[np.int64]
_Numbers = NDArray[np.float64]


def _taps(source: int, size: int, wanted: slice) -> tuple[_Positions, _Positions, _Numbers]:
    """The two source positions that each wanted position lies between, and the weight of the second."""
    centre = ((np.arange(size)[wanted] + 0.5) * (source / size) - 0.5).clip(min=0)
    lower = centre.astype(np.int64).clip(max=source - 1)
    return lower, (lower + 1).clip(max=source - 1), centre - lower


def _mixed(values: _Numbers, lower: _Positions, upper: _Positions, weight: _Numbers, axis: int) -> _Numbers:
    # products and sum are operations of their own: fused ones round differently where a vector register ends
    low, high = values.take(lower, axis), values.take(upper, axis)
    low *= 1 - weight
    high *= weight
    low += high
    return low
