"""Conversion of annotations that are published as MATLAB files into masks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnbench.data import pascal_context, voc
from attnbench.data.files import listed
from attnbench.errors import UsageError

Progress = Callable[[int, int], None]
"""Called with the masks that are done, and their number."""

SBD = "VOCdevkit/VOCaug/dataset"
VOC_2012, VOC_2010 = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
CONTEXT = "VOCdevkit/VOC2010/trainval"


def convert_sbd(root: Path, progress: Progress | None = None) -> None:
    """Makes `SegmentationClassAug` and the list `aug.txt` of VOC 2012 from SBD's annotation.

    The list holds every image of SBD that is in neither of VOC's own lists, so that nothing of `val` is trained on.

    Args:
        root: folder with `VOCdevkit`.
        progress: called after each mask.

    Raises:
        UsageError: if a list or an annotation is missing or not what was expected.
    """
    sbd, own = root / SBD, root / VOC_2012
    names = {name for part in ("train", "val") for name in listed(sbd / f"{part}.txt", "SBD", part)}
    for part in ("train", "val"):
        names -= set(listed(own / voc.LISTS / f"{part}.txt", "voc", part))
    ordered = sorted(names)
    _convert(ordered, sbd / "cls", own / voc.SBD_MASKS, _sbd_mask, progress)
    write_text(own / voc.LISTS / "aug.txt", "".join(f"{name}\n" for name in ordered))


def convert_context(root: Path, progress: Progress | None = None) -> None:
    """Makes masks of 60 labels and the lists of Pascal Context from its annotation of 459 labels.

    Args:
        root: folder with `VOCdevkit`.
        progress: called after each mask.

    Raises:
        UsageError: if a list or an annotation is missing or not what was expected.
    """
    home = root / VOC_2010
    parts = {part: listed(home / "ImageSets/Main" / f"{part}.txt", "VOC 2010", part) for part in ("train", "val")}
    names = [name for part in parts.values() for name in part]
    _convert(names, root / CONTEXT, home / pascal_context.MASKS, _context_mask, progress)
    for part, found in parts.items():
        write_text(home / pascal_context.LISTS / f"{part}.txt", "".join(f"{name}\n" for name in found))


def _convert(
    names: Iterable[str],
    annotations: Path,
    masks: Path,
    read: Callable[[Path], NDArray[np.uint8]],
    progress: Progress | None,
) -> None:
    names = list(names)
    masks.mkdir(parents=True, exist_ok=True)
    for done, name in enumerate(names, start=1):
        mask = masks / f"{name}.png"
        if not mask.is_file():
            part = mask.with_name(f"{mask.name}.part")
            Image.fromarray(read(annotations / f"{name}.mat")).save(part, format="PNG")
            part.replace(mask)
        if progress is not None:
            progress(done, len(names))


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# what `loadmat` raises for files that are damaged, cut short or of another kind
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, EOFError, NotImplementedError, zlib.error)


def _matrix(path: Path, key: str) -> Any:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise UsageError(f"annotation {str(path)!r}: expected an existing file, got none")
    try:
        return loadmat(path, squeeze_me=True, struct_as_record=False)[key]
    except (*_UNREADABLE, MatReadError) as error:
        raise UsageError(f"annotation {str(path)!r}: expected a MATLAB file with {key}, got {error}") from error


def _sbd_mask(path: Path) -> NDArray[np.uint8]:
    labels = np.asarray(getattr(_matrix(path, "GTcls"), "Segmentation", None))
    if labels.ndim != 2 or labels.max() >= len(voc.CLASSES):
        raise UsageError(f"annotation {str(path)!r}: expected labels 0..{len(voc.CLASSES) - 1}, got other values")
    return labels.astype(np.uint8)


def _context_mask(path: Path) -> NDArray[np.uint8]:
    labels = np.asarray(_matrix(path, "LabelMap"))
    if labels.ndim != 2 or labels.max() > _NUM_CONTEXT:
        raise UsageError(f"annotation {str(path)!r}: expected labels 0..{_NUM_CONTEXT}, got other values")
    return np.take(_CONTEXT_TABLE, labels)


_NUM_CONTEXT = 459
_CONTEXT_TABLE = np.zeros(_NUM_CONTEXT + 1, np.uint8)
_CONTEXT_TABLE[list(pascal_context.SOURCE_LABELS)] = np.arange(len(pascal_context.SOURCE_LABELS))
