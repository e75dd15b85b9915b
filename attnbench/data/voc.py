"""Pascal VOC 2012: objects in photographs, 20 classes and background; with the masks of SBD 10,582 to train on."""

from __future__ import annotations

from pathlib import Path

from attnbench.data.files import FileDataset, Pair, find_root, listed
from attnbench.data.labels import plain

CLASSES: dict[str, tuple[int, int, int]] = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "diningtable": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tvmonitor": (0, 64, 128),
}
"""Name and colour of each class, in the order of the labels."""

MASKS, SBD_MASKS = "SegmentationClass", "SegmentationClassAug"
LISTS = "ImageSets/Segmentation"


class PascalVOC(FileDataset):
    """Pascal VOC 2012: 1,464 images to train on, 1,449 to validate; `trainaug` has 10,582.

    A folder (`VOCdevkit/VOC2012`) has `JPEGImages`, `SegmentationClass` and the lists `ImageSets/Segmentation/*.txt`.
    Masks are palette PNG with labels 0 to 20, and 255 along the outlines.

    `trainaug` is VOC's own list `train.txt` with VOC's masks, followed by `aug.txt`, whose 9,118 images have the masks
    of SBD in `SegmentationClassAug`. A list `trainaug.txt` of all 10,582 will do, too.

    Source:
        Everingham et al.: The Pascal visual object classes challenge: a retrospective. IJCV, 2015.
        Hariharan et al.: Semantic contours from inverse detectors. ICCV, 2011.
    """

    name = "voc"
    classes = tuple(CLASSES)
    palette = tuple(CLASSES.values())
    labels = plain(len(CLASSES), ignored=[255])
    splits = ("train", "val", "trainval", "trainaug")
    published = {"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10582}  # noqa: RUF012

    @classmethod
    def find(cls, root: Path) -> Path:
        """The folder with the dataset's files, given it or one around it."""
        under = ("VOCdevkit/VOC2012", "VOC2012", "voc/VOCdevkit/VOC2012", "voc")
        return find_root(cls.name, root, under, ("JPEGImages", MASKS, LISTS))

    def _listed(self, part: str) -> list[str]:
        return listed(self.root / LISTS / f"{part}.txt", self.name, part)

    def _pairs(self, split: str) -> list[Pair]:
        if split != "trainaug":
            return [self._pair(name, MASKS) for name in self._listed(split)]
        own = self._listed("train")
        if (self.root / LISTS / "trainaug.txt").is_file():
            others = [name for name in self._listed("trainaug") if name not in set(own)]
        else:
            others = self._listed("aug")
        return [self._pair(name, MASKS) for name in own] + [self._pair(name, SBD_MASKS) for name in others]

    def _pair(self, name: str, masks: str) -> Pair:
        return Pair(self.root / "JPEGImages" / f"{name}.jpg", self.root / masks / f"{name}.png")
