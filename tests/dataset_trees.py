"""Tiny trees in the true layout of each dataset, for tests; and what their pixels are."""

from __future__ import annotations

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 6, 8


def write_image(path, seed=0, size=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_mask(path, values, *, palette=False):
    """A mask with `values` in its first pixels, and the first of them everywhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.full((HEIGHT, WIDTH), values[0], np.uint8)
    labels.ravel()[: len(values)] = values
    mask = Image.fromarray(labels)
    if palette:
        mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    mask.save(path)
    return path


def write_list(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def voc(root, palette=True):
    home = root / "VOCdevkit/VOC2012"
    parts = {"train": ["2007_000001", "2007_000002"], "val": ["2007_000003"], "aug": ["2008_000004", "2008_000005"]}
    for part, names in parts.items():
        for name in names:
            write_image(home / "JPEGImages" / f"{name}.jpg")
            folder = "SegmentationClassAug" if part == "aug" else "SegmentationClass"
            write_mask(home / folder / f"{name}.png", [0, 20, 255, 7], palette=palette)
        write_list(home / "ImageSets/Segmentation" / f"{part}.txt", names)
    write_list(home / "ImageSets/Segmentation/trainval.txt", parts["train"] + parts["val"])
    return home


def cityscapes(root, palette=False):
    home = root / "cityscapes"
    for part, frames in {
        "train": ["aachen_000000_000019", "bochum_000000_000313"],
        "val": ["munster_000000_000019"],
    }.items():
        for frame in frames:
            city = frame.partition("_")[0]
            write_image(home / "leftImg8bit" / part / city / f"{frame}_leftImg8bit.png")
            masks = home / "gtFine" / part / city
            write_mask(masks / f"{frame}_gtFine_labelIds.png", [7, 33, 0, 9], palette=palette)
            write_mask(masks / f"{frame}_gtFine_instanceIds.png", [7])
    return home


def ade20k(root, palette=False):
    home = root / "ADEChallengeData2016"
    for part, names in {
        "training": ["ADE_train_00000001", "ADE_train_00000002"],
        "validation": ["ADE_val_00000001"],
    }.items():
        for name in names:
            write_image(home / "images" / part / f"{name}.jpg")
            write_mask(home / "annotations" / part / f"{name}.png", [1, 150, 0, 13], palette=palette)
    return home


def pascal_context(root, palette=False):
    home = root / "VOCdevkit/VOC2010"
    for part, names in {"train": ["2008_000001", "2008_000002"], "val": ["2008_000003"]}.items():
        for name in names:
            write_image(home / "JPEGImages" / f"{name}.jpg")
            write_mask(home / "SegmentationClassContext" / f"{name}.png", [1, 59, 0, 2], palette=palette)
        write_list(home / "ImageSets/SegmentationContext" / f"{part}.txt", names)
    return home


def coco_stuff(root, palette=False, masks="annotations"):
    home = root / "coco_stuff164k"
    for part, names in {"train2017": ["000000000009", "000000000025"], "val2017": ["000000000139"]}.items():
        for name in names:
            write_image(home / "images" / part / f"{name}.jpg")
            write_mask(home / masks / part / f"{name}.png", [0, 181, 255, 12], palette=palette)
    return home


TREES = {
    "voc": voc,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "pascal_context_59": pascal_context,
    "pascal_context_60": pascal_context,
    "coco_stuff": coco_stuff,
}
"""What writes the tree of each dataset, given the data root; returns the dataset's own folder."""
