"""Anybody's own data: folders of images and masks, described by a small `dataset.toml` beside them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attnbench.config import from_mapping
from attnbench.data.base import COLOURED, GREY_OR_PALETTE, IMAGENET_MEAN, IMAGENET_STD, read_mask
from attnbench.data.files import FileDataset, Pair, expect_pairs, images_in, lines
from attnbench.data.labels import Labels
from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX

FILE = "dataset.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Folders:
    """Where a split lies, relative to `dataset.toml`.

    Args:
        images: folder of the images; folders inside it are looked into, too.
        masks: folder of the masks, built like that of the images.
        list: file with the names of the split's images without their endings, one in a line; empty takes all.
    """

    images: str = ""
    masks: str = ""
    list: str = ""


@dataclass(frozen=True)
class Description:
    """What `dataset.toml` says; `[splits.NAME]` tables give the `Folders` of each split.

    Args:
        name: the dataset's name in `--dataset`, records and tables: letters, digits, `_` and `-`.
        classes: name of each class, in the order of the labels.
        palette: colour of each class; empty takes those of Pascal VOC's colour map.
        labels: value of each class in the masks, such as 1, 2, 3 where 0 does not count; empty counts from 0.
        ignore: labels of pixels that do not count.
        masks: `"labels"`, grey or palette files whose values are labels, or `"colours"`, files whose pixels have
            the palette's colours: RGB, palette, grey, or black and white.
        ignore_colours: colours of pixels that do not count.
        image_ending: what a name of an image has after the part that it shares with its mask; empty takes any image.
        mask_ending: what a name of a mask has after that part.
        mean: mean of each colour channel, as a fraction of 255.
        std: standard deviation of each colour channel, as a fraction of 255.
    """

    name: str = ""
    classes: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()
    labels: tuple[int, ...] = ()
    ignore: tuple[int, ...] = (255,)
    masks: Literal["labels", "colours"] = "labels"
    ignore_colours: tuple[Colour, ...] = ()
    image_ending: str = ""
    mask_ending: str = ".png"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def find_description(root: Path, name: str) -> Path | None:
    """The `dataset.toml` of the dataset called `name`, in `root/name` or in `root` itself, if there is one."""
    if not _NAME.fullmatch(name):
        return None
    inside = root / name / FILE
    if inside.is_file():
        return inside
    own = root / FILE
    return own if own.is_file() and _load(own).get("name") == name else None


class Folder(FileDataset):
    """Images and masks as a `dataset.toml` describes them.

    Args:
        description: the `dataset.toml`.
        split: one of its splits.
        image_size: height and width that images and masks are resized to; none keeps them.

    Raises:
        UsageError: if the description does not fit, the split is unknown or empty, or a file is missing.
    """

    def __init__(self, description: str | Path, split: str, image_size: tuple[int, int] | None = None) -> None:
        path = Path(description)
        found, self._folders = read_description(path)
        self.name, self.classes, self.mean, self.std = found.name, found.classes, found.mean, found.std
        self.palette = found.palette or voc_colours(len(found.classes))
        self.labels = _labels(found)
        self.splits = tuple(self._folders)
        self._description = found
        self._colours = _Colours(self.palette, found.ignore_colours) if found.masks == "colours" else None
        self.mask_modes = GREY_OR_PALETTE if self._colours is None else COLOURED
        super().__init__(path.parent, split, image_size)

    @classmethod
    def find(cls, root: Path) -> Path:
        """The folder itself: the description says where files lie in it."""
        return root

    def _targets(self, path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        if self._colours is None:
            return super()._targets(path, size)
        return self._colours.targets(read_mask(path, size=size, modes=self.mask_modes), path)

    def mask_meaning(self) -> str:
        """The description, in which the masks' values or colours stand."""
        return repr(self._description)

    def _pairs(self, split: str) -> list[Pair]:
        folders = self._folders[split]
        images, masks = self.root / folders.images, self.root / folders.masks
        if not images.is_dir():
            raise UsageError(f"{self.name} split {split!r}: expected the folder {str(images)!r}, got none")
        # two images of one name are both taken here, and found out when all pairs are there
        named: dict[str, list[Path]] = {}
        for path in self._images(images):
            named.setdefault(self._shared(path, images), []).append(path)
        where, names = images, list(named)
        if folders.list:
            where = self.root / folders.list
            names = [line.strip() for _, line in lines(where, f"{self.name} split {split!r}")]
        pairs = [
            Pair(path, masks / f"{name}{self._description.mask_ending}")
            for name in names
            for path in named.get(name, [images / f"{name}{self._description.image_ending}"])
        ]
        return expect_pairs(pairs, self.name, split, where)

    def unpaired(self) -> list[Path]:
        """Masks of the split that no image belongs to, unless a list chooses among them."""
        folders, ending = self._folders[self.split], self._description.mask_ending
        if folders.list:
            return []
        known = {pair.mask for pair in self.pairs}
        masks = images_in(self.root / folders.masks, deep=True)
        return [path for path in masks if path.name.endswith(ending) and path not in known]

    def _images(self, folder: Path) -> list[Path]:
        ending = self._description.image_ending
        return [path for path in images_in(folder, deep=True) if path.name.endswith(ending)]

    def _shared(self, path: Path, folder: Path) -> str:
        name = path.relative_to(folder).as_posix()
        return name.removesuffix(self._description.image_ending or path.suffix)


