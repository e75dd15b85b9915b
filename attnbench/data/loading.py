"""Batches of augmented samples in an order that the seed alone decides."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from attnbench.config import Recipe
from attnbench.data.base import SegmentationDataset
from attnbench.data.files import FileDataset
from attnbench.data.transforms import Augmentation, collate
from attnbench.errors import UsageError
from attnbench.lifetime import end_with_parent

Place = tuple[int, int, int]
"""Iteration, slot in the batch, index of the image."""

Batch = tuple[Tensor, Tensor]
"""Images float32 `(B, 3, H, W)` and targets int64 `(B, H, W)`."""


class BatchOrder(Sampler[list[Place]]):
    """Batches of places: one permutation of the dataset after the other, cut into batches without a remainder.

    Args:
        length: number of images.
        batch_size: images in a batch.
        iterations: number of batches.
        seed: seed of the permutations.
        slots: places of each batch that are wanted; none wants all of them.
        start: iteration to begin at.

    Raises:
        UsageError: if there is no image, or the batch is empty.
    """

    def __init__(
        self, length: int, *, batch_size: int, iterations: int, seed: int, slots: range | None = None, start: int = 0
    ) -> None:
        if length < 1:
            raise UsageError("dataset: expected at least one image to train on, got none")
        if batch_size < 1:
            raise UsageError(f"batch_size: expected at least 1, got {batch_size}")
        self.length, self.batch_size, self.iterations, self.seed = length, batch_size, iterations, seed
        self.slots, self.start = range(batch_size) if slots is None else slots, start

    def __len__(self) -> int:
        return self.iterations - self.start

    def _indices(self) -> Iterator[int]:
        """Images of all slots from the first wanted iteration on."""
        epoch, seen = divmod(self.start * self.batch_size, self.length)
        while True:
            yield from np.random.default_rng((self.seed, epoch)).permutation(self.length).tolist()[seen:]
            epoch, seen = epoch + 1, 0

    def __iter__(self) -> Iterator[list[Place]]:
        indices = self._indices()
        for iteration in range(self.start, self.iterations):
            places = [(iteration, slot, next(indices)) for slot in range(self.batch_size)]
            yield [places[slot] for slot in self.slots]


class _Fault:
    """What went wrong in a process that loads, in place of its batch."""

    def __init__(self, error: Exception) -> None:
        # an error that cannot be sent would never arrive, so that the others go as words
        sent = isinstance(error, UsageError | MemoryError)
        self.error = error if sent else RuntimeError(f"{type(error).__name__}: {error}")


@runtime_checkable
class Cropping(Protocol):
    """A dataset that makes its own batches to train on, from places."""

    def crops(self, recipe: Recipe, seed: int) -> Dataset[Batch]:
        """What the recipe makes of the lists of places that it is asked for."""
        ...


class _Augmented(Dataset[Batch]):
    """Whole batches: what a `DataLoader` without batching of its own is given."""

    def __init__(self, dataset: SegmentationDataset, augmentation: Augmentation) -> None:
        self.dataset = dataset
        self.augmentation = augmentation

    def __getitem__(self, places: list[Place]) -> Batch:
        return collate([self._sample(place) for place in places])

    def _sample(self, place: Place) -> tuple[Tensor, Tensor]:
        iteration, slot, index = place
        image, target = self.dataset[index]
        return self.augmentation(image, target, iteration=iteration, slot=slot)


class _Guarded(Dataset[Batch | _Fault]):
    """What `source` has, or what went wrong there where another process has to be told."""

    def __init__(self, source: Dataset[Batch] | SegmentationDataset) -> None:
        self.source = source

    def __getitem__(self, key: Any) -> Batch | _Fault:
        try:
            return self.source[key]
        except Exception as error:
            if get_worker_info() is None:
                raise
            return _Fault(error)


def _begin_loading(_: int) -> None:
    end_with_parent()
    default = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # whoever takes batches may be gone in the middle of one, which is no news; errors of data go with their batch
        if not isinstance(error, EOFError | OSError):
            default(kind, error, trace)

    sys.excepthook = report


def _as_it_is(batch: Any) -> Any:
    return batch


class Batches:
    """What a loader has, in order; an error of a process that loads is raised here as it was there."""

    def __init__(self, loader: DataLoader[Batch | _Fault]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, _Fault):
                raise batch.error
            yield batch


def training_batches(
    dataset: SegmentationDataset,
    recipe: Recipe,
    *,
    seed: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    slots: range | None = None,
    start: int = 0,
) -> Batches:
    """`recipe.iterations` batches of images float32 `(B, 3, H, W)` and targets int64 `(B, H, W)`.

    The batches depend on the seed alone, not on the number of workers; the global random state is left untouched.

    Args:
        dataset: where the images, or features of them, come from.
        recipe: batch size, iterations and augmentation.
        seed: seed of order and augmentation.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: whether batches are copied to page-locked memory.
        slots: places of each batch that are wanted, each with the image and the augmentation that it has in the whole
            batch; none wants all of them.
        start: iteration to begin at.

    Raises:
        UsageError: if the dataset is empty or the recipe does not fit it.
    """
    order = BatchOrder(
        len(dataset),
        batch_size=recipe.batch_size,
        iterations=recipe.iterations,
        seed=seed,
        slots=slots,
        start=start,
    )
    if num_workers and isinstance(dataset, FileDataset):
        dataset.keep()
    source = dataset.crops(recipe, seed) if isinstance(dataset, Cropping) else _augmented(dataset, recipe, seed)
    return _loaded(source, order, num_workers, pin_memory=pin_memory, seed=seed)


def samples_in_order(dataset: SegmentationDataset, *, num_workers: int = 0) -> Batches:
    """Images uint8 `(3, H, W)` and targets `(H, W)` of a dataset, one after the other.

    Args:
        dataset: where they come from.
        num_workers: processes that load; 0 loads in this one.
    """
    return _loaded(dataset, range(len(dataset)), num_workers)


def _loaded(
    source: Dataset[Batch] | SegmentationDataset,
    order: Iterable[Any],
    num_workers: int,
    *,
    pin_memory: bool = False,
    seed: int = 0,
) -> Batches:
    # forked processes share the memory that decoded images are kept in, and start at once
    forks = "fork" in multiprocessing.get_all_start_methods()
    loader: DataLoader[Batch | _Fault] = DataLoader(
        _Guarded(source),
        sampler=order,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=_begin_loading,
        multiprocessing_context="fork" if num_workers and forks else None,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),
    )
    return Batches(loader)


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
