"""The embedded task `context`: labels that depend on cues far away in the image; drawn, not downloaded.

Each image of 48x48 pixels is a grid of 4x4 cells with shapes in some of them:

- *discs*, grey and all alike, whose class is set by one small black or white square (the key) anywhere in the image.
  One vector for the whole image answers that, so global pooling can read it;
- *octagons* in two random hues, whose class is set by the small frame of the same hue: its centre is dark or light. Two
  frames are in the image, so that the answer is found by matching, pixel against pixel.

Key and frames carry the class that they announce. `docs/context-task.md` tells why, and where the ceiling of a local
model lies.
"""

from __future__ import annotations

import colorsys
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnbench.config import near
from attnbench.errors import UsageError

SIZE: Final = 48
_CELL: Final = 12
_SHAPE: Final = 10
_CUE: Final = 6
_FRAME: Final = 1
_GROUPS: Final = 2
_PER_GROUP: Final = 2
_DISCS: Final = 4
_DISC, _OCTAGON = 1, 3
_SPLITS: Final = {"train": 1024, "val": 256}

Box = tuple[int, int]
"""Top and left of a cue's square."""


def _disc() -> NDArray[np.bool_]:
    across = np.arange(_SHAPE) - (_SHAPE - 1) / 2
    return np.asarray(across[:, None] ** 2 + across[None] ** 2 <= (_SHAPE / 2) ** 2)


def _octagon() -> NDArray[np.bool_]:
    across = np.abs(np.arange(_SHAPE) - (_SHAPE - 1) / 2)
    return np.asarray(across[:, None] + across[None] <= 0.625 * _SHAPE)


