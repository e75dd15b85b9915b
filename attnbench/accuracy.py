"""An accuracy trial: the network that it names, trained and scored."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from attnbench.config import WHOLE
from attnbench.data import build_dataset
from attnbench.data.base import SegmentationDataset
from attnbench.evaluation import evaluate
from attnbench.measuring.cost import count_params
from attnbench.metrics import Scores
from attnbench.models.build import build_segmentor
from attnbench.models.segmentor import Segmentor
from attnbench.records import Trial
from attnbench.training import fit
from attnbench.training.features import Progress, on_features
from attnbench.training.telling import Telling


def segmentor_of(trial: Trial, num_classes: int) -> Segmentor:
    """The network of a trial; its weights are drawn from the trial's seed.

    Raises:
        UsageError: see `build_segmentor`.
    """
    assert trial.network and trial.recipe and trial.seed is not None
    torch.manual_seed(trial.seed)
    return build_segmentor(
        trial.operator,
        trial.network,
        num_classes,
        implementation=trial.implementation,
        settings=json.loads(trial.settings),
        auxiliary_weight=trial.recipe.auxiliary_weight,
    )


def figures(
    model: Segmentor,
    losses: Sequence[float],
    scores: Scores,
    train: SegmentationDataset,
    test: SegmentationDataset,
) -> dict[str, Any]:
    """Fields of the record of a network that was trained on `train` and scored on `test`."""
    fields: dict[str, Any] = {
        "params": count_params(model),
        "miou": scores.miou,
        "macc": scores.macc,
        "aacc": scores.aacc,
        "iou": list(scores.iou),
        "classes": list(test.classes),
        "loss": [round(value, 6) for value in losses],
        "train_images": len(train),
        "eval_images": len(test),
        **scores.boundary_fields(),
    }
    radius = getattr(model.backbone, "receptive_field", None)
    if radius is not None and hasattr(test, "local_ceiling"):
        fields["local_ceiling"] = test.local_ceiling(radius // 2)
    return fields


class Learning(NamedTuple):
    """What `fit` and `evaluate` take for an accuracy trial.

    Args:
        model: the network, or its head where the features of a frozen backbone are cached.
        train: images that it is trained on, or their features.
        test: images that it is scored on, or their features.
        freeze_backbone: whether a backbone in `model` stays as it is.
    """

    model: nn.Module
    train: SegmentationDataset
    test: SegmentationDataset
    freeze_backbone: bool


def learning(
    segmentor: Segmentor,
    trial: Trial,
    train: SegmentationDataset,
    test: SegmentationDataset,
    progress: Progress | None = None,
) -> Learning:
    """How `segmentor` learns in `trial`: on images, or its head on features that are computed here, or were before.

    Args:
        segmentor: the network of the trial; training what comes back trains it.
        trial: an accuracy trial.
        train: images that it is trained on.
        test: images that it is scored on.
        progress: told of the images whose features are computed.

    Raises:
        UsageError: see `attnbench.training.features.cached_features`.
    """
    if trial.cache_features:
        return Learning(*on_features(segmentor, trial, train, test, progress), freeze_backbone=False)
    return Learning(segmentor, train, test, freeze_backbone=bool(trial.freeze_backbone))


_dataset = functools.cache(build_dataset)


def train_and_score(trial: Trial, told: Telling, *, data_root: str | None, loaders: int) -> dict[str, Any]:
    """Fields of the record of `trial`.

    Args:
        trial: an accuracy trial.
        told: hears of every step.
        data_root: folder of the dataset.
        loaders: processes that load data.

    Raises:
        UsageError: if data, network, recipe and device do not fit one another.
    """
    assert trial.dataset and trial.train_split and trial.eval_split and trial.recipe and trial.seed is not None
    train, test = (
        _dataset(trial.dataset, split=split, root=data_root, image_size=trial.image_size)
        for split in (trial.train_split, trial.eval_split)
    )
    device = torch.device(trial.device)
    model = segmentor_of(trial, len(train.classes))
    learns = learning(model, trial, train, test, told.features)
    started = time.perf_counter()
    losses = fit(
        learns.model,
        learns.train,
        trial.recipe,
        seed=trial.seed,
        device=device,
        freeze_backbone=learns.freeze_backbone,
        progress=told.step,
        num_workers=loaders,
    )
    trained = time.perf_counter()
    scores = evaluate(
        learns.model,
        learns.test,
        device=device,
        amp=trial.recipe.amp,
        inference=trial.inference or WHOLE,
        boundary=bool(trial.boundary),
        num_workers=loaders,
    )
    told.scores({"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc})
    return {
        **figures(model, losses, scores, train, test),
        "train_s": trained - started,
        "eval_s": time.perf_counter() - trained,
        **told.watch.fields(),
    }
