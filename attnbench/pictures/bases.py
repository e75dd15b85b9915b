"""What the bases, codewords or regions of an operator become: the share of each pixel that they hold."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attnbench.data.base import SegmentationDataset
from attnbench.pictures.board import Board, Sheet, show
from attnbench.pictures.colours import heat_colours, overlay
from attnbench.pictures.networks import Trained, slot
from attnbench.pictures.predictions import Answers
from attnbench.pictures.scenes import Scene

ROWS: Final = 8
"""Stages that a sheet holds at most: the first, the last, and some evenly between."""


def bases_sheet(
    network: Trained, dataset: SegmentationDataset, scenes: Sequence[Scene], answers: Answers, count: int
) -> Sheet | str:
    """One row for each image, one column for each base after the last stage; or why there is nothing to show.

    Args:
        network: with the operator.
        dataset: where the scenes come from.
        scenes: one row each.
        answers: of the network to every scene.
        count: bases that are shown, the most telling ones.
    """
    shares = [shares_of(network, answers, scene, -1) for scene in scenes]
    kept = [found for found in shares if found is not None]
    if len(kept) < len(shares):
        return f"{network.title} has no bases to show."
    chosen = telling_bases(kept, count)
    names = _names(network, dataset, len(kept[0]), chosen)
    figure = _draw(names, scenes, kept, chosen, [f"image {scene.index}" for scene in scenes])
    caption = f"Share of each pixel that {len(chosen)} of {len(kept[0])} bases of {network.title} hold in the end."
    return Sheet(f"bases-{network.name}-{dataset.name}", caption, figure)


def stages_sheet(
    network: Trained, dataset: SegmentationDataset, scenes: Sequence[Scene], answers: Answers, count: int
) -> Sheet | str:
    """One row for each stage of the first image, for the bases of `bases_sheet`; or why there is nothing to show."""
    scene = scenes[0]
    stages = _stages(network, answers, scene)
    if len(stages) < 2:
        return f"{network.title} has no bases to show." if not stages else f"{network.title} has one stage."
    last = [shares_of(network, answers, each, -1) for each in scenes]
    chosen = telling_bases([found for found in last if found is not None], count)
    names = _names(network, dataset, len(stages[-1]), chosen)
    places = sorted({round(place) for place in np.linspace(0, len(stages) - 1, min(len(stages), ROWS))})
    labels = [f"stage {place + 1}" for place in places]
    figure = _draw(names, [scene] * len(places), [stages[place] for place in places], chosen, labels)
    caption = f"Share of each pixel of image {scene.index} that bases of {network.title} hold, stage by stage."
    return Sheet(f"stages-{network.name}-{dataset.name}", caption, figure)


def telling_bases(shares: Sequence[NDArray[Any]], count: int) -> list[int]:
    """The `count` bases that say most about the images, in the order of their numbers.

    One base after the other is chosen so that the chosen ones leave as little of the shares unexplained as they can:
    two bases that hold the same pixels are told once, and one that holds all pixels alike is not told at all.

    Args:
        shares: for each image `(K, h, w)`.
        count: bases to choose.
    """
    table = np.concatenate([found.reshape(len(found), -1) for found in shares], axis=1).astype(float)  # (K, pixels)
    left = table - table.mean(axis=1, keepdims=True)
    chosen: list[int] = []
    for _ in range(min(count, len(table))):
        alike = left @ left.T  # (K, K)
        lengths = np.diag(alike)
        explained = np.where(lengths > 1e-12, (alike**2).sum(axis=1) / np.maximum(lengths, 1e-12), -1.0)
        explained[chosen] = -2.0
        best = int(explained.argmax())
        chosen.append(best)
        if lengths[best] > 1e-12:
            direction = left[best] / np.sqrt(lengths[best])
            left = left - np.outer(left @ direction, direction)
    return sorted(chosen)


def shares_of(network: Trained, answers: Answers, scene: Scene, stage: int) -> NDArray[Any] | None:
    """Shares `(K, h, w)` after a stage; none if the operator has no bases.

    Raises:
        IndexError: if there is no such stage.
    """
    operator = slot(network.model)
    features = answers[network.title, scene.index].features
    if operator is None or features is None:
        return None
    try:
        shares = operator.responsibilities(features, stage)
    except NotImplementedError:
        return None
    return np.asarray(shares[0].detach().float().cpu().numpy())


def _stages(network: Trained, answers: Answers, scene: Scene) -> list[NDArray[Any]]:
    """Shares after each stage; empty if the operator has no bases."""
    found: list[NDArray[Any]] = []
    while True:
        try:
            shares = shares_of(network, answers, scene, len(found))
        except IndexError:
            return found
        if shares is None:
            return found
        found.append(shares)


def _names(network: Trained, dataset: SegmentationDataset, bases: int, chosen: Sequence[int]) -> list[str]:
    """Names of bases: those of the classes, where the operator is told how many there are and has one for each."""
    told = "num_classes" in inspect.signature(type(slot(network.model))).parameters
    if told and bases == len(dataset.classes):
        return [dataset.classes[base] for base in chosen]
    return [f"base {base + 1}" for base in chosen]


def _draw(
    names: Sequence[str],
    scenes: Sequence[Scene],
    shares: Sequence[NDArray[Any]],
    chosen: Sequence[int],
    labels: Sequence[str],
) -> Figure:
    aspect = max(scene.size[0] / scene.size[1] for scene in scenes)
    board = Board(["Input", *names], labels, aspect=aspect, bars=True)
    largest = max(float(found[list(chosen)].max()) for found in shares)
    for panels, scene, found in zip(board.panels, scenes, shares, strict=True):
        show(panels[0], scene.picture)
        for axes, base in zip(panels[1:], chosen, strict=True):
            show(axes, overlay(scene.picture, found[base], largest=largest))
    ends = ("0", f"{largest / 2:.2g}", f"{largest:.2g}")
    board.scales([(heat_colours(signed=False), "Share of the pixel", ends)])
    return board.figure
