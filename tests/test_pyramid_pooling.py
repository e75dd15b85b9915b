"""The pyramid pooling module against its definition and mmsegmentation."""

from __future__ import annotations

import golden
import oracle_pyramid_pooling as oracle
import pytest
import torch
from torch import Tensor

from operators import checks
from operators.pyramid_pooling import PyramidPooling


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(7, 5), (3, 1), (12, 12)])
def test_grids_are_averages_that_are_convolved_and_resized(size: tuple[int, int], align_corners: bool) -> None:
    operator = checks.construct(PyramidPooling, 8, align_corners=align_corners).double()
    x = checks.sample(1, 8, *size)
    parts = [x]
    for bins, (_, conv, norm, relu) in zip(operator.bins, operator.grids, strict=True):
        pooled = torch.tensor([[oracle.average_grid(plane.tolist(), bins) for plane in x[0]]], dtype=torch.float64)
        planes = relu(norm(conv(pooled)))[0]
        resized = [oracle.resize(plane.tolist(), *size, align_corners=align_corners) for plane in planes]
        parts.append(torch.tensor([resized], dtype=torch.float64))
    torch.testing.assert_close(operator(x), operator.fuse(torch.cat(parts, dim=1)), rtol=1e-10, atol=1e-10)


def test_grids_together_have_as_many_channels_as_the_features() -> None:
    operator = PyramidPooling(64)
    assert [conv.out_channels for _, conv, _, _ in operator.grids] == [16] * 4
    assert operator.fuse[0].in_channels == 128


@pytest.mark.parametrize(("bins", "reduction", "width"), [((1, 2), None, 32), ((1, 2, 3, 6), 2, 32), ((4,), 8, 8)])
def test_settings_shape_the_grids(bins: tuple[int, ...], reduction: int | None, width: int) -> None:
    operator = PyramidPooling(64, bins=bins, reduction=reduction).eval()
    assert operator.fuse[0].in_channels == 64 + len(bins) * width
    assert operator(torch.ones(1, 64, 5, 7)).shape == (1, 64, 5, 7)
    assert operator.macs(5, 7) == sum(b * b for b in bins) * 64 * width + 35 * 9 * (64 + len(bins) * width) * 64


def test_training_on_one_image_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        PyramidPooling(16)(torch.ones(1, 16, 5, 7))


@pytest.mark.parametrize("bins", [(), (0, 1)])
def test_bad_bins_are_refused(bins: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="PyramidPooling: expected bins >= 1, got "):
        PyramidPooling(16, bins=bins)


def test_reduction_has_to_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="PyramidPooling: expected channels divisible by the reduction 4, got 18"):
        PyramidPooling(18)


def test_parity_with_mmsegmentation() -> None:
    head = golden.load("psp")
    state, x = head["state_dict"], head["inputs"][0]
    operator = PyramidPooling(64, reduction=2).eval()
    with torch.no_grad():
        operator.load_state_dict(_renamed(state, operator.state_dict()), strict=True)
        torch.testing.assert_close(golden.classify(operator(x)[:, :32], state), head["logits"], rtol=1e-4, atol=1e-5)


def _renamed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden parameters under our names; the golden fusion has 32 of our 64 outputs, the others stay."""
    layers = {f"psp_modules.{i}.1": (f"grids.{i}.1", f"grids.{i}.2") for i in range(4)}
    layers["bottleneck"] = ("fuse.0", "fuse.1")
    renamed = dict(own)
    for theirs, (conv, norm) in layers.items():
        for key, value in state.items():
            if key.startswith(f"{theirs}."):
                part, kind = key.removeprefix(f"{theirs}.").split(".")
                target = f"{conv if part == 'conv' else norm}.{kind}"
                if value.ndim:
                    renamed[target] = torch.cat((value, own[target][len(value) :]))
    return renamed
