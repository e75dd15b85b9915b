"""Where each operator looks from a marked pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from attnbench.data.base import SegmentationDataset
from attnbench.pictures.board import Board, Sheet, frame, mark, show, tell
from attnbench.pictures.colours import heat_colours, overlay
from attnbench.pictures.networks import Trained, slot
from attnbench.pictures.predictions import Answers
from attnbench.pictures.scenes import Pixel, Scene, place_on_map

NO_WEIGHTS = "no weights\nover positions"
_HEADS = 8
"""Heads that a sheet holds at most."""


def attention_sheet(
    networks: Sequence[Trained], dataset: SegmentationDataset, scenes: Sequence[Scene], answers: Answers
) -> Sheet:
    """One row for each marked pixel: the input, and the weights with which each operator reads there.

    Heads are averaged. An operator without weights over positions has a panel that says so.

    Args:
        networks: one column each.
        dataset: where the scenes come from.
        scenes: one row for each of their pixels.
        answers: of every network to every scene.
    """
    asked = [(scene, pixel) for scene in scenes for pixel in scene.pixels]
    labels = [f"image {scene.index}\npixel\n{row}, {column}" for scene, (row, column) in asked]
    headings = ["Input", *(f"{network.title}\nmIoU {100 * network.miou:.1f}" for network in networks)]
    board = Board(headings, labels, aspect=_aspect(scenes), notes=(1,), bars=True)
    signs: set[bool] = set()
    for panels, (scene, pixel) in zip(board.panels, asked, strict=True):
        _show_input(panels[0], networks, dataset, scene, pixel)
        for axes, network in zip(panels[1:], networks, strict=True):
            heads = weights_of(network, answers, scene, pixel)
            if heads is None:
                tell(axes, NO_WEIGHTS)
            else:
                signs.add(_show_weights(axes, scene, pixel, heads.mean(0)))
                _show_cue(axes, dataset, scene, pixel)
    _scales(board, signs)
    return Sheet(
        f"attention-{dataset.name}",
        "Weights with which each operator reads the feature map at the marked pixel (cross), over the input. Each "
        "panel has its own scale; under it, how many times the mean weight its largest is. Where they are known: the "
        "cue that decides the pixel's class (solid box), and what one position of the backbone sees (dashed box).",
        board.figure,
    )


def heads_sheet(
    network: Trained, dataset: SegmentationDataset, scenes: Sequence[Scene], answers: Answers
) -> Sheet | str:
    """One row for each marked pixel, one column for each head of one operator; or why there is nothing to show."""
    asked = [(scene, pixel) for scene in scenes for pixel in scene.pixels]
    found = [weights_of(network, answers, scene, pixel) for scene, pixel in asked]
    first = found[0]
    if first is None:
        return f"{network.title} has no weights over positions."
    if len(first) == 1:
        return f"{network.title} has one head."
    shown = min(len(first), _HEADS)
    labels = [f"image {scene.index}\npixel\n{row}, {column}" for scene, (row, column) in asked]
    headings = ["Input", *(f"head {head + 1} of {len(first)}" for head in range(shown))]
    board = Board(headings, labels, aspect=_aspect(scenes), notes=(1,), bars=True)
    signs: set[bool] = set()
    for panels, (scene, pixel), heads in zip(board.panels, asked, found, strict=True):
        _show_input(panels[0], [network], dataset, scene, pixel)
        for axes, head in zip(panels[1:], heads if heads is not None else (), strict=False):
            signs.add(_show_weights(axes, scene, pixel, head))
            _show_cue(axes, dataset, scene, pixel)
    _scales(board, signs)
    return Sheet(
        f"heads-{network.name}-{dataset.name}",
        f"Weights of {shown} of {len(first)} heads of {network.title} at the marked pixel, each on its own scale.",
        board.figure,
    )


def weights_of(network: Trained, answers: Answers, scene: Scene, pixel: Pixel) -> NDArray[Any] | None:
    """Weights `(heads, h, w)` with which the operator of a network reads at a pixel; none if it has none."""
    operator = slot(network.model)
    features = answers[network.title, scene.index].features
    if operator is None or features is None:
        return None
    height, width = features.shape[-2:]
    try:
        weights = operator.attention(features, place_on_map(pixel, scene.size, (height, width)))
    except NotImplementedError:
        return None
    return np.asarray(weights[0].detach().float().cpu().numpy())


def _aspect(scenes: Sequence[Scene]) -> float:
    return max(scene.size[0] / scene.size[1] for scene in scenes)


def _show_input(
    axes: Axes, networks: Sequence[Trained], dataset: SegmentationDataset, scene: Scene, pixel: Pixel
) -> None:
    show(axes, scene.picture)
    known = _show_cue(axes, dataset, scene, pixel)
    backbone = getattr(networks[0].model, "backbone", None)
    field = getattr(backbone, "receptive_field", None)
    if known and backbone is not None and field is not None:
        stride = backbone.output_stride
        height, width = scene.size
        row, column = place_on_map(pixel, scene.size, (-(-height // stride), -(-width // stride)))
        frame(axes, row * stride - field // 2, column * stride - field // 2, field, field, dashed=True)
    mark(axes, pixel)


def _show_cue(axes: Axes, dataset: SegmentationDataset, scene: Scene, pixel: Pixel) -> bool:
    """Draws a box around what decides the pixel's class; returns whether the dataset knows it."""
    cue_of = getattr(dataset, "cue", None)
    cue = None if cue_of is None else cue_of(scene.index, pixel)
    if cue is None:
        return False
    top, left, side = cue
    frame(axes, top - 1, left - 1, side + 2, side + 2)
    return True


def _show_weights(axes: Axes, scene: Scene, pixel: Pixel, weights: NDArray[Any]) -> bool:
    """Draws weights `(h, w)`; returns whether some are negative."""
    largest = float(np.abs(weights).max())
    signed = bool((weights < -1e-3 * largest).any())
    mean = float(np.abs(weights).mean())
    times = largest / mean if mean > 0 else 0.0
    note = f"peak {times:.{0 if times >= 10 else 1}f}× mean" if times else "all zero"
    show(axes, overlay(scene.picture, weights, largest=largest, signed=signed), note)
    mark(axes, pixel)
    return signed


def _scales(board: Board, signs: set[bool]) -> None:
    bars: list[tuple[Colormap, str, tuple[str, ...]]] = []
    if False in signs:
        bars.append((heat_colours(signed=False), "Weight", ("0", "peak")))
    if True in signs:
        bars.append((heat_colours(signed=True), "Weight, where some are negative", ("−peak", "0", "peak")))
    board.scales(bars)
