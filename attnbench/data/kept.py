"""Decoded samples in memory that a process shares with those that it forks: each file is decoded once."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_CHANNELS = 3


class KeptSamples:
    """Memory for the image and the target of each sample, filled as they are decoded.

    Processes that were forked after it was made fill and read the same memory. Two that decode one sample at a time
    write the same bytes, and a sample is marked when all of them are there.

    Args:
        shapes: height and width of each sample.

    Example:
        >>> kept = KeptSamples([(2, 3), (4, 5)])
        >>> kept.get(1) is None
        True
        >>> kept.put(1, torch.ones(3, 4, 5, dtype=torch.uint8), torch.zeros(4, 5, dtype=torch.uint8))
        >>> [tuple(part.shape) for part in kept.get(1)]
        [(3, 4, 5), (4, 5)]
    """

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self._shapes = list(shapes)
        self._places: list[int] = []
        place = len(self._shapes)
        for shape in self._shapes:
            self._places.append(place)
            place += sample_bytes(shape)
        # anonymous pages cost nothing until they are written, and leave nothing behind however the process ends
        self._memory = torch.frombuffer(mmap.mmap(-1, max(place, 1)), dtype=torch.uint8)

    def get(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Image uint8 `(3, H, W)` and target uint8 `(H, W)`, none where they are not there yet; to be read alone."""
        return self._parts(index) if self._memory[index] else None

    def put(self, index: int, image: Tensor, target: Tensor) -> None:
        """Keeps a sample.

        Raises:
            ValueError: if it is of another shape than was said.
        """
        if tuple(target.shape) != self._shapes[index] or image.shape != (_CHANNELS, *self._shapes[index]):
            raise ValueError(
                f"KeptSamples: expected {self._shapes[index]}, got {tuple(image.shape)} and {tuple(target.shape)}"
            )
        for place, value in zip(self._parts(index), (image, target), strict=True):
            place.copy_(value)
        self._memory[index] = 1

    def _parts(self, index: int) -> tuple[Tensor, Tensor]:
        height, width = self._shapes[index]
        sample = self._memory[self._places[index] :][: sample_bytes((height, width))]
        image, target = sample[: _CHANNELS * height * width], sample[_CHANNELS * height * width :]
        return image.view(_CHANNELS, height, width), target.view(height, width)


def sample_bytes(shape: tuple[int, int]) -> int:
    """Bytes of an image of this height and width and its target.

    Example:
        >>> sample_bytes((360, 480))
        691200
    """
    return (_CHANNELS + 1) * shape[0] * shape[1]
