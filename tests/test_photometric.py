"""Photometric distortion against colorsys, pixel by pixel, and its place among the draws of augmentation."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch

from attnbench.config import Recipe
from attnbench.data.loading import training_batches
from attnbench.data.photometric import BRIGHTNESS, FACTORS, HUE, Distortion, draw_distortion
from attnbench.data.synthetic import ContextDataset
from attnbench.data.transforms import Augmentation

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255), "seed": 3}
GREYS = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (7, 7, 9)]


def image():
    colours = torch.randint(0, 256, (3, 5, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.cat([colours, torch.tensor(GREYS, dtype=torch.uint8).t().unsqueeze(1)], dim=1)  # (3, 6, 8)


def oracle(pixel, change):
    """The definition, one pixel and one step at a time."""

    def contrasted(values):
        return [min(max(change.contrast * value, 0.0), 255.0) for value in values]

    values = [min(max(value + change.brightness, 0.0), 255.0) for value in pixel]
    if change.contrast_first:
        values = contrasted(values)
    hue, saturation, value = colorsys.rgb_to_hsv(*(value / 255 for value in values))
    saturation = min(max(change.saturation * saturation, 0.0), 1.0)
    values = [255 * part for part in colorsys.hsv_to_rgb((hue + change.hue) % 1.0, saturation, value)]
    return values if change.contrast_first else contrasted(values)


CHANGES = [
    Distortion(brightness=31.5),
    Distortion(brightness=-20.25),
    Distortion(contrast=1.45),
    Distortion(contrast=0.55, contrast_first=False),
    Distortion(saturation=0.5),
    Distortion(saturation=1.5),
    Distortion(hue=0.1),
    Distortion(hue=-0.1),
    Distortion(brightness=30.0, contrast=1.4, saturation=1.3, hue=0.07, contrast_first=True),
    Distortion(brightness=30.0, contrast=1.4, saturation=1.3, hue=0.07, contrast_first=False),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_distortion_is_its_definition(change):
    given = image()
    expected = [oracle(pixel.tolist(), change) for pixel in given.flatten(1).t()]
    result = change(given)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.tensor(expected).t().view(given.shape), atol=2e-3, rtol=0)
    assert not torch.equal(result, given.float())


def test_contrast_first_and_last_differ():
    first, last = (change(image()) for change in CHANGES[-2:])
    assert (first - last).abs().max() > 1


def test_nothing_changed_is_the_image_itself():
    assert torch.equal(Distortion()(image()), image().float())


def test_draws_fill_their_ranges_and_half_happens():
    drawn = [draw_distortion(np.random.default_rng((1, index))) for index in range(2000)]
    for name, neutral, low, high in (
        ("brightness", 0.0, -BRIGHTNESS, BRIGHTNESS),
        ("contrast", 1.0, *FACTORS),
        ("saturation", 1.0, *FACTORS),
        ("hue", 0.0, -HUE, HUE),
    ):
        values = np.array([getattr(change, name) for change in drawn])
        changed = values[values != neutral]
        assert 0.45 < len(changed) / len(drawn) < 0.55, name
        assert low <= changed.min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < changed.max() <= high, name
        assert abs(changed.mean() - (low + high) / 2) < 0.03 * (high - low), name
    assert 0.45 < np.mean([change.contrast_first for change in drawn]) < 0.55
    together = np.mean([change.brightness != 0 and change.hue != 0 for change in drawn])
    assert 0.21 < together < 0.29


def test_distortion_leaves_the_other_draws_and_the_target_alone():
    sample, target = image(), torch.arange(48).view(6, 8)
    settings = {"crop_size": (4, 5), "scale_range": (0.5, 2.0)}
    plain, distorted = (Augmentation(**PLAIN, **settings, photometric=flag) for flag in (False, True))
    changed = 0
    for slot in range(20):
        one, other = (made(sample, target, iteration=2, slot=slot) for made in (plain, distorted))
        assert torch.equal(one[1], other[1])
        draw = np.random.default_rng((3, 2, slot))
        draw.random(4)
        expected = draw_distortion(draw)
        inside = other[1] != 255
        torch.testing.assert_close(expected(one[0])[:, inside], other[0][:, inside], atol=5e-3, rtol=0)
        # what pads an image is the mean colour still
        assert not other[0][:, ~inside].any()
        changed += not torch.equal(one[0], other[0])
    assert changed > 15


def test_seed_decides_and_workers_do_not():
    recipe = Recipe(
        iterations=3,
        batch_size=2,
        crop_size=(32, 32),
        photometric=True,
        category_max_ratio=0.75,
        base_scale=(80, 60),
        scale_range=(0.5, 2.0),
    )
    dataset = ContextDataset("train")
    runs = [list(training_batches(dataset, recipe, seed=1, num_workers=workers)) for workers in (0, 0, 2)]
    other = list(training_batches(dataset, recipe, seed=2))
    plain = list(training_batches(dataset, replace(recipe, photometric=False), seed=1))
    for first, *again in zip(*runs, strict=True):
        assert all(torch.equal(first[0], images) and torch.equal(first[1], targets) for images, targets in again)
    assert not torch.equal(runs[0][0][0], other[0][0])
    assert torch.equal(runs[0][0][1], plain[0][1]) and not torch.equal(runs[0][0][0], plain[0][0])
