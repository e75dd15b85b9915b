"""CamVid in the split of SegNet: street scenes of 360x480 pixels, 11 classes and void."""

from __future__ import annotations

from pathlib import Path

from attnbench.data.files import FileDataset, Pair, expect_pairs, images_in, lines
from attnbench.data.labels import plain
from attnbench.errors import UsageError

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
_MARKS = ("train.txt", "val.txt", "test.txt", "trainannot", "valannot", "testannot")


class CamVid(FileDataset):
    """CamVid: 367 images to train on, 101 to validate, 233 to test.

    A folder has `train.txt`, `val.txt` and `test.txt` with one `image mask` pair a line, or, without lists, the folders
    `train` and `trainannot` (and so on) with files of equal stems. Images are PNG or WebP; masks are palette or grey
    PNG with labels 0 to 11, of which 11 is void.

    Source:
        Brostow, Fauqueur, Cipolla: Semantic object classes in video. Pattern Recognition Letters, 2009.
        Split and size: Badrinarayanan, Kendall, Cipolla: SegNet. PAMI, 2017. https://arxiv.org/abs/1511.00561
    """

    name = "camvid"
    classes = tuple(CLASSES)
    palette = tuple(CLASSES.values())
    labels = plain(len(CLASSES), ignored=[VOID])
    splits = tuple(SPLITS)
    published = {"train": 367, "val": 101, "test": 233}  # noqa: RUF012

    def __init__(self, root: str | Path, split: str = "train", image_size: tuple[int, int] | None = None) -> None:
        super().__init__(root, split, image_size)

    @classmethod
    def find(cls, root: Path) -> Path:
        """The folder with the dataset's files, given it or one around it."""
        for folder in (root / "camvid", root / "CamVid", root):
            if any((folder / mark).exists() for mark in _MARKS):
                return folder
        raise UsageError(
            f"camvid: expected a folder with train.txt or train/ and trainannot/ (or camvid/ in it), got {str(root)!r}"
        )

    def _pairs(self, split: str) -> list[Pair]:
        return [pair for part in SPLITS[split] for pair in self._pairs_of(part)]

    def _pairs_of(self, part: str) -> list[Pair]:
        listing = self.root / f"{part}.txt"
        if listing.is_file():
            return expect_pairs(self._listed(listing), self.name, part, listing)
        folder = self.root / part
        images = images_in(folder, suffixes=_SUFFIXES)
        pairs = [Pair(path, self.root / f"{part}annot" / f"{path.stem}.png") for path in images]
        return expect_pairs(pairs, self.name, part, folder)

    def _listed(self, listing: Path) -> list[Pair]:
        pairs = []
        for number, line in lines(listing, self.name):
            entries = line.split()
            if len(entries) != 2:
                raise UsageError(f"list {str(listing)!r}, line {number}: expected `image mask`, got {line!r}")
            pairs.append(Pair(*(self._resolve(entry) for entry in entries)))
        return pairs

    def _resolve(self, entry: str) -> Path:
        """The file of a list entry: SegNet's lists name `/SegNet/CamVid/train/x.png`, of which folder and file hold."""
        path = self.root.joinpath(*Path(entry).parts[-2:])
        if not path.is_file():
            for suffix in _SUFFIXES:
                if path.with_suffix(suffix).is_file():
                    return path.with_suffix(suffix)
        return path
