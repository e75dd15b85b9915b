"""Strip pooling and mixed pooling against their equations, and the authors' choices."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_strip_pooling as oracle
import pytest
import torch
from against_oracle import assert_same

from operators import checks, get
from operators.strip_pooling import MixedPooling, StripPooling


def test_strip_pooling_is_the_equation() -> None:
    assert_same(checks.construct(StripPooling, 4), oracle.strip_pooling, checks.sample(2, 4, 3, 5))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("bins", [(2, 3), (6, 1)])
def test_mixed_pooling_is_the_equation(bins: tuple[int, ...], align_corners: bool) -> None:
    built = checks.construct(MixedPooling, 8, bins=bins, align_corners=align_corners)
    expected = partial(oracle.mixed_pooling, bins=bins, align_corners=align_corners)
    assert_same(built, expected, checks.sample(2, 8, 4, 5))


def _changed(name: str, **settings: Any) -> torch.Tensor:
    """Outputs `(H, W)` that one pixel in the middle of a 31x33 map moves."""
    built = checks.construct(get(name), 64, **settings).double()
    x = checks.sample(1, 64, 31, 33)
    moved = x.clone()
    moved[:, :, 15, 16] += checks.sample(64, seed=2)
    with torch.no_grad():
        return (built(moved) - built(x)).abs().amax((0, 1)) > 1e-13


def test_pixel_moves_three_rows_and_three_columns() -> None:
    expected = torch.zeros(31, 33, dtype=torch.bool)
    expected[14:17], expected[:, 15:18] = True, True
    assert torch.equal(_changed("strip_pooling"), expected)


def test_mixed_pooling_reaches_five_rows_and_columns_and_cells() -> None:
    changed = _changed("mixed_pooling", bins=(10,))
    assert changed[13:18].all() and changed[:, 14:19].all()
    # Beside the strips, the cells that the 3x3 kernel joins move: not the whole map.
    assert changed.sum() > 5 * 33 + 5 * 31 - 25
    assert not changed.all()


def test_gate_lies_between_zero_and_one() -> None:
    x = checks.sample(2, 16, 5, 7)
    ratio = checks.construct(StripPooling, 16).double()(x) / x
    assert ((ratio > 0) & (ratio < 1)).all()


def test_published_modules() -> None:
    head = MixedPooling(1024)
    assert (head.cells.bins, head.width, head.cells.align_corners) == ((20, 12), 256, True)
    weights = 2 * 1024 * 256 + (5 * 9 + 2 * 3) * 256**2 + 512 * 1024
    norms = 2 * (2 * 256 + 7 * 256 + 1024)
    assert sum(parameter.numel() for parameter in head.parameters()) == weights + norms
    block = StripPooling(512)
    assert sum(parameter.numel() for parameter in block.parameters()) == 7 * 512**2 + 3 * 512 + 4 * 512


@pytest.mark.parametrize("settings", [{"width": 6, "bins": [3, 2, 1]}, {"align_corners": False}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    only = ("shapes", "macs", "memory_format", "parameter_gradients")
    results = checks.run_checks(MixedPooling, only=only, settings=settings)
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": ()}, r"MixedPooling: expected bins >= 1, got \(\)"),
        ({"bins": (4, 0)}, r"MixedPooling: expected bins >= 1, got \(4, 0\)"),
        ({"width": 0}, "MixedPooling: expected width >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedPooling(8, **settings)


def test_width_is_named_where_channels_do_not_divide() -> None:
    with pytest.raises(ValueError, match="MixedPooling: expected channels divisible by 4, or a width, got 6"):
        MixedPooling(6)
    assert MixedPooling(6, width=2).eval()(torch.ones(1, 6, 2, 3)).shape == (1, 6, 2, 3)
