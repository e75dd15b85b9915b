"""Pascal Context: every pixel of the images of VOC 2010; the 59 most frequent classes, with or without background."""

from __future__ import annotations

from pathlib import Path

from attnbench.data.files import FileDataset, Pair, find_root, listed
from attnbench.data.labels import Labels, plain

_TABLE: dict[str, tuple[int, tuple[int, int, int]]] = {
    "background": (0, (120, 120, 120)),
    "aeroplane": (2, (180, 120, 120)),
    "bag": (9, (6, 230, 230)),
    "bed": (18, (80, 50, 50)),
    "bedclothes": (19, (4, 200, 3)),
    "bench": (22, (120, 120, 80)),
    "bicycle": (23, (140, 140, 140)),
    "bird": (25, (204, 5, 255)),
    "boat": (31, (230, 230, 230)),
    "book": (33, (4, 250, 7)),
    "bottle": (34, (224, 5, 255)),
    "building": (44, (235, 255, 7)),
    "bus": (45, (150, 5, 61)),
    "cabinet": (46, (120, 120, 70)),
    "car": (59, (8, 255, 51)),
    "cat": (65, (255, 6, 82)),
    "ceiling": (68, (143, 255, 140)),
    "chair": (72, (204, 255, 4)),
    "cloth": (80, (255, 51, 7)),
    "computer": (85, (204, 70, 3)),
    "cow": (98, (0, 102, 200)),
    "cup": (104, (61, 230, 250)),
    "curtain": (105, (255, 6, 51)),
    "dog": (113, (11, 102, 255)),
    "door": (115, (255, 7, 71)),
    "fence": (144, (255, 9, 224)),
    "floor": (158, (9, 7, 230)),
    "flower": (159, (220, 220, 220)),
    "food": (162, (255, 9, 92)),
    "grass": (187, (112, 9, 255)),
    "ground": (189, (8, 255, 214)),
    "horse": (207, (7, 255, 224)),
    "keyboard": (220, (255, 184, 6)),
    "light": (232, (10, 255, 71)),
    "motorbike": (258, (255, 41, 10)),
    "mountain": (259, (7, 255, 255)),
    "mouse": (260, (224, 255, 8)),
    "person": (284, (102, 8, 255)),
    "plate": (295, (255, 61, 6)),
    "platform": (296, (255, 194, 7)),
    "pottedplant": (308, (255, 122, 8)),
    "road": (324, (0, 255, 20)),
    "rock": (326, (255, 8, 41)),
    "sheep": (347, (255, 5, 153)),
    "shelves": (349, (6, 51, 255)),
    "sidewalk": (354, (235, 12, 255)),
    "sign": (355, (160, 150, 20)),
    "sky": (360, (0, 163, 255)),
    "snow": (366, (140, 140, 140)),
    "sofa": (368, (250, 10, 15)),
    "table": (397, (20, 255, 0)),
    "track": (415, (31, 255, 0)),
    "train": (416, (255, 31, 0)),
    "tree": (420, (255, 224, 0)),
    "truck": (424, (153, 255, 0)),
    "tvmonitor": (427, (0, 0, 255)),
    "wall": (440, (255, 71, 0)),
    "water": (445, (0, 235, 255)),
    "window": (454, (0, 173, 255)),
    "wood": (458, (31, 0, 255)),
}
"""Number among the 459 labels of the annotation, and colour, of each class; background is all that has no class."""

SOURCE_LABELS = tuple(number for number, _ in _TABLE.values())
"""Number of each class among the 459 labels of the annotation, background (0) first."""

MASKS, LISTS = "SegmentationClassContext", "ImageSets/SegmentationContext"


class _PascalContext(FileDataset):
    splits = ("train", "val")
    published = {"train": 4998, "val": 5105}  # noqa: RUF012

    @classmethod
    def find(cls, root: Path) -> Path:
        """The folder with the dataset's files, given it or one around it."""
        under = ("VOCdevkit/VOC2010", "VOC2010", "pascal_context/VOCdevkit/VOC2010", "pascal_context")
        return find_root(cls.name, root, under, ("JPEGImages", MASKS, LISTS))

    def _pairs(self, split: str) -> list[Pair]:
        names = listed(self.root / LISTS / f"{split}.txt", self.name, split)
        return [Pair(self.root / "JPEGImages" / f"{name}.jpg", self.root / MASKS / f"{name}.png") for name in names]


class PascalContext60(_PascalContext):
    """Pascal Context with background as a class: 4,998 images to train on, 5,105 to validate.

    A folder (`VOCdevkit/VOC2010`) has `JPEGImages`, `SegmentationClassContext` and the lists
    `ImageSets/SegmentationContext/train.txt` and `val.txt`. Masks are grey PNG: 0 is background, 1 to 59 are the
    classes in alphabetical order; `scripts/prepare_data.py` makes them from the published annotation.

    Source:
        Mottaghi et al.: The role of context for object detection and semantic segmentation in the wild. CVPR, 2014.
    """

    name = "pascal_context_60"
    classes = tuple(_TABLE)
    palette = tuple(colour for _, colour in _TABLE.values())
    labels = plain(len(_TABLE), ignored=[255])


class PascalContext59(_PascalContext):
    """Pascal Context without background, which does not count; the files are those of `pascal_context_60`."""

    name = "pascal_context_59"
    classes = PascalContext60.classes[1:]
    palette = PascalContext60.palette[1:]
    labels = Labels({value: value - 1 for value in range(1, len(_TABLE))}, ignored=[0, 255])
