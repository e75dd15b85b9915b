"""How much each class counts in the loss: as the recipe lists it, or balanced by how often it occurs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnbench.config import ClassBalance, Recipe
from attnbench.data.base import SegmentationDataset
from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX
from attnbench.training.losses import PixelWeights


def pixel_weights(dataset: SegmentationDataset, recipe: Recipe, device: torch.device) -> PixelWeights:
    """How much each pixel counts under `recipe`; where classes are balanced, every target of `dataset` is read.

    Args:
        dataset: what is trained on.
        recipe: class weights or balance, and OHEM.
        device: where the losses are computed.

    Raises:
        UsageError: if the weights are not one for each class.
    """
    weights: Sequence[float] = recipe.class_weights
    if recipe.class_balance != "none":
        weights = balanced(label_counts(dataset), recipe.class_balance)
    if weights and len(weights) != len(dataset.classes):
        raise UsageError(
            f"class_weights: expected {len(dataset.classes)}, one for each class of {dataset.name!r}, "
            f"got {len(weights)}"
        )
    classes = torch.tensor(weights, dtype=torch.float32, device=device) if weights else None
    return PixelWeights(classes, recipe.ohem_threshold, recipe.ohem_min_kept)


def label_counts(dataset: SegmentationDataset) -> Tensor:
    """Pixels `(classes,)` of each class in all targets of `dataset`, and in how many images each class occurs.

    Returns:
        int64 `(classes, 3)`: the class's pixels, all labelled pixels of the images in which it occurs, and all
        labelled pixels.
    """
    counts = torch.zeros(len(dataset.classes), 3, dtype=torch.int64)
    target_of: Callable[[int], Tensor] = getattr(dataset, "target", lambda index: dataset[index][1])
    for index in range(len(dataset)):
        target = target_of(index).long().flatten()
        pixels = torch.bincount(target, minlength=IGNORE_INDEX + 1)[: len(dataset.classes)]
        counts += torch.stack([pixels, pixels.sum() * (pixels > 0), pixels.sum().expand_as(pixels)], dim=1)
    return counts


def balanced(counts: Tensor, balance: ClassBalance) -> list[float]:
    """Weight of each class by how often it occurs; 0 for a class that does not.

    Equation: `"median_frequency"`: `median(f) / f_c`, with `f_c` the class's share of the pixels of the images in which
    it occurs. `"enet"`: `1 / ln(1.02 + p_c)`, with `p_c` its share of all pixels.

    Args:
        counts: what `label_counts` returns.
        balance: `"median_frequency"` or `"enet"`.

    Source:
        Median frequency: Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common
        Multi-Scale Convolutional Architecture", ICCV 2015, as SegNet takes it up for CamVid. ENet: Paszke et al.,
        "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", arXiv:1606.02147.

    Example:
        >>> counts = torch.tensor([[80, 100, 100], [20, 100, 100], [0, 0, 100]])
        >>> [round(weight, 3) for weight in balanced(counts, "median_frequency")]
        [0.625, 2.5, 0.0]
    """
    pixels, beside, all_of_them = counts.double().unbind(1)
    occurs = pixels > 0
    if balance == "enet":
        shares = (pixels / all_of_them.clamp(min=1)).tolist()
        return [1 / math.log(1.02 + share) if share else 0.0 for share in shares]
    frequencies = (pixels / beside.clamp(min=1)).where(occurs, 1)
    median = torch.quantile(frequencies[occurs], 0.5) if bool(occurs.any()) else torch.tensor(0.0)
    return (median / frequencies).where(occurs, 0).tolist()
