"""Labels, errors and weights as colours; plain arrays in, plain arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from attnbench.metrics import IGNORE_INDEX

Picture = NDArray[np.uint8]
"""`(H, W, 3)`."""

WRONG: Final = (176, 0, 88)
"""Wrong pixels: dark in grey print, and apart from the colours of the embedded task for every reader."""
IGNORED: Final = (150, 150, 150)
UNLABELLED: Final = (255, 255, 255)
"""In label maps: data sets have grey classes, and hardly one in white."""
_PAPER: Final = 0.72
"""Grey value of an image's black where something is drawn over it."""


def coloured(labels: NDArray[Any], palette: Sequence[tuple[int, int, int]]) -> Picture:
    """Labels `(H, W)` in the colours of their classes; white where a pixel does not count.

    Example:
        >>> coloured(np.array([[1, 255]]), [(0, 0, 0), (10, 20, 30)]).tolist()
        [[[10, 20, 30], [255, 255, 255]]]
    """
    table = np.full((256, 3), UNLABELLED, np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)
    table[IGNORE_INDEX] = UNLABELLED
    return np.asarray(table[labels])


def sketch(image: Picture) -> NDArray[np.float64]:
    """The image `(H, W, 3)` in light grey, fractions `(H, W)`: what errors and weights are drawn over."""
    grey = image.astype(float) @ np.array([0.299, 0.587, 0.114]) / 255  # (H, W)
    return np.asarray(_PAPER + (1 - _PAPER) * grey)


def error_map(image: Picture, target: NDArray[Any], labels: NDArray[Any]) -> Picture:
    """Where a prediction is wrong, over the image in light grey; pixels that do not count are grey.

    Args:
        image: `(H, W, 3)`.
        target: labels `(H, W)`; 255 where a pixel does not count.
        labels: predicted labels `(H, W)`.
    """
    return _marked(image, (target != labels) & (target != IGNORE_INDEX), target == IGNORE_INDEX)


def marked(image: Picture, where: NDArray[np.bool_]) -> Picture:
    """The image in light grey, with pixels `where` `(H, W)` in the colour of what is wrong."""
    return _marked(image, where, np.zeros_like(where))


def _marked(image: Picture, wrong: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> Picture:
    picture = np.repeat((255 * sketch(image)[..., None]).round(), 3, axis=2).astype(np.uint8)
    picture[wrong] = WRONG
    picture[ignored] = IGNORED
    return picture


def enlarged(weights: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Weights on the feature map `(h, w)` at image size: each pixel has those of the position that it lies in.

    Example:
        >>> enlarged(np.array([[1, 2]]), (1, 5)).tolist()
        [[1, 1, 1, 2, 2]]
    """
    rows = np.arange(size[0]) * weights.shape[0] // size[0]
    columns = np.arange(size[1]) * weights.shape[1] // size[1]
    return np.asarray(weights[rows[:, None], columns[None]])


def heat_colours(*, signed: bool) -> Colormap:
    """Colours of weights: white for none, dark for the largest; with a sign, blue for negative and red for positive."""
    return mpl.colormaps["vlag"] if signed else sns.color_palette("rocket_r", as_cmap=True)


def overlay(image: Picture, weights: NDArray[Any], *, largest: float, signed: bool = False) -> Picture:
    """Weights of the feature map as colours over the image in light grey.

    Args:
        image: `(H, W, 3)`.
        weights: `(h, w)`.
        largest: weight that has the last colour.
        signed: whether weights may be negative; `-largest` then has the first colour.
    """
    scale = largest if largest > 0 else 1.0
    shares = enlarged(weights, image.shape[:2]).astype(float) / scale  # (H, W)
    if signed:
        shares = (shares + 1) / 2
    colours = heat_colours(signed=signed)(shares.clip(0, 1))[..., :3]  # (H, W, 3)
    return np.asarray((255 * colours * sketch(image)[..., None]).round().astype(np.uint8))
