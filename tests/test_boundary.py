"""The boundary F-score against its definition in literal loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from attnbench.evaluation import BoundaryScore

CLASSES = 3


def boundary_oracle(labels, target, label):
    height, width = target.shape
    found = []
    for row in range(height):
        for column in range(width):
            if labels[row, column] != label or target[row, column] == 255:
                continue
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                y, x = row + down, column + right
                inside = 0 <= y < height and 0 <= x < width
                if inside and target[y, x] != 255 and labels[y, x] != label:
                    found.append((row, column))
                    break
    return found


def share_oracle(points, others, tolerance):
    near = [any(math.dist(point, other) <= tolerance for other in others) for point in points]
    return sum(near) / len(near)


def score_oracle(pairs):
    collected = {label: [] for label in range(CLASSES)}
    for labels, target in pairs:
        tolerance = max(1.0, 0.0075 * math.sqrt(target.shape[0] ** 2 + target.shape[1] ** 2))
        for label in range(CLASSES):
            wanted, found = boundary_oracle(target, target, label), boundary_oracle(labels, target, label)
            if not wanted:
                continue
            precision = share_oracle(found, wanted, tolerance) if found else 0
            recall = share_oracle(wanted, found, tolerance)
            both = precision + recall
            collected[label].append(2 * precision * recall / both if both else 0.0)
    return tuple(sum(values) / len(values) if values else None for values in collected.values())


def measured(pairs):
    score = BoundaryScore(CLASSES)
    for labels, target in pairs:
        score.update(torch.from_numpy(labels)[None], torch.from_numpy(target)[None])
    return score


SMALL = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def pairs(draw):
    size = draw(SMALL)
    labels = draw(arrays.arrays(np.int64, size, elements=st.integers(0, CLASSES - 1)))
    target = draw(arrays.arrays(np.int64, size, elements=st.sampled_from([0, 0, 1, 1, 2, 255])))
    return labels, target


@settings(deadline=None, max_examples=150)
@given(st.lists(pairs(), min_size=1, max_size=3))
def test_the_score_is_that_of_the_loops(found):
    expected = score_oracle(found)
    assert measured(found).of_class() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(120, 160), (170, 90)])
def test_a_tolerance_of_several_pixels(size):
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]]
    target = np.where(columns > 40 + 8 * np.sin(rows / 9), 1, 0) + (rows > 77).astype(int)
    labels = np.roll(target, generator.integers(1, 5, 2), (0, 1))
    target[30:40] = 255
    expected = score_oracle([(labels, target)])
    assert all(0 < value < 1 for value in expected)
    assert measured([(labels, target)]).of_class() == pytest.approx(expected, abs=1e-12)


def halves(size=(300, 400), column=200):
    target = np.zeros(size, dtype=np.int64)
    target[:, column:] = 1
    return target


def test_the_tolerance_is_a_share_of_the_diagonal_and_included():
    # The diagonal of 300x400 is 500, and 0.75 % of it 3.75; of 800x600 it is 7.5.
    for size, reach in (((300, 400), 3), ((600, 800), 7), ((1200, 1600), 15)):
        target = halves(size)
        assert measured([(halves(size, 200 + reach), target)]).of_class() == (1.0, 1.0, None)
        assert measured([(halves(size, 200 + reach + 1), target)]).of_class() == (0.0, 0.0, None)


def test_a_perfect_prediction_scores_one_and_a_missing_class_nothing():
    target = halves()
    assert measured([(target, target)]).of_class() == (1.0, 1.0, None)
    assert measured([(np.zeros_like(target), target)]).of_class() == (0.0, 0.0, None)


def test_a_class_counts_in_the_images_where_the_target_has_its_boundary():
    target, without = halves(), np.zeros((300, 400), dtype=np.int64)
    score = measured([(target, target), (target, without)])
    assert score.of_class() == (1.0, 1.0, None)
    assert score.images.tolist() == [1, 1, 0]
    assert score.mean() == 1.0
    assert measured([(target, without)]).of_class() == (None, None, None)
    assert measured([(target, without)]).mean() is None


def test_ignored_pixels_and_the_edge_of_the_image_are_no_boundary():
    target = halves()
    ringed = target.copy()
    ringed[:, 190:210] = 255
    assert measured([(target, ringed)]).of_class() == (None, None, None)


def test_images_of_one_batch_are_scored_alone():
    target, shifted = halves(), halves(column=210)
    both = BoundaryScore(CLASSES)
    both.update(torch.from_numpy(np.stack([target, shifted])), torch.from_numpy(np.stack([target, target])))
    assert both.of_class() == (0.5, 0.5, None)


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ValueError, match=r"expected labels and target \(B, H, W\) of one shape, got \(1, 2, 2\)"):
        BoundaryScore(2).update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3))