def _labels(found: Description) -> Labels:
    values = found.labels or range(len(found.classes))
    return Labels({value: label for label, value in enumerate(values)}, found.ignore if found.masks == "labels" else ())


class _Colours:
    """Table from the colours of RGB masks to classes."""

    def __init__(self, palette: tuple[Colour, ...], ignored: tuple[Colour, ...]) -> None:
        labels = [*range(len(palette)), *([IGNORE_INDEX] * len(ignored))]
        codes = np.array([(red << 16) + (green << 8) + blue for red, green, blue in (*palette, *ignored)])
        order = np.argsort(codes)
        self._codes, self._labels = codes[order], np.array(labels, np.uint8)[order]

    def targets(self, values: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        codes = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])  # (H, W)
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        strange = self._codes[places] != codes
        if strange.any():
            colour = tuple(int(part) for part in values[strange][0])
            raise UsageError(f"mask {str(path)!r}: expected colours of the palette or ignore_colours, got {colour}")
        return np.asarray(self._labels[places], np.uint8)


def voc_colours(number: int) -> tuple[Colour, ...]:
    """Pascal VOC's colour map: the bits of a label, three by three, from the highest bit of each channel down.

    Example:
        >>> voc_colours(4)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    return tuple((_channel(label, 0), _channel(label, 1), _channel(label, 2)) for label in range(number))


def _channel(label: int, channel: int) -> int:
    return sum(((label >> (3 * step + channel)) & 1) << (7 - step) for step in range(8))


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{str(path)!r}: expected a TOML file, got {error}") from error


def read_description(path: Path) -> tuple[Description, dict[str, Folders]]:
    """What a `dataset.toml` says, and the folders of each split.

    Raises:
        UsageError: naming the key that is unknown or does not fit.
    """
    values, where = _load(path), str(path)
    splits = values.pop("splits", {})
    found = from_mapping(Description, values, where)
    _validate(found, where)
    if not isinstance(splits, Mapping) or not splits:
        raise UsageError(f"{where}: expected a table [splits.NAME] for each split, got none")
    return found, {name: _folders(value, f"{where}, splits.{name}") for name, value in splits.items()}


def _folders(value: Any, where: str) -> Folders:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected a table, got {value!r}")
    folders = from_mapping(Folders, value, where)
    for key in ("images", "masks"):
        if not getattr(folders, key):
            raise UsageError(f"{where}, {key}: expected a folder, got none")
    return folders


def _validate(found: Description, where: str) -> None:
    if not _NAME.fullmatch(found.name):
        raise UsageError(f"{where}, name: expected letters, digits, _ and -, got {found.name!r}")
    if not 2 <= len(found.classes) <= 255:
        raise UsageError(f"{where}, classes: expected 2 to 255 names, got {len(found.classes)}")
    if len(set(found.classes)) != len(found.classes):
        raise UsageError(f"{where}, classes: expected different names, got one twice")
    if found.palette and len(found.palette) != len(found.classes):
        raise UsageError(f"{where}, palette: expected {len(found.classes)} colours, got {len(found.palette)}")
    colours = (*found.palette, *found.ignore_colours)
    if any(not 0 <= part <= 255 for colour in colours for part in colour):
        raise UsageError(f"{where}, palette: expected colours of three values in 0..255, got {colours}")
    if found.masks == "colours" and not found.palette:
        raise UsageError(f"{where}, palette: expected the colours of the masks, got none")
    if found.masks == "colours" and len(set(colours)) != len(colours):
        raise UsageError(f"{where}, palette: expected different colours, got one twice")
    if found.labels and found.masks == "colours":
        raise UsageError(f"{where}, labels: expected none beside masks in colours, got {found.labels}")
    if found.labels and not len(set(found.labels)) == len(found.labels) == len(found.classes):
        raise UsageError(f"{where}, labels: expected {len(found.classes)} different values, got {found.labels}")
    try:
        _labels(found)
    except UsageError as error:
        raise UsageError(f"{where}, {error}") from error
    for name, low in (("mean", 0.0), ("std", 1e-6)):
        values = getattr(found, name)
        if not all(low <= value <= 1 for value in values):
            raise UsageError(f"{where}, {name}: expected fractions of 255 from {low:g} to 1, got {values}")
