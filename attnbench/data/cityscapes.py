"""Cityscapes, finely annotated: streets of 50 cities at 1024x2048 pixels, 19 classes."""

from __future__ import annotations

from pathlib import Path

from attnbench.data.files import FileDataset, Pair, expect_pairs, find_root, images_in
from attnbench.data.labels import Labels

CLASSES: dict[str, tuple[int, int, int]] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""Name and colour of each class, in the order of the train ids."""

_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_NUM_IDS = 34
_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


class Cityscapes(FileDataset):
    """Cityscapes (fine): 2,975 images to train on, 500 to validate. The labels of the test images are not public.

    A folder has `leftImg8bit/<split>/<city>/<frame>_leftImg8bit.png` and
    `gtFine/<split>/<city>/<frame>_gtFine_labelIds.png`. The masks are grey PNG with the 34 label ids of the annotation;
    the 19 that are evaluated become the train ids, the others do not count. No converted masks are needed.

    Source:
        Cordts et al.: The Cityscapes dataset for semantic urban scene understanding. CVPR, 2016.
        https://arxiv.org/abs/1604.01685
    """

    name = "cityscapes"
    classes = tuple(CLASSES)
    palette = tuple(CLASSES.values())
    labels = Labels(
        {label_id: train_id for train_id, label_id in enumerate(_IDS)},
        ignored=[label_id for label_id in range(_NUM_IDS) if label_id not in _IDS],
    )
    splits = ("train", "val", "trainval")
    published = {"train": 2975, "val": 500, "trainval": 3475}  # noqa: RUF012

    @classmethod
    def find(cls, root: Path) -> Path:
        """The folder with the dataset's files, given it or one around it."""
        return find_root(cls.name, root, ("cityscapes", "Cityscapes"), ("leftImg8bit", "gtFine"))

    def _pairs(self, split: str) -> list[Pair]:
        parts = ("train", "val") if split == "trainval" else (split,)
        return [pair for part in parts for pair in self._pairs_of(part)]

    def _pairs_of(self, part: str) -> list[Pair]:
        folder, masks = self.root / "leftImg8bit" / part, self.root / "gtFine" / part
        images = [path for path in images_in(folder, suffixes=(".png",), deep=True) if path.name.endswith(_IMAGE)]
        pairs = [
            Pair(path, masks / path.parent.relative_to(folder) / f"{path.name.removesuffix(_IMAGE)}{_MASK}")
            for path in images
        ]
        return expect_pairs(pairs, self.name, part, folder)
