"""Double attention against its equations, the softmaxes that copies get wrong, and two published rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_gather_attention as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor, nn

from operators import checks
from operators.double_attention import DoubleAttention
from operators.layers import conv_macs, conv_norm_relu

IMPLEMENTATIONS = ["reference", "fused"]


def operator(channels: int = 8, **settings: Any) -> DoubleAttention:
    built = checks.construct(DoubleAttention, channels, **settings).double()
    assert isinstance(built, DoubleAttention)
    return built


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("fusion", ["add_norm", "add", "concatenate"])
def test_block_is_the_equation(fusion: str, implementation: str) -> None:
    built = operator(6, width=4, num_maps=3, fusion=fusion, implementation=implementation)
    assert_same(built, partial(oracle.double_attention, fusion=fusion), checks.sample(2, 6, 3, 4))


def test_widths_are_a_quarter_of_the_channels() -> None:
    stage = DoubleAttention(32).stage
    assert (stage.key_width, stage.value_width, stage.core.num_heads) == (8, 8, 1)


def test_maps_sum_to_one_over_positions_and_vectors_over_maps() -> None:
    vectors, maps = operator().stage.weights(checks.sample(2, 8, 3, 4))
    assert vectors.shape == maps.shape == (2, 1, 2, 12)
    torch.testing.assert_close(maps.sum(3), torch.ones(2, 1, 2).double())
    torch.testing.assert_close(vectors.sum(2), torch.ones(2, 1, 12).double())
    assert not torch.allclose(vectors.sum(3), torch.ones(2, 1, 2).double(), atol=0.1)


def test_single_image_has_weights_that_vary() -> None:
    vectors, maps = operator().stage.weights(checks.sample(1, 8, 3, 4))
    for weights in (vectors, maps):
        assert weights.max() < 1
        assert weights.std() > 1e-3


def test_weights_of_an_image_do_not_depend_on_its_batch() -> None:
    built, x = operator(), checks.sample(3, 8, 3, 4)
    for together, alone in zip(built.stage.weights(x), built.stage.weights(x[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone)


def test_output_is_what_attention_reads() -> None:
    built, x = operator(), checks.sample(2, 8, 3, 4)
    seen: list[Tensor] = []
    built.core.register_forward_hook(lambda module, inputs, output: seen.append(output))
    built(x)
    value = built.stage.value(x)
    for row in range(3):
        for column in range(4):
            weights = built.attention(x, (row, column))
            torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2).double())
            torch.testing.assert_close((weights * value).sum((2, 3)), seen[0][:, :, 4 * row + column])


def test_responsibilities_are_the_attention_vectors() -> None:
    built, x = operator(), checks.sample(2, 8, 3, 4)
    expected = torch.softmax(built.stage.query(x), dim=1)
    for stage in (0, -1):
        torch.testing.assert_close(built.responsibilities(x, stage), expected)
    with pytest.raises(IndexError, match="DoubleAttention: expected stage 0 or -1, got 1"):
        built.responsibilities(x, 1)


def test_concatenation_starts_without_reading() -> None:
    stage = DoubleAttention(8, fusion="concatenate").stage
    assert not stage(torch.randn(2, 8, 3, 4)).any()


def test_fused_never_maps_the_pixels() -> None:
    reference, fused = (
        DoubleAttention(64, width=32, num_maps=16, implementation=implementation)
        for implementation in ("reference", "fused")
    )
    assert reference.macs(64, 64) == 4096 * (2 * 64 * 48 + 2 * 32 * 16)
    assert fused.macs(64, 64) == 4096 * 4 * 64 * 16 + 2 * 64 * 32 * 16


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "settings", [{"width": 5, "num_maps": 70, "fusion": "add"}, {"num_maps": 1, "fusion": "concatenate"}]
)
def test_conformance_of_settings(settings: dict[str, Any], implementation: str) -> None:
    results = checks.run_checks(
        DoubleAttention,
        only=("shapes", "macs", "macs_batch", "attention", "core", "responsibilities", "parameter_gradients"),
        settings={**settings, "implementation": implementation},
    )
    assert results == dict.fromkeys(results)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_row_of_hamburger() -> None:
    built = DoubleAttention(512, width=512, num_maps=512, fusion="add")
    assert parameters(built) / 2**20 == pytest.approx(1.01, rel=0.03)
    assert built.macs(128, 128) / 1e9 == pytest.approx(25.7, rel=0.03)


def test_row_of_ocr() -> None:
    reduce = conv_norm_relu(2048, 512, 3)
    built = DoubleAttention(512, width=128, num_maps=64, fusion="concatenate")
    assert (parameters(reduce) + parameters(built)) / 1e6 == pytest.approx(10.2, rel=0.03)
    flops = 2 * (conv_macs(reduce, 128 * 128) + built.macs(128, 128))
    assert flops / 1e9 == pytest.approx(338, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "DoubleAttention: expected width >= 1, got 0"),
        ({"num_maps": 0}, "DoubleAttention: expected num_maps >= 1, got 0"),
        ({"fusion": "sum"}, "DoubleAttention: expected fusion in .*, got 'sum'"),
        ({"implementation": "fast"}, "GatherAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DoubleAttention(8, **settings)


def test_channels_have_to_be_divisible_without_widths() -> None:
    with pytest.raises(ValueError, match="DoubleAttention: expected channels divisible by 4, or a width, got 6"):
        DoubleAttention(6)
    assert DoubleAttention(6, width=2, num_maps=3).eval()(torch.ones(1, 6, 2, 3)).shape == (1, 6, 2, 3)
