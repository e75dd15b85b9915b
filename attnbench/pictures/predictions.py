"""Input, target, prediction of each operator, and where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnbench.data.base import SegmentationDataset
from attnbench.metrics import IGNORE_INDEX
from attnbench.pictures.board import RGB, Board, Sheet, show
from attnbench.pictures.colours import IGNORED, WRONG, coloured, error_map, marked
from attnbench.pictures.networks import Answer, Trained
from attnbench.pictures.scenes import Scene

_NAMED = 24
"""Classes that a legend holds at most: those with the most pixels in what is shown."""

Answers = Mapping[tuple[str, int], Answer]
"""What the network titled `title` says of image `index`."""


def predictions_sheet(
    networks: Sequence[Trained], dataset: SegmentationDataset, scenes: Sequence[Scene], answers: Answers
) -> Sheet:
    """Two rows for each image: what each network predicts, and where that is wrong.

    Args:
        networks: one column each.
        dataset: names and colours of the classes.
        scenes: two rows each.
        answers: of every network to every scene.
    """
    headings = ["Input", "Target", *(f"{network.title}\nmIoU {100 * network.miou:.1f}" for network in networks)]
    labels = [label for scene in scenes for label in (f"image {scene.index}", "errors")]
    legend = _legend(dataset, scenes, answers)
    height = max(scene.size[0] / scene.size[1] for scene in scenes)
    board = Board(headings, labels, aspect=height, notes=(0, 1), legend=legend)
    for number, scene in enumerate(scenes):
        above, below = board.panels[2 * number], board.panels[2 * number + 1]
        target = scene.target.numpy()
        show(above[0], scene.picture)
        show(above[1], coloured(target, dataset.palette))
        _show_reach(below, networks, dataset, scene)
        for column, network in enumerate(networks, start=2):
            answer = answers[network.title, scene.index]
            labels_of = answer.labels.numpy()
            show(above[column], coloured(labels_of, dataset.palette))
            note = "no labelled pixel" if answer.miou is None else f"mIoU {100 * answer.miou:.1f}"
            show(below[column], error_map(scene.picture, target, labels_of), note)
    return Sheet(
        f"predictions-{dataset.name}",
        "Predictions, and below them the pixels that are wrong. Under each operator's name: its mIoU (%) on the "
        "whole split; under each map of errors: that of the image alone. Below the target, where it is known: pixels "
        "whose class is decided by a cue that the backbone alone does not see.",
        board.figure,
    )


def _show_reach(panels: Sequence[Any], networks: Sequence[Trained], dataset: SegmentationDataset, scene: Scene) -> None:
    """Below the target: the pixels that the backbone alone cannot decide, where the dataset knows them."""
    decided = getattr(dataset, "decided", None)
    radius = _radius(networks)
    if decided is not None and radius is not None:
        show(panels[1], marked(scene.picture, ~decided(scene.index, radius)), "cue unseen")
    else:
        panels[1].set_axis_off()


def _radius(networks: Sequence[Trained]) -> int | None:
    fields = {getattr(getattr(network.model, "backbone", None), "receptive_field", None) for network in networks}
    field = fields.pop() if len(fields) == 1 else None
    return None if field is None else int(field) // 2


def _legend(dataset: SegmentationDataset, scenes: Sequence[Scene], answers: Answers) -> list[tuple[str, RGB]]:
    shown = [scene.target.numpy() for scene in scenes] + [answer.labels.numpy() for answer in answers.values()]
    counts = np.zeros(256, int)
    for labels in shown:
        counts += np.bincount(labels.ravel(), minlength=256)
    ignored = counts[IGNORE_INDEX] > 0
    present = [index for index in np.argsort(-counts[: len(dataset.classes)], kind="stable") if counts[index] > 0]
    named = sorted(int(index) for index in present[:_NAMED])
    entries = [(dataset.classes[index], _fractions(dataset.palette[index])) for index in named]
    entries.append(("wrong", _fractions(WRONG)))
    return [*entries, ("does not count (target: white)", _fractions(IGNORED))] if ignored else entries


def _fractions(colour: tuple[int, int, int]) -> RGB:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
