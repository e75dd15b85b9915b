from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attnbench.data.resizing import resized_window


def image(height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def whole(source, size):
    shrinks = size[0] < source.shape[-2] or size[1] < source.shape[-1]
    return F.interpolate(source[None].double(), size, mode="bilinear", antialias=shrinks)[0].float()


@pytest.mark.parametrize("scale", [0.5, 0.83, 0.99, 1.01, 1.2, 1.5, 1.77, 2.0, 3.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_window_is_what_the_whole_resized_image_has_there(scale, seed):
    source, draw = image(37, 53, seed), np.random.default_rng(seed)
    size = round(37 * scale), round(53 * scale)
    expected = whole(source, size)
    for _ in range(5):
        rows, columns = (slice(start, start + 16) for start in (draw.integers(side) for side in size))
        assert torch.equal(resized_window(source, size, rows, columns), expected[:, rows, columns])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (40, 1), (3, 200)])
def test_sides_of_one_pixel(size):
    source = image(1, 5)
    torch.testing.assert_close(
        resized_window(source, size, slice(0, 500), slice(0, 500)), whole(source, size), rtol=0, atol=1e-4
    )


def test_threads_do_not_matter():
    source = image(180, 240)
    before, results, window = torch.get_num_threads(), [], (slice(5, 150), slice(7, 170))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([resized_window(source, size, *window) for size in ((270, 360), (150, 200))])
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
