"""Features of a frozen backbone, computed once and kept in memory-mapped files."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from attnbench.config import Amp, Network
from attnbench.data.base import SegmentationDataset
from attnbench.data.features import ABOUT, FEATURES, TARGETS, FeatureSet
from attnbench.data.files import FileDataset
from attnbench.data.transforms import collate, normalise
from attnbench.errors import UsageError
from attnbench.models.layers import resize
from attnbench.models.segmentor import Segmentor
from attnbench.records import Trial
from attnbench.training.context import autocast
from operators.interface import Auxiliary

_FORMAT = 1
_OF_BACKBONE = ("backbone", "output_stride", "stem", "multi_grid", "dilate_both", "feature_stages")
_BATCH = 4
_PATIENCE_S = 2.0

Progress = Callable[[int, int], object]
"""Called with the images that are done, and their number; while another process computes, with none done."""


class HeadOnFeatures(nn.Module):
    """A segmentor without its backbone: features of whole images in, logits out.

    Args:
        segmentor: the segmentor whose decode head runs.
        image_size: height and width of the images that the features are of.

    Shape:
        `(B, C, h, w) -> (B, num_classes, H, W)`.
    """

    def __init__(self, segmentor: Segmentor, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size
        self.decode_head = segmentor.decode_head
        self.auxiliary = dict(segmentor.decode_head.auxiliary)

    def forward(self, features: Tensor) -> Tensor:
        """Logits at image size."""
        return resize(self.decode_head(features), self.image_size)

    def forward_with_auxiliary(self, features: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Auxiliary]]]:
        """Logits at the features' size, and for each extra loss its logits, its target and its weight."""
        logits, extra = self.decode_head.forward_with_auxiliary(features)
        return logits, {name: (value, self.auxiliary[name]) for name, value in extra.items()}


def on_features(
    segmentor: Segmentor,
    trial: Trial,
    train: SegmentationDataset,
    test: SegmentationDataset,
    progress: Progress | None = None,
) -> tuple[HeadOnFeatures, FeatureSet, FeatureSet]:
    """What an accuracy trial trains and scores in place of `segmentor` and images; see `cached_features`."""
    assert trial.network and trial.recipe and trial.train_split and trial.eval_split

    def features(dataset: SegmentationDataset, split: str, *, mirrored: bool) -> FeatureSet:
        assert trial.network and trial.recipe
        return cached_features(
            segmentor,
            trial.network,
            dataset,
            split=split,
            image_size=trial.image_size,
            mirrored=mirrored,
            device=torch.device(trial.device),
            amp=trial.recipe.amp,
            progress=progress,
        )

    seen = features(train, trial.train_split, mirrored=trial.recipe.flip)
    scored = features(test, trial.eval_split, mirrored=False)
    return HeadOnFeatures(segmentor, scored.image_size), seen, scored


def cache_folder() -> Path:
    """Where features are kept: `$ATTNBENCH_CACHE`, or the user's cache folder on this system."""
    return Path(os.environ.get("ATTNBENCH_CACHE") or platformdirs.user_cache_dir("attnbench"))


