"""Batches of augmented samples in an order that the seed alone decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from attnbench.config import Recipe
from attnbench.data.base import SegmentationDataset
from attnbench.data.transforms import Augmentation, collate
from attnbench.errors import UsageError

Place = tuple[int, int, int]
"""Iteration, slot in the batch, index of the image."""


class BatchOrder(Sampler[list[Place]]):
    """Batches of places: one permutation of the dataset after the other, cut into batches without a remainder.

    Args:
        length: number of images.
        batch_size: images in a batch.
        iterations: number of batches.
        seed: seed of the permutations.

    Raises:
        UsageError: if there is no image, or the batch is empty.
    """

    def __init__(self, length: int, *, batch_size: int, iterations: int, seed: int) -> None:
        if length < 1:
            raise UsageError("dataset: expected at least one image to train on, got none")
        if batch_size < 1:
            raise UsageError(f"batch_size: expected at least 1, got {batch_size}")
        self.length, self.batch_size, self.iterations, self.seed = length, batch_size, iterations, seed

    def __len__(self) -> int:
        return self.iterations

    def _indices(self) -> Iterator[int]:
        epoch = 0
        while True:
            yield from np.random.default_rng((self.seed, epoch)).permutation(self.length).tolist()
            epoch += 1

    def __iter__(self) -> Iterator[list[Place]]:
        indices = self._indices()
        for iteration in range(self.iterations):
            yield [(iteration, slot, next(indices)) for slot in range(self.batch_size)]


@runtime_checkable
class Cropping(Protocol):
    """A dataset that makes its own samples to train on, from places."""

    def crops(self, recipe: Recipe, seed: int) -> Dataset[tuple[Tensor, Tensor]]:
        """What the recipe makes of the places that it is asked for."""
        ...


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, dataset: SegmentationDataset, augmentation: Augmentation) -> None:
        self.dataset = dataset
        self.augmentation = augmentation

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor]:
        iteration, slot, index = place
        image, target = self.dataset[index]
        return self.augmentation(image, target, iteration=iteration, slot=slot)


def training_batches(
    dataset: SegmentationDataset, recipe: Recipe, *, seed: int, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[tuple[Tensor, Tensor]]:
    """`recipe.iterations` batches of images float32 `(B, 3, H, W)` and targets int64 `(B, H, W)`.

    The batches depend on the seed alone, not on the number of workers; the global random state is left untouched.

    Args:
        dataset: where the images, or features of them, come from.
        recipe: batch size, iterations and augmentation.
        seed: seed of order and augmentation.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: whether batches are copied to page-locked memory.

    Raises:
        UsageError: if the dataset is empty or the recipe does not fit it.
    """
    order = BatchOrder(len(dataset), batch_size=recipe.batch_size, iterations=recipe.iterations, seed=seed)
    return DataLoader(
        dataset.crops(recipe, seed) if isinstance(dataset, Cropping) else _augmented(dataset, recipe, seed),
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),
    )


def _augmented(dataset: SegmentationDataset, recipe: Recipe, seed: int) -> _Augmented:
    augmentation = Augmentation(
        dataset.mean,
        dataset.std,
        seed=seed,
        crop_size=recipe.crop_size,
        scale_range=recipe.scale_range,
        flip=recipe.flip,
        photometric=recipe.photometric,
        base_scale=recipe.base_scale,
        category_max_ratio=recipe.category_max_ratio,
    )
    return _Augmented(dataset, augmentation)
