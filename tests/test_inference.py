"""How a network reads images: windows, scales, mirroring, against loops written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attnbench.config import Experiment, Inference, from_mapping
from attnbench.errors import UsageError
from attnbench.evaluation import evaluating, segment
from attnbench.evaluation.inference import spans
from attnbench.ranges import check_ranges


class Uneven(nn.Module):
    """Logits that depend on all that is read at once and on the place in it: no two windows agree on a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        place = torch.arange(height).view(-1, 1) / height + torch.arange(width) / (2 * width)
        return self.mix(images) + images.mean((2, 3), keepdim=True).sum(1, keepdim=True) + place


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Uneven().double().eval()


def images_of(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def windows_of(length, window, stride):
    """Starts by walking on until the end of the image is reached."""
    starts, start = [], 0
    while start + window < length:
        starts.append(start)
        start += stride
    starts.append(max(length - window, 0))
    return [(start, min(start + window, length)) for start in starts]


def slide_oracle(model, images, window, stride):
    batch, _, height, width = images.shape
    total, count = torch.zeros(batch, 4, height, width, dtype=torch.float64), torch.zeros(height, width)
    for top, bottom in windows_of(height, window[0], stride[0]):
        for left, right in windows_of(width, window[1], stride[1]):
            logits = model(images[:, :, top:bottom, left:right]).float()
            for row in range(top, bottom):
                for column in range(left, right):
                    total[:, :, row, column] += logits[:, :, row - top, column - left]
                    count[row, column] += 1
    assert count.min() >= 1
    return total / count


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((13, 17), (6, 6), (4, 4)),
        ((13, 17), (6, 9), (6, 3)),
        ((12, 12), (6, 6), (6, 6)),
        ((5, 17), (8, 8), (5, 5)),
        ((13, 5), (8, 8), (1, 8)),
        ((7, 7), (7, 7), (1, 1)),
        ((1, 9), (4, 4), (3, 3)),
    ],
)
def test_windows_are_averaged_by_count(model, size, window, stride):
    images = images_of(*size)
    with torch.no_grad():
        found = segment(model, images, Inference("slide", crop_size=window, stride=stride))
        assert torch.allclose(found.double(), slide_oracle(model, images, window, stride), atol=1e-5)


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_windows_cover_the_image_and_stay_inside(length, window, data):
    stride = data.draw(st.integers(1, window))
    found = spans(length, window, stride)
    assert [(span.start, span.stop) for span in found] == windows_of(length, window, stride)
    assert {pixel for span in found for pixel in range(span.start, span.stop)} == set(range(length))
    assert {span.stop - span.start for span in found} == {min(window, length)}


def test_an_image_that_fits_the_window_is_read_at_once(model):
    images = images_of(6, 5)
    with torch.no_grad():
        assert torch.equal(segment(model, images, Inference("slide", (8, 8), (4, 4))), model(images))
        assert torch.equal(segment(model, images), model(images))


@pytest.mark.parametrize("windows", [{}, {"mode": "slide", "crop_size": (8, 8), "stride": (5, 5)}])
def test_probabilities_of_scales_and_mirrors_are_averaged_at_image_size(model, windows):
    images = images_of(11, 14)
    inference = Inference(**windows, scales=(0.5, 1.0, 1.75), flip=True)
    wanted = torch.zeros(2, 4, 11, 14, dtype=torch.float64)
    with torch.no_grad():
        for scale in inference.scales:
            size = [math.floor(side * scale + 0.5) for side in (11, 14)]
            resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
            for mirrored in (False, True):
                read = torch.flip(resized, [3]) if mirrored else resized
                logits = slide_oracle(model, read, (8, 8), (5, 5)) if windows else model(read)
                logits = torch.flip(logits, [3]) if mirrored else logits
                back = F.interpolate(logits, size=(11, 14), mode="bilinear", align_corners=False)
                wanted += back.softmax(1) / 6
        found = segment(model, images, inference)
    assert torch.allclose(found.double(), wanted, atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(()), atol=1e-5)


def test_mirroring_makes_the_reading_symmetric(model):
    images = images_of(9, 12)
    with torch.no_grad():
        found = segment(model, images, Inference(flip=True))
        mirrored = segment(model, images.flip(-1), Inference(flip=True)).flip(-1)
        assert torch.allclose(found, mirrored, atol=1e-6)
        assert not torch.allclose(model(images), model(images.flip(-1)).flip(-1), atol=1e-3)


def test_corners_are_aligned_where_the_network_aligns_them(model):
    images, inference = images_of(9, 12), Inference(scales=(0.5,))
    with torch.no_grad():
        centred = segment(model, images, inference)
        model.align_corners = True
        aligned = segment(model, images, inference)
        small = F.interpolate(images, size=(5, 6), mode="bilinear")
        wanted = F.interpolate(model(small).float(), size=(9, 12), mode="bilinear", align_corners=True).softmax(1)
    assert torch.allclose(aligned, wanted, atol=1e-6)
    assert not torch.allclose(aligned, centred, atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 20), st.integers(1, 20))
def test_any_size_is_read(height, width):
    inference = Inference("slide", (7, 5), (4, 4), scales=(0.5, 1.5), flip=True)
    with torch.no_grad():
        scores = segment(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, height, width), inference)
    assert tuple(scores.shape) == (1, 2, height, width)


@pytest.mark.parametrize(
    ("inference", "message"),
    [
        (Inference("slide"), "inference, crop_size: expected a height and width for mode 'slide', got None"),
        (Inference("slide", (4, 4)), "inference, stride: expected a height and width"),
        (Inference("slide", (4, 4), (0, 4)), r"inference, stride: expected a height and width .*got \(0, 4\)"),
        (Inference("slide", (4, 4), (4, 5)), r"inference, stride: expected at most the window \(4, 4\), got \(4, 5\)"),
        (Inference(crop_size=(4, 4)), "inference, crop_size: expected mode 'slide' beside it, got mode 'whole'"),
        (Inference(stride=(4, 4)), "inference, stride: expected mode 'slide'"),
        (Inference(scales=()), "inference, scales: expected at least one"),
        (Inference(scales=(1.0, -1.0)), "inference, scales: expected at least one, from 0.01"),
    ],
)
def test_parts_that_do_not_fit_are_an_error(model, inference, message):
    with pytest.raises(UsageError, match=message):
        segment(model, images_of(9, 9), inference)


def test_a_preset_says_how_images_are_read():
    table = {"accuracy": {"inference": {"mode": "slide", "crop_size": [8, 8], "stride": [5, 5], "scales": [0.5, 1]}}}
    experiment = from_mapping(Experiment, table, "preset")
    assert experiment.accuracy.inference == Inference("slide", (8, 8), (5, 5), (0.5, 1.0))
    check_ranges(experiment)
    table["accuracy"]["inference"]["stride"] = [9, 9]
    with pytest.raises(UsageError, match="inference, stride: expected at most the window"):
        check_ranges(from_mapping(Experiment, table, "preset"))
    with pytest.raises(UsageError, match="unknown key 'crop'; did you mean 'crop_size'"):
        from_mapping(Experiment, {"accuracy": {"inference": {"crop": [8, 8]}}}, "preset")


def test_evaluation_mode_ends_with_its_context():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)).train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
