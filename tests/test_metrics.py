from __future__ import annotations

import dataclasses

import pytest
import torch

from attnbench.measuring.memory import peak_bytes
from attnbench.metrics import IGNORE_INDEX, ConfusionMatrix, Scores, scores_of

# class 0: found in part; 1: never predicted; 2: predicted and not there; 3: neither there nor predicted
TARGET = torch.tensor([[[0, 0, 0, 1], [1, 0, 255, 255]]])
LABELS = torch.tensor([[[0, 0, 2, 0], [0, 0, 2, 3]]])
COUNTS = [[3, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
SCORES = Scores(miou=(3 / 6 + 0 + 0) / 3, macc=(3 / 4 + 0) / 2, aacc=3 / 6, iou=(3 / 6, 0.0, 0.0, None))


def matrix_of(*batches, num_classes=4):
    matrix = ConfusionMatrix(num_classes)
    for predictions, target in batches:
        matrix.update(predictions, target)
    return matrix


def test_counts_and_scores_of_a_matrix_made_by_hand():
    matrix = matrix_of((LABELS, TARGET))
    assert matrix.counts.tolist() == COUNTS
    assert matrix.scores() == SCORES
    assert scores_of(torch.tensor(COUNTS)) == SCORES


def test_logits_and_labels_count_alike():
    logits = torch.nn.functional.one_hot(LABELS, 4).permute(0, 3, 1, 2).float() - 0.5
    assert logits.shape == (1, 4, 2, 4)
    assert matrix_of((logits, TARGET)).counts.tolist() == COUNTS


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_targets_of_every_integer_type_count_alike(dtype):
    assert matrix_of((LABELS, TARGET.to(dtype))).counts.tolist() == COUNTS


def test_batches_add_up():
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, 5, (6, 7, 3), generator=generator)
    target = torch.randint(0, 5, (6, 7, 3), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORE_INDEX
    expected = [[int(((target == t) & (predictions == p)).sum()) for p in range(5)] for t in range(5)]
    whole = matrix_of((predictions, target), num_classes=5)
    parts = matrix_of(*zip(predictions.split(4), target.split(4), strict=True), num_classes=5)
    assert whole.counts.tolist() == parts.counts.tolist() == expected
    assert whole.scores() == parts.scores()


@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_predictions_on_ignored_pixels_do_not_matter(label):
    predictions = torch.where(TARGET == IGNORE_INDEX, label, LABELS)
    assert matrix_of((predictions, TARGET)).scores() == SCORES


def test_a_perfect_prediction_scores_one():
    target = torch.tensor([[0, 2, IGNORE_INDEX]])
    perfect = matrix_of((torch.tensor([[0, 2, 0]]), target)).scores()
    assert perfect == Scores(miou=1.0, macc=1.0, aacc=1.0, iou=(1.0, None, 1.0, None))


def test_one_wrong_pixel_among_billions_counts():
    wrong = scores_of(torch.tensor([[2**40, 1], [0, 2**40]]))
    assert 1 - wrong.aacc == pytest.approx(2**-41, rel=1e-3)
    assert wrong.iou[0] == 2**40 / (2**40 + 1)


def test_expected_counts_need_not_be_whole():
    assert scores_of(torch.tensor([[1.5, 0.5], [0.5, 1.5]])).miou == pytest.approx(1.5 / 2.5)


def test_scores_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCORES.miou = 1.0


@pytest.mark.parametrize(
    ("predictions", "target", "words"),
    [
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2), r"expected logits \(B, 4, H, W\).*got \(1, 3, 2, 2\)"),
        (torch.zeros(1, 4, 2, 3), torch.zeros(1, 2, 2), r"target's shape \(1, 2, 2\), got \(1, 4, 2, 3\)"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 3, 2), r"target's shape \(1, 3, 2\), got \(1, 2, 3\)"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 4), "expected labels 0..3.*got targets up to 4"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), -1), "expected labels 0..3"),
        (torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2), "predictions up to 255"),
        (torch.full((1, 2, 2), -1), torch.zeros(1, 2, 2), "expected labels 0..3"),
    ],
)
def test_what_does_not_fit_is_an_error(predictions, target, words):
    matrix = ConfusionMatrix(4)
    with pytest.raises(ValueError, match=f"ConfusionMatrix: .*{words}"):
        matrix.update(predictions, target)
    assert not matrix.counts.any()


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match="ConfusionMatrix: expected num_classes >= 2, got 1"):
        ConfusionMatrix(1)


@pytest.mark.parametrize("batches", [(), ((torch.zeros(1, 2, 2), torch.full((1, 2, 2), IGNORE_INDEX)),)])
def test_scores_without_a_labelled_pixel_are_an_error(batches):
    with pytest.raises(ValueError, match="scores: expected at least one labelled pixel, got none"):
        matrix_of(*batches).scores()


def test_many_classes_take_no_more_memory_where_deterministic_algorithms_are_asked_for():
    # what scores in the midst of a training: a mesh of pixels and cells would take 150 * 150 * 8 bytes a pixel
    pixels, matrix = 32 * 32, ConfusionMatrix(150)
    labels = torch.arange(pixels).view(1, 32, 32) % 150
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        peak = peak_bytes(lambda: matrix.update(labels, labels), torch.device("cpu"))
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert peak < 150 * 150 * 8 * 4 + 100 * pixels
    assert int(matrix.counts.diag().sum()) == int(matrix.counts.sum()) > 0