class _Canvas:
    """One image while it is drawn: colours, labels, and which cue decides each pixel."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.image = 0.4 + np.repeat(random.normal(0, 0.04, (SIZE, SIZE, 1)), 3, axis=2)
        self.target = np.zeros((SIZE, SIZE), np.uint8)
        self.decider = np.zeros((SIZE, SIZE), np.uint8)
        self.cues: list[Box] = []
        self._cells = list(random.permutation((SIZE // _CELL) ** 2))

    def place(self, mask: NDArray[np.bool_], colour: tuple[float, ...], label: int, cue: int) -> Box:
        """Draws a shape at a random place of a free cell; returns its top and left."""
        side = len(mask)
        row, column = divmod(int(self._cells.pop()), SIZE // _CELL)
        down, right = self.random.integers(0, _CELL - side + 1, 2)
        top, left = row * _CELL + int(down), column * _CELL + int(right)
        area = np.s_[top : top + side, left : left + side]
        self.image[area][mask] = colour
        self.target[area][mask] = label
        self.decider[area][mask] = cue + 1
        return top, left

    def place_cue(self, colour: tuple[float, ...], centre: float, label: int) -> int:
        """Draws a square of `colour` with a dark or light centre; returns the number of the cue."""
        cue = len(self.cues)
        top, left = self.place(np.ones((_CUE, _CUE), np.bool_), colour, label, cue)
        self.image[top + _FRAME : top + _CUE - _FRAME, left + _FRAME : left + _CUE - _FRAME] = centre
        self.cues.append((top, left))
        return cue


class ContextDataset:
    """Images of the embedded task; the same for everybody, since `(split, index)` alone seeds what is drawn.

    Args:
        split: `"train"` (1024 images) or `"val"` (256).

    Raises:
        UsageError: if the split is unknown; a near name is suggested.

    Example:
        >>> image, target = ContextDataset("val")[0]
        >>> tuple(image.shape), tuple(target.shape)
        ((3, 48, 48), (48, 48))
    """

    name: str = "context"
    classes: tuple[str, ...] = (
        "background",
        "disc, dark key",
        "disc, light key",
        "octagon, dark frame",
        "octagon, light frame",
    )
    palette: tuple[tuple[int, int, int], ...] = (
        (64, 64, 64),
        (0, 114, 178),
        (86, 180, 233),
        (213, 94, 0),
        (230, 159, 0),
    )
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __init__(self, split: str) -> None:
        if split not in _SPLITS:
            raise UsageError(f"dataset 'context': unknown split {split!r}{near(split, _SPLITS)}")
        self.split = split
        self._canvases = [self._draw(index) for index in range(_SPLITS[split])]
        self._items = [
            (
                torch.from_numpy((canvas.image.clip(0, 1) * 255).astype(np.uint8)).permute(2, 0, 1).contiguous(),
                torch.from_numpy(canvas.target),
            )
            for canvas in self._canvases
        ]

    def _draw(self, index: int) -> _Canvas:
        random = np.random.default_rng((list(_SPLITS).index(self.split), index))
        canvas = _Canvas(random)
        hues = random.random() + np.arange(_GROUPS) / _GROUPS + random.uniform(-0.08, 0.08, _GROUPS)
        for hue in hues:
            colour, light = colorsys.hsv_to_rgb(float(hue) % 1, 0.9, 0.9), int(random.integers(2))
            cue = canvas.place_cue(colour, float(light), _OCTAGON + light)
            for _ in range(_PER_GROUP):
                canvas.place(_octagon(), colour, _OCTAGON + light, cue)
        light = int(random.integers(2))
        cue = canvas.place_cue((float(light),) * 3, float(light), _DISC + light)
        for _ in range(_DISCS):
            canvas.place(_disc(), (0.7,) * 3, _DISC + light, cue)
        return canvas

    def __len__(self) -> int:
        """Number of images."""
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 `(3, 48, 48)` and target uint8 `(48, 48)`."""
        return self._items[index]

    def cue(self, index: int, pixel: tuple[int, int]) -> tuple[int, int, int] | None:
        """Top, left and side of the square that decides the class of a pixel; none on background."""
        canvas = self._canvases[index]
        number = int(canvas.decider[pixel])
        return (*canvas.cues[number - 1], _CUE) if number else None

    def decided(self, index: int, radius: int) -> NDArray[np.bool_]:
        """Which pixels of an image see a part of the cue that decides them within `radius`; background always does."""
        canvas = self._canvases[index]
        seen = canvas.decider == 0
        across = np.arange(SIZE)
        for cue, (top, left) in enumerate(canvas.cues):
            down = np.maximum(np.maximum(top - across, across - (top + _CUE - 1)), 0)
            right = np.maximum(np.maximum(left - across, across - (left + _CUE - 1)), 0)
            near_cue = np.maximum(down[:, None], right[None]) <= radius
            seen |= (canvas.decider == cue + 1) & near_cue
        return np.asarray(seen)

    def local_ceiling(self, radius: int) -> float:
        """Expected mIoU of the best model whose output sees `radius` pixels to every side, on this split.

        Pixels that see their cue count right. The others look like one of two classes, equally often either; guessing
        evenly is best, since the mean IoU is concave in the shares of the guess. With `d` pixels decided and `u`
        undecided in class `a`, whose double is `b`: `IoU_a = (d_a + u_a/2) / (d_a + u_a + u_b/2)`; 1/3 where nothing
        is decided.

        Args:
            radius: half of the receptive field, in pixels.

        Example:
            >>> dataset = ContextDataset("val")
            >>> dataset.local_ceiling(7) < dataset.local_ceiling(47) == 1.0
            True
        """
        decided = np.zeros(len(self.classes))
        undecided = np.zeros(len(self.classes))
        for index, canvas in enumerate(self._canvases):
            seen = self.decided(index, radius)
            decided += np.bincount(canvas.target[seen], minlength=len(self.classes))
            undecided += np.bincount(canvas.target[~seen], minlength=len(self.classes))
        double = np.array([0, 2, 1, 4, 3])
        iou = (decided + undecided / 2) / (decided + undecided + undecided[double] / 2)
        iou[0] = 1.0
        return float(iou.mean())
