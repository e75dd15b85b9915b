"""Interlaced sparse self-attention against its equations and mmsegmentation."""

from __future__ import annotations

from functools import partial
from typing import Any

import against_oracle
import golden
import oracle_interlaced
import pytest
import torch
from torch import Tensor

from operators import checks
from operators.interlaced import InterlacedSparse, Tiling

IMPLEMENTATIONS = ["reference", "fused"]
SIZES = [(13, 17), (8, 8), (16, 8), (1, 5), (9, 1), (1, 1)]


def block(channels: int = 8, **settings: Any) -> InterlacedSparse:
    operator: InterlacedSparse = checks.construct(InterlacedSparse, channels, **settings).double()
    return operator


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "settings", [{"window_size": (2, 3)}, {"window_size": (4, 2), "value_bias": False}, {"window_size": (1, 7)}]
)
def test_block_is_the_equation(settings: dict[str, Any], implementation: str) -> None:
    against_oracle.assert_oracle(
        block(4, implementation=implementation, **settings),
        partial(oracle_interlaced.block, window=settings["window_size"]),
        checks.sample(2, 4, 3, 7),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_head_is_mmsegmentations(implementation: Any) -> None:
    head = golden.load("isa")
    state, config = head["state_dict"], head["config"]
    operator = InterlacedSparse(
        config["channels"],
        width=config["isa_channels"],
        window_size=config["down_factor"],
        implementation=implementation,
    ).eval()
    names = {"out_conv": "fuse"}
    for theirs, ours in (("global_relation", "long_range"), ("local_relation", "short_range")):
        for layer in ("key", "query", "value"):
            names[f"{theirs}.{layer}_project"] = f"{ours}.{layer}"
        names[f"{theirs}.output_project"] = f"{ours}.out"
    operator.load_state_dict(against_oracle.rename(state, names))
    y = operator(golden.conv_bn_relu(head["inputs"][0], state, "in_conv"))
    torch.testing.assert_close(golden.classify(y, state), head["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [(8, 8), (3, 5), (1, 1)])
def test_tiling_moves_pixels_and_brings_them_back(size: tuple[int, int], window: tuple[int, int]) -> None:
    tiling = Tiling(*size, window)
    x = checks.sample(2, 3, *size)
    scattered = tiling.scatter(x)
    assert scattered.shape == (2 * tiling.members, 3, tiling.rows, tiling.columns)
    regrouped = tiling.regroup(scattered)
    assert regrouped.shape == (2 * tiling.windows, 3, *window)
    assert torch.equal(tiling.gather(regrouped), x)
    assert scattered.count_nonzero() == x.count_nonzero()


def test_the_padding_takes_part() -> None:
    operator = block(window_size=(4, 4))
    x = checks.sample(1, 8, 4, 6)
    weights = operator.attention(x, (1, 2))
    assert 0 < weights.sum() < 0.9
    torch.testing.assert_close(operator.attention(checks.sample(1, 8, 8, 8), (1, 2)).sum(), torch.tensor(1.0).double())


@pytest.mark.parametrize("size", SIZES)
def test_attention_is_the_product_of_both_steps(size: tuple[int, int]) -> None:
    operator = block(window_size=(4, 3))
    x = checks.sample(2, 8, *size)
    row, column = size[0] // 2, size[1] - 1
    weights: list[Tensor] = []
    operator.core.register_forward_hook(lambda core, inputs, output: weights.append(core.weights(*inputs[:2])))
    operator(x)
    distant, near = weights
    tiling = Tiling(*size, (4, 3))
    places = [(i, j) for i in range(tiling.rows * 4) for j in range(tiling.columns * 3)]
    own_row, own_column = row + tiling.top, column + tiling.left
    own_window = own_row // 4 * tiling.columns + own_column // 3
    own_member = own_row % 4 * 3 + own_column % 3
    expected = torch.zeros(2, 1, *size, dtype=torch.float64)
    for i, j in places:
        if not (tiling.top <= i < tiling.top + size[0] and tiling.left <= j < tiling.left + size[1]):
            continue
        window, member = i // 4 * tiling.columns + j // 3, i % 4 * 3 + j % 3
        for image in range(2):
            by_place = distant[image * tiling.members + member, own_window, window]
            by_window = near[image * tiling.windows + own_window, own_member, member]
            expected[image, 0, i - tiling.top, j - tiling.left] = by_place * by_window
    torch.testing.assert_close(operator.attention(x, (row, column)), expected)


@pytest.mark.parametrize("settings", [{"value_bias": False}, {"width": 12, "window_size": [3, 5]}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    for implementation in IMPLEMENTATIONS:
        results = checks.run_checks(
            InterlacedSparse,
            only=("shapes", "macs", "attention", "core", "reach", "parameter_gradients"),
            settings={**settings, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


def test_two_sparse_steps_cost_less_than_a_dense_one() -> None:
    operator = InterlacedSparse(512)
    pairs = operator.macs(128, 128) - 128 * 128 * 512 * (4 * (512 + 256 + 128) + 2 * 512)
    assert pairs == 128**2 * (64 + 256) * (512 + 256)
    assert pairs * 50 < 128**4 * (512 + 256)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_size": (0, 3)}, r"InterlacedSparse: expected window_size \(p, q\) >= 1, got \(0, 3\)"),
        ({"window_size": (3,)}, r"InterlacedSparse: expected window_size \(p, q\) >= 1, got \(3,\)"),
        ({"width": 0}, "InterlacedSparse: expected width >= 1, got 0"),
        ({"implementation": "fast"}, "ScaledAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InterlacedSparse(8, **settings)
