"""The losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from attnbench.training import (
    PixelWeights,
    batch_count,
    pixel_loss,
    pixel_loss_sum,
    presence_loss,
    total_loss,
)
from attnbench.training.losses import hard_pixels
from operators.interface import Auxiliary


def test_pixel_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator)
    # one image has nearly no label: the mean over the batch is not the mean of the images' means
    target[0, 1:] = 255
    total = count = 0
    for image, row, column in (target != 255).nonzero().tolist():
        pixel = logits[image, :, row, column]
        total -= math.log(math.exp(pixel[target[image, row, column]]) / sum(math.exp(value) for value in pixel))
        count += 1
    assert count == 25
    assert float(pixel_loss(logits, target)) == pytest.approx(total / count, rel=1e-5)


def test_pixel_loss_resizes_logits_to_the_target():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.randint(0, 3, (2, 17, 20), generator=torch.Generator().manual_seed(1))
    resized = nn.functional.interpolate(logits, size=(17, 20), mode="bilinear", align_corners=False)
    losses = [pixel_loss(logits, target), pixel_loss(resized, target)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses), rtol=1e-5, atol=1e-6)


def test_pixel_loss_without_labels_is_zero_and_pulls_nowhere():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = pixel_loss(logits, torch.full((2, 4, 5), 255))
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_ignored_pixels_pull_nowhere():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    pixel_loss(logits, torch.tensor([[[0, 255], [255, 2]]])).backward()
    assert logits.grad.abs().sum(1).gt(0).tolist() == [[[True, False], [False, True]]]


def test_presence_loss_is_its_formula():
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.0, 4.0, -0.5]], dtype=torch.float64)
    target = torch.tensor([[[0, 0], [255, 2]], [[255, 255], [255, 255]]])
    present = [[1, 0, 1], [0, 0, 0]]
    losses = [
        -math.log(1 / (1 + math.exp(-value if there else value)))
        for row, truths in zip(logits.tolist(), present, strict=True)
        for value, there in zip(row, truths, strict=True)
    ]
    assert float(presence_loss(logits, target)) == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_total_loss_weighs_each_extra_loss_by_its_kind():
    generator = torch.Generator().manual_seed(0)
    logits, regions = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    classes = torch.randn(2, 3, generator=generator)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator)
    extra = {"regions": (regions, Auxiliary("pixel", 0.7)), "classes": (classes, Auxiliary("presence", 0.2))}
    expected = pixel_loss(logits, target) + 0.7 * pixel_loss(regions, target) + 0.2 * presence_loss(classes, target)
    assert float(total_loss(logits, extra, target)) == pytest.approx(float(expected), rel=1e-6)
    assert torch.equal(total_loss(logits, {}, target), pixel_loss(logits, target))


def batch(classes=4, images=3, size=(6, 7), labelled=0.8):
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(images, classes, *size, generator=generator)
    target = torch.randint(0, classes, (images, *size), generator=generator)
    return logits, target.where(torch.rand(target.shape, generator=generator) < labelled, 255)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 0), (0.3, 0), (0.05, 4), (0.3, 12), (0.3, 10_000)])
def test_hard_pixels_are_those_of_a_literal_loop(threshold, min_kept):
    logits, target = batch()
    probabilities = {}
    for image, row, column in (target != 255).nonzero().tolist():
        values = [math.exp(value) for value in logits[image, :, row, column].double().tolist()]
        probabilities[image, row, column] = values[target[image, row, column]] / sum(values)
    ordered = sorted(probabilities.values())
    limit = max(threshold, ordered[min(min_kept * len(target), len(ordered) - 1)])
    expected = {place for place, value in probabilities.items() if value < limit * (1 - 1e-6)}
    kept = hard_pixels(logits, target, threshold, min_kept)
    assert {tuple(place) for place in kept.nonzero().tolist()} == expected
    assert len(expected) >= min(min_kept * len(target), len(ordered) - 1)
    assert 0 < len(expected) < len(ordered)


def test_ohem_leaves_easy_pixels_out_of_the_sum_and_not_of_the_count():
    logits, target = batch()
    logits.requires_grad_()
    total, count = pixel_loss_sum(logits, target, PixelWeights(ohem_threshold=0.3, ohem_min_kept=2))
    losses = nn.functional.cross_entropy(logits, target, ignore_index=255, reduction="none")
    kept = hard_pixels(logits, target, 0.3, 2)
    torch.testing.assert_close(total, losses[kept].sum())
    assert int(count) == int((target != 255).sum()) > int(kept.sum())
    total.backward()
    assert torch.equal(logits.grad.abs().sum(1) > 0, kept)


def test_ohem_without_labels_is_zero():
    logits, target = batch(labelled=0.0)
    assert pixel_loss(logits, target, PixelWeights(ohem_threshold=0.7)) == 0


def test_class_weights_are_those_of_torch():
    logits, target = batch()
    classes = torch.tensor([0.1, 2.0, 0.0, 0.7])
    expected = nn.functional.cross_entropy(logits, target, classes, ignore_index=255)
    torch.testing.assert_close(pixel_loss(logits, target, PixelWeights(classes)), expected)


def test_classes_of_small_weight_alone_are_averaged_too():
    logits, target = batch()
    target = torch.where(torch.arange(target.numel()).view_as(target) == 5, 0, 255)
    loss = pixel_loss(logits, target, PixelWeights(torch.full((4,), 0.01)))
    torch.testing.assert_close(loss, pixel_loss(logits, target))


@pytest.mark.parametrize("classes", [None, torch.tensor([0.1, 2.0, 0.3, 0.7])])
def test_losses_of_parts_add_up_to_the_loss_of_the_whole(classes):
    logits, target = batch()
    target[0, 1:] = 255
    presence = torch.randn(3, 4, generator=torch.Generator().manual_seed(4))
    weights = PixelWeights(classes)
    kinds = {"a": Auxiliary("pixel", 0.4), "b": Auxiliary("presence", 0.2)}

    def loss(part, whole=None):
        extra = {"a": (2 * logits[part], kinds["a"]), "b": (presence[part], kinds["b"])}
        return total_loss(logits[part], extra, target[part], weights, whole)

    parts = [slice(0, 1), slice(1, 3)]
    whole = batch_count(target[parts[0]], weights) + batch_count(target[parts[1]], weights)
    torch.testing.assert_close(loss(parts[0], whole) + loss(parts[1], whole), loss(slice(None)))
