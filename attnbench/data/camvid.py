"""CamVid in the split of SegNet: street scenes of 360x480 pixels, 11 classes and void."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from attnbench.config import near
from attnbench.data.base import IMAGENET_MEAN, IMAGENET_STD, image_tensor, mask_tensor, read_image, read_mask
from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX

CLASSES: dict[str, tuple[int, int, int]] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
"""Name and colour of each class, in the order of the labels."""

VOID = len(CLASSES)
"""Label of void in the files; targets have 255 instead."""

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val",),
    "test": ("test",),
    "trainval": ("train", "val"),
}
"""Splits, and the lists that each is made of."""

_SUFFIXES = (".png", ".webp")


class CamVid:
    """CamVid: 367 images to train on, 101 to validate, 233 to test.

    A folder has `train.txt`, `val.txt` and `test.txt` with one `image mask` pair a line, or, without lists, the folders
    `train` and `trainannot` (and so on) with files of equal stems. Images are PNG or WebP; masks are palette or grey
    PNG with labels 0 to 11, of which 11 is void. Images are decoded once and kept in memory.

    Args:
        root: the folder, or the folder in which it is called `camvid`.
        split: `"train"`, `"val"`, `"test"` or `"trainval"`.
        image_size: height and width that images (bilinear, antialiased) and masks (nearest) are resized to; none
            keeps them.

    Raises:
        UsageError: if the split is unknown or empty, or a file is missing or not what was expected.

    Source:
        Brostow, Fauqueur, Cipolla: Semantic object classes in video. Pattern Recognition Letters, 2009.
        Split and size: Badrinarayanan, Kendall, Cipolla: SegNet. PAMI, 2017. https://arxiv.org/abs/1511.00561
    """

    name = "camvid"
    classes = tuple(CLASSES)
    palette = tuple(CLASSES.values())
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(self, root: str | Path, split: str = "train", image_size: tuple[int, int] | None = None) -> None:
        if split not in SPLITS:
            raise UsageError(f"camvid: unknown split {split!r}{near(split, SPLITS)}")
        self.split = split
        self.image_size = image_size
        self.root = _find_root(Path(root))
        self.pairs = [pair for part in SPLITS[split] for pair in _pairs(self.root, part)]
        self._cache: list[tuple[Tensor, Tensor] | None] = [None] * len(self.pairs)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 `(3, H, W)` and target uint8 `(H, W)` with 255 for void."""
        cached = self._cache[index]
        if cached is None:
            cached = self._cache[index] = self._read(index)
        return cached

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        mask = read_mask(mask_path, size=image.size, num_labels=VOID + 1)
        if self.image_size is not None:
            size = self.image_size[::-1]
            image = image.resize(size, Image.Resampling.BILINEAR)
            mask = mask.resize(size, Image.Resampling.NEAREST)
        target = mask_tensor(mask)
        return image_tensor(image), torch.where(target == VOID, IGNORE_INDEX, target)


def _find_root(root: Path) -> Path:
    for folder in (root, root / "camvid", root / "CamVid"):
        if any(
            (folder / name).exists()
            for name in ("train.txt", "val.txt", "test.txt", "trainannot", "valannot", "testannot")
        ):
            return folder
    raise UsageError(
        f"camvid: expected a folder with train.txt or train/ and trainannot/ (or camvid/ in it), got {str(root)!r}"
    )


def _pairs(root: Path, part: str) -> list[tuple[Path, Path]]:
    listing = root / f"{part}.txt"
    pairs = _listed_pairs(root, listing) if listing.is_file() else _folder_pairs(root, part)
    if not pairs:
        where = listing if listing.is_file() else root / part
        raise UsageError(f"camvid split {part!r}: expected at least one image, got none in {str(where)!r}")
    for image, mask in pairs:
        for what, path in (("image", image), ("mask", mask)):
            if not path.is_file():
                raise UsageError(f"{what} {str(path)!r}: expected an existing file, got none")
    return pairs


def _listed_pairs(root: Path, listing: Path) -> list[tuple[Path, Path]]:
    pairs = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        entries = line.split()
        if not entries:
            continue
        if len(entries) != 2:
            raise UsageError(f"list {str(listing)!r}, line {number}: expected `image mask`, got {line!r}")
        image, mask = (_resolve(root, entry) for entry in entries)
        pairs.append((image, mask))
    return pairs


def _resolve(root: Path, entry: str) -> Path:
    """The file of a list entry: SegNet's lists name `/SegNet/CamVid/train/x.png`, of which folder and file hold."""
    path = root.joinpath(*Path(entry).parts[-2:])
    if not path.is_file():
        for suffix in _SUFFIXES:
            if path.with_suffix(suffix).is_file():
                return path.with_suffix(suffix)
    return path


def _folder_pairs(root: Path, part: str) -> list[tuple[Path, Path]]:
    images = sorted(path for path in (root / part).glob("*") if path.suffix.lower() in _SUFFIXES)
    return [(path, root / f"{part}annot" / f"{path.stem}.png") for path in images]
