from __future__ import annotations

import colorsys
from itertools import pairwise

import numpy as np
import pytest
import torch

from attnbench.data import build_dataset, synthetic
from attnbench.data.base import SegmentationDataset
from attnbench.data.synthetic import SIZE, ContextDataset
from attnbench.errors import UsageError
from attnbench.metrics import ConfusionMatrix

CELL = 12
DISC, OCTAGON = 1, 3
GREY, DARK, LIGHT = 0xB2B2B2, 0x000000, 0xFFFFFF
SCENES = 128


@pytest.fixture(scope="module")
def val():
    return ContextDataset("val")


@pytest.fixture
def short(monkeypatch):
    """Makes both splits four images long."""
    for split in ("train", "val"):
        monkeypatch.setitem(synthetic._SPLITS, split, 4)


def scene_of(image, target):
    """Cues and shapes as they look: colour -> (whether light, covered), and a list of (colour, labels, covered)."""
    cues, shapes = {}, []
    packed = image.int().mul(torch.tensor([1 << 16, 1 << 8, 1]).view(3, 1, 1)).sum(0).numpy()
    for top in range(0, SIZE, CELL):
        for left in range(0, SIZE, CELL):
            covered = np.zeros((SIZE, SIZE), bool)
            covered[top : top + CELL, left : left + CELL] = target.numpy()[top : top + CELL, left : left + CELL] > 0
            if not covered.any():
                continue
            colours = set(np.unique(packed[covered]).tolist())
            centre = colours & {DARK, LIGHT}
            # the key is all centre, and belongs to the grey discs
            (colour,) = colours - centre or {GREY}
            if centre:
                assert colour not in cues
                cues[colour] = (centre == {LIGHT}, covered)
            # the cue's own pixels carry the class that it announces
            shapes.append((colour, set(target.numpy()[covered].tolist()), covered))
    return cues, shapes


@pytest.fixture(scope="module")
def scenes(val):
    return [scene_of(*val[index]) for index in range(SCENES)]


def test_items_and_description(val):
    assert isinstance(val, SegmentationDataset)
    assert (val.name, len(val), len(val.classes), len(set(val.palette))) == ("context", 256, 5, 5)
    for index in range(len(val)):
        image, target = val[index]
        assert image.shape == (3, SIZE, SIZE) and image.dtype == torch.uint8 and image.is_contiguous()
        assert target.shape == (SIZE, SIZE) and target.dtype == torch.uint8
        assert int(target.max()) < len(val.classes)


def test_an_image_depends_on_split_and_index_alone(val, short):
    np.random.seed(1)
    torch.manual_seed(1)
    again, train = ContextDataset("val"), ContextDataset("train")
    assert len(again) == len(train) == 4
    for index in range(4):
        for kept, drawn in zip(val[index], again[index], strict=True):
            assert torch.equal(kept, drawn)
        assert not torch.equal(val[index][0], train[index][0])
        assert not torch.equal(val[index][1], train[index][1])


def test_every_image_differs(val):
    assert len({val[index][0].numpy().tobytes() for index in range(len(val))}) == len(val)


def test_cells_hold_the_shapes_that_the_description_lists(scenes):
    for cues, shapes in scenes:
        hues = sorted(colorsys.rgb_to_hsv(*colour.to_bytes(3))[0] for colour in cues if colour != GREY)
        assert GREY in cues and len(hues) == 2
        # opposite on the circle, up to the jitter of 0.08 to either side
        assert 0.5 - 0.165 < hues[1] - hues[0] < 0.5 + 0.165
        numbers = {colour: sum(shape[0] == colour for shape in shapes) - 1 for colour in cues}
        assert numbers.pop(GREY) == 4 and list(numbers.values()) == [2, 2]


def test_labels_follow_the_cue_of_the_same_colour(scenes):
    for cues, shapes in scenes:
        for colour, labels, _ in shapes:
            light, _ = cues[colour]
            assert labels == {(DISC if colour == GREY else OCTAGON) + light}