def cached_features(
    segmentor: Segmentor,
    network: Network,
    dataset: SegmentationDataset,
    *,
    split: str,
    image_size: tuple[int, int] | None,
    mirrored: bool,
    device: torch.device,
    amp: Amp = "off",
    progress: Progress | None = None,
) -> FeatureSet:
    """Features of `dataset`, from the cache, or computed and put there; one process computes while others wait.

    They are those of whole images with the backbone in evaluation, as float16. What they depend on, weights and files
    of the dataset among it, is part of their place in the cache, so that none is taken for another's.

    Args:
        segmentor: whose backbone computes them; it is moved to `device` where they are computed.
        network: the network that it was built from.
        dataset: images of one size.
        split: split of the dataset.
        image_size: size that its images are loaded at.
        mirrored: whether the features of the mirrored images are kept as well.
        device: where they are computed.
        amp: autocast precision of the backbone.
        progress: told how far it is.

    Raises:
        UsageError: if images differ in size, a feature does not fit into float16, or the cache cannot be written.
    """
    about = {
        "format": _FORMAT,
        "name": dataset.name,
        "split": split,
        "image_size": image_size,
        "files": _files_hash(dataset),
        "masks": dataset.mask_meaning() if isinstance(dataset, FileDataset) else "",
        "classes": dataset.classes,
        "palette": dataset.palette,
        "normalised": (dataset.mean, dataset.std),
        "output_stride": segmentor.backbone.output_stride,
        "backbone": {name: getattr(network, name) for name in _OF_BACKBONE},
        "weights": _state_hash(segmentor.backbone),
        "mirrored": mirrored,
        "amp": amp,
        "device": device.type,
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "features" / f"{dataset.name}-{split}-{key}"
    tell = progress or (lambda _done, _total: None)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        while not (folder / ABOUT).is_file():
            try:
                with lock.acquire(timeout=_PATIENCE_S):
                    if not (folder / ABOUT).is_file():
                        _compute(segmentor.backbone, dataset, folder, about, device, amp, tell)
            except Timeout:
                tell(0, len(dataset))
    except OSError as error:
        raise UsageError(
            f"cache of features {str(folder.parent)!r} (ATTNBENCH_CACHE): expected a folder with room for them, "
            f"got {error.strerror or error}"
        ) from error
    return FeatureSet(folder)


def _compute(
    backbone: nn.Module,
    dataset: SegmentationDataset,
    folder: Path,
    about: dict[str, Any],
    device: torch.device,
    amp: Amp,
    tell: Progress,
) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(backbone, dataset, partial, about["mirrored"], device, amp, tell)
        (partial / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    backbone: nn.Module,
    dataset: SegmentationDataset,
    partial: Path,
    mirrored: bool,
    device: torch.device,
    amp: Amp,
    tell: Progress,
) -> None:
    flags = [(module, module.training) for module in backbone.modules()]
    backbone.to(device).eval()
    features = targets = None
    try:
        for start in range(0, len(dataset), _BATCH):
            samples = [dataset[index] for index in range(start, min(start + _BATCH, len(dataset)))]
            images, target = collate(samples)
            found = [_features(backbone, way, dataset, device, amp) for way in _ways(images, mirrored)]
            if features is None or targets is None:
                shape = (len(dataset), len(found), *found[0].shape[1:])
                features = np.lib.format.open_memmap(partial / FEATURES, "w+", np.float16, shape)
                targets = np.lib.format.open_memmap(
                    partial / TARGETS, "w+", np.uint8, (len(dataset), *target.shape[1:])
                )
            if target.shape[1:] != targets.shape[1:]:
                raise UsageError(
                    f"dataset {dataset.name!r}: expected images of one size for cached features (set image_size), "
                    f"got {tuple(targets.shape[1:])} and {tuple(target.shape[1:])}"
                )
            features[start : start + len(samples)] = np.stack(found, axis=1)
            targets[start : start + len(samples)] = target.numpy()
            tell(start + len(samples), len(dataset))
        for array in (features, targets):
            if array is not None:
                array.flush()
    finally:
        for module, training in flags:
            module.training = training


def _ways(images: Tensor, mirrored: bool) -> list[Tensor]:
    return [images, images.flip(-1)] if mirrored else [images]


@torch.inference_mode()
def _features(
    backbone: nn.Module, images: Tensor, dataset: SegmentationDataset, device: torch.device, amp: Amp
) -> np.ndarray[Any, np.dtype[np.float16]]:
    inputs = normalise(images, dataset.mean, dataset.std).to(device, memory_format=torch.channels_last)
    with autocast(device, amp):
        _, features = backbone(inputs)  # (B, C, h, w)
    half: np.ndarray[Any, np.dtype[np.float16]] = features.permute(0, 2, 3, 1).to("cpu", torch.float16).numpy()
    if not np.isfinite(half).all():
        raise UsageError("cached features: expected values that float16 can hold, got larger ones")
    return half


def _state_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _files_hash(dataset: SegmentationDataset) -> str:
    """Hash of names and contents of the dataset's files: a copy of it is the same; of its length if it has none."""
    paths = tuple(path for pair in getattr(dataset, "pairs", ()) for path in pair)
    stamps = tuple((found.st_size, found.st_mtime_ns) for found in (path.stat() for path in paths))
    return _contents_hash(len(dataset), paths, stamps)


@functools.lru_cache(maxsize=8)
def _contents_hash(length: int, paths: tuple[Path, ...], _: tuple[tuple[int, int], ...]) -> str:
    """Read once in a process, not for each trial: a large dataset takes minutes."""
    digest = hashlib.sha256(str(length).encode())
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
