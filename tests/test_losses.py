"""The losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from attnbench.training import pixel_loss, presence_loss, total_loss
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
