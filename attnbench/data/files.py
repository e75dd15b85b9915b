"""Datasets that are files: pairs of an image and a mask, found by a list or by folders, read when asked for."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attnbench.config import near
from attnbench.data.base import (
    GREY_OR_PALETTE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    image_shape,
    image_tensor,
    read_image,
    read_mask,
)
from attnbench.data.checked import Progress, check_files
from attnbench.data.kept import KeptSamples, sample_bytes
from attnbench.data.labels import Labels
from attnbench.errors import UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Pair(NamedTuple):
    """Files of an image and of its mask."""

    image: Path
    mask: Path


class FileDataset(ABC):
    """Images and masks in files. What a dataset adds is where they lie, and what their values mean.

    Building one looks at names alone; `check` decodes every file once. A split whose decoded samples fit into
    `kept_bytes` stays in memory, shared with the processes that load it.

    Args:
        root: the folder, or one in which it lies under its usual name.
        split: part of the dataset.
        image_size: height and width that images (bilinear, antialiased) and masks (nearest) are resized to; none
            keeps them.

    Raises:
        UsageError: if the split is unknown or empty, the folder is another one, a file is missing, or two images have
            one mask.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    labels: Labels
    splits: Sequence[str]
    published: Mapping[str, int] = {}
    """Number of images that each split is published with."""
    mask_modes: tuple[str, ...] = GREY_OR_PALETTE
    kept_bytes = 512 * 2**20
    """Largest memory of a split's decoded images and targets; a split that needs more is read anew each time."""

    def __init__(self, root: str | Path, split: str, image_size: tuple[int, int] | None = None) -> None:
        if split not in self.splits:
            raise UsageError(f"{self.name}: unknown split {split!r}{near(split, self.splits)}")
        self.split = split
        self.image_size = image_size
        self.root = self.find(Path(root))
        self.pairs = self._pairs(split)
        _expect_present(self.pairs)
        _expect_once(self.pairs)
        self._kept: KeptSamples | None = None
        self._asked_to_keep = False

    @classmethod
    @abstractmethod
    def find(cls, root: Path) -> Path:
        """The folder of the dataset, given it or one around it.

        Raises:
            UsageError: if there is none.
        """

    @abstractmethod
    def _pairs(self, split: str) -> list[Pair]:
        """Files of a split, at least one pair."""

    def _targets(self, path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        return self.labels.targets(read_mask(path, size=size, modes=self.mask_modes), path)

    def mask_meaning(self) -> str:
        """What values masks may have, in words; masks that passed a check under other words are checked again."""
        return f"{self.mask_modes}: {self.labels}"

    def unpaired(self) -> list[Path]:
        """Masks of the split that no image belongs to, where its folders say so and no list chooses."""
        return []

    def check(self, progress: Progress | None = None) -> None:
        """Decodes every image and mask, so that what is wrong is known before anything is trained.

        What has passed is remembered (`attnbench.data.checked`), and not decoded again until a file changes.

        Args:
            progress: called after each file pair that is decoded.

        Cost:
            About as long as one epoch of loading with all cores, once; afterwards a look at each file's size and time.

        Raises:
            UsageError: naming the first file that is missing, unreadable or of another kind or size, or has labels out
                of range.
        """
        check_files(self, progress)

    def keep(self) -> None:
        """Makes the memory for decoded samples, where they fit; before processes that load are started.

        Raises:
            UsageError: if the header of an image is unreadable.
        """
        if self._asked_to_keep:
            return
        self._asked_to_keep = True
        first = self._shape(0)
        if len(self) * sample_bytes(first) > 2 * self.kept_bytes:
            return
        shapes = [first, *(self._shape(index) for index in range(1, len(self)))]
        if sum(map(sample_bytes, shapes)) <= self.kept_bytes:
            self._kept = KeptSamples(shapes)

    def _shape(self, index: int) -> tuple[int, int]:
        return self.image_size or image_shape(self.pairs[index].image)

    def __getstate__(self) -> dict[str, Any]:
        """What a process that is not forked gets: memory cannot be sent, and is made again there."""
        return {**self.__dict__, "_kept": None, "_asked_to_keep": False}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 `(3, H, W)` and target uint8 `(H, W)` with 255 where a pixel does not count.

        Raises:
            UsageError: if a file is unreadable, or a mask has a label out of range.
        """
        self.keep()
        kept = None if self._kept is None else self._kept.get(index)
        if kept is None:
            kept = self.load(index)
            if self._kept is not None:
                self._kept.put(index, *kept)
        return kept

    def decode(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """Image and targets `(H, W)` as their files have them, whatever `image_size` is.

        Raises:
            UsageError: if a file is unreadable, or a mask has a label out of range.
        """
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        return image, self._targets(mask_path, image.size)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Reads image and target from their files, whether or not they are kept in memory.

        Raises:
            UsageError: if a file is unreadable, or a mask has a label out of range.
        """
        image, targets = self.decode(index)
        if self.image_size is not None:
            size = self.image_size[::-1]
            image = image.resize(size, Image.Resampling.BILINEAR)
            targets = np.array(Image.fromarray(targets).resize(size, Image.Resampling.NEAREST))
        return image_tensor(image), torch.from_numpy(targets)


def find_root(name: str, root: Path, under: Iterable[str], marks: Sequence[str]) -> Path:
    """The folder that has everything in `marks`: one of the folders `under` `root`, or `root` itself.

    Those of the dataset's own name come first: what lies beside them in `root` may have other datasets' names.

    Raises:
        UsageError: if there is none.
    """
    under = tuple(under)
    for folder in (*(root / part for part in under), root):
        if all((folder / mark).exists() for mark in marks):
            return folder
    raise UsageError(
        f"{name}: expected a folder with {' and '.join(f'{mark}/' for mark in marks)} (or {under[0]}/ in it), "
        f"got {str(root)!r}"
    )


def expect_pairs(pairs: list[Pair], name: str, split: str, where: Path) -> list[Pair]:
    """`pairs`, if there are any.

    Raises:
        UsageError: if there are none.
    """
    if not pairs:
        raise UsageError(f"{name} split {split!r}: expected at least one image, got none in {str(where)!r}")
    return pairs


def listed(listing: Path, name: str, split: str) -> list[str]:
    """Names in a list file, one in a line.

    Raises:
        UsageError: if the file is missing, not text or empty, or has a line with more than a name.
    """
    names = []
    for number, line in lines(listing, f"{name} split {split!r}"):
        if len(line.split()) != 1:
            raise UsageError(f"list {str(listing)!r}, line {number}: expected one name, got {line!r}")
        names.append(line.strip())
    if not names:
        raise UsageError(f"{name} split {split!r}: expected at least one image, got none in {str(listing)!r}")
    return names


def lines(listing: Path, what: str) -> list[tuple[int, str]]:
    """Lines of a list file that are not empty, with their numbers.

    Raises:
        UsageError: if the file is missing or not text.
    """
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{what}: expected the list {str(listing)!r}, got none") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what}: expected the list {str(listing)!r} to be text, got {error}") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def images_in(folder: Path, *, suffixes: Sequence[str] = IMAGE_SUFFIXES, deep: bool = False) -> list[Path]:
    """Images of a folder in the order of their names.

    Args:
        folder: the folder; where there is none, there are no images.
        suffixes: endings of names, in lower case.
        deep: whether folders inside it are looked into, too, but for hidden ones; a link to a folder is one.
    """
    found = _files_under(folder) if deep else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in suffixes and not path.name.startswith("."))