def test_either_answer_is_about_as_frequent_and_the_cues_are_independent(scenes):
    answers = np.array([[light for _, (light, _) in sorted(cues.items())] for cues, _ in scenes])
    assert np.all(abs(answers.mean(0) - 0.5) < 0.15)
    assert np.all(abs(np.corrcoef(answers.T)[np.triu_indices(3, 1)]) < 0.3)


@pytest.mark.parametrize("radius", [0, 7, 31])
def test_decided_pixels_are_those_with_their_cue_in_reach(val, scenes, radius):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for index, (cues, shapes) in enumerate(scenes[:5]):
        expected = val[index][1].numpy() == 0
        for colour, _, covered in shapes:
            reach = np.zeros((SIZE, SIZE), bool)
            for row, column in np.argwhere(cues[colour][1]):
                reach |= np.maximum(abs(rows - row), abs(columns - column)) <= radius
            expected |= covered & reach
        assert np.array_equal(val.decided(index, radius), expected)


def guessed_miou(dataset, radius, share, random):
    """mIoU of a model that is right within reach of the cue, and elsewhere says `light` with probability `share`."""
    matrix = ConfusionMatrix(len(dataset.classes))
    for index in range(len(dataset)):
        target = dataset[index][1].numpy()
        light = random.random(target.shape) < share
        guess = np.where(target >= OCTAGON, OCTAGON, DISC) + light
        labels = np.where(dataset.decided(index, radius), target, guess)
        matrix.update(torch.from_numpy(labels), torch.from_numpy(target))
    return matrix.scores().miou


@pytest.mark.parametrize("radius", [0, 7, 20])
def test_local_ceiling_is_what_even_guesses_score(val, radius):
    simulated = guessed_miou(val, radius, 0.5, np.random.default_rng(radius))
    assert val.local_ceiling(radius) == pytest.approx(simulated, abs=0.002)


def test_local_ceiling_is_what_even_guesses_score_where_answers_are_not_even(short):
    few, random = ContextDataset("val"), np.random.default_rng(0)
    counts = np.bincount(torch.cat([few[index][1].flatten() for index in range(4)]), minlength=5)
    assert counts[3] > 1.5 * counts[4] or counts[4] > 1.5 * counts[3]
    simulated = np.mean([guessed_miou(few, 7, 0.5, random) for _ in range(40)])
    assert few.local_ceiling(7) == pytest.approx(simulated, abs=0.002)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_uneven_guesses_stay_below_the_local_ceiling(val, share):
    assert guessed_miou(val, 7, share, np.random.default_rng(0)) < val.local_ceiling(7) - 0.001


def test_local_ceiling_rises_with_the_radius_to_one(val):
    ceilings = [val.local_ceiling(radius) for radius in (0, 2, 7, 15, 23, 31, 47)]
    assert all(low < high for low, high in pairwise(ceilings))
    # background and four classes of which next to nothing but the cue itself is decided
    assert 0.2 + 0.8 / 3 < ceilings[0] < 0.6
    assert ceilings[-1] == 1.0


@pytest.mark.parametrize(
    ("split", "words"), [("vall", "unknown split 'vall'; did you mean 'val'"), ("x", "known: train, val")]
)
def test_an_unknown_split_is_an_error(split, words):
    with pytest.raises(UsageError, match=f"dataset 'context': .*{words}"):
        ContextDataset(split)


def test_built_by_name(short):
    assert isinstance(build_dataset("context", split="train"), ContextDataset)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"root": "somewhere"}, "dataset 'context': expected no folder.*got 'somewhere'"),
        ({"image_size": (8, 8)}, r"dataset 'context': expected no image_size.*got \(8, 8\)"),
        ({"split": "trian"}, "unknown split 'trian'; did you mean 'train'"),
    ],
)
def test_what_a_drawn_task_has_no_use_for_is_an_error(changes, words):
    with pytest.raises(UsageError, match=words):
        build_dataset(**{"name": "context", "split": "val", **changes})