def _files_under(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, inside, names in os.walk(folder, followlinks=True):
        # of links that lead in a circle each folder is looked into once
        known = os.path.realpath(place)
        inside[:] = [] if known in seen else [name for name in inside if not name.startswith(".")]
        if known not in seen:
            yield from (Path(place) / name for name in names)
        seen.add(known)


def _expect_present(pairs: Sequence[Pair]) -> None:
    """Looks every file up in the listing of its folder, which costs less than asking for each."""
    present: dict[Path, frozenset[str]] = {}
    missing: list[tuple[str, Path]] = []
    for pair in pairs:
        for what, path in zip(("image", "mask"), pair, strict=True):
            if path.parent not in present:
                present[path.parent] = names_in(path.parent)
            if path.name not in present[path.parent]:
                missing.append((what, path))
    if missing:
        what, path = missing[0]
        more = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise UsageError(f"{what} {str(path)!r}: expected an existing file, got none{more}")


def _expect_once(pairs: Sequence[Pair]) -> None:
    """Two images of one mask, such as `a.jpg` and `a.png`, and a name that a list has twice, count twice unnoticed."""
    owners: dict[Path, Path] = {}
    for image, mask in pairs:
        if mask in owners:
            got = "it twice" if owners[mask] == image else f"{str(owners[mask])!r}, too"
            raise UsageError(f"image {str(image)!r}: expected once in a split, alone with its mask, got {got}")
        owners[mask] = image


def names_in(folder: Path) -> frozenset[str]:
    """Names of what lies in a folder; none where there is no such folder."""
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError:
        return frozenset()
