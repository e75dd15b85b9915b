"""Axial attention against its equations, along each axis and beyond its span."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_axial_attention as oracle
import oracle_layers
import pytest
import torch
from against_oracle import assert_same
from oracle_layers import to_map
from torch import nn

from operators import checks
from operators.axial_attention import AxialAttention, AxialLayer


def operator(channels: int = 8, **settings: Any) -> AxialAttention:
    settings = {"width": 8, "num_heads": 2, "span": 3, **settings}
    built: AxialAttention = checks.construct(AxialAttention, channels, **settings).double()
    # Noise by the fan-in leaves embeddings of a long table near zero.
    with torch.no_grad():
        for layer in (built.height_layer, built.width_layer):
            layer.relative.copy_(checks.sample(*layer.relative.shape, seed=5))
    return built


@pytest.mark.parametrize(
    ("num_heads", "span", "size"),
    [(2, 3, (2, 5)), (4, 56, (3, 4)), (1, 1, (3, 2)), (2, 2, (4, 1)), (2, 2, (1, 4)), (2, 4, (1, 1))],
)
def test_block_is_the_equation(num_heads: int, span: int, size: tuple[int, int]) -> None:
    built = operator(6, num_heads=num_heads, span=span)
    assert_same(built, partial(oracle.block, num_heads=num_heads, span=span), checks.sample(2, 6, *size))


def test_attention_is_the_product_of_both_layers() -> None:
    built, x = operator(), checks.sample(2, 8, 4, 5)
    state = built.state_dict()
    for index, image in enumerate(x):
        inner = oracle_layers.conv_norm_relu(to_map(image), state, "down")
        between, columns = oracle.layer(inner, state, "height_layer", 2, 3)
        _, rows = oracle.layer(between, state, "width_layer", 2, 3)
        for row, column in ((0, 0), (2, 3)):
            expected = torch.zeros(2, 4, 5).double()
            for head in range(2):
                for j in range(5):
                    for i in range(4):
                        first = sum(columns[first_head, row, j][i] for first_head in range(2)) / 2
                        expected[head, i, j] = rows[head, row, column][j] * first
            weights = built.attention(x, (row, column))[index]
            torch.testing.assert_close(weights, expected)
            torch.testing.assert_close(weights.sum((1, 2)), torch.ones(2).double())


@pytest.mark.parametrize("axis", ["height", "width"])
def test_weights_are_what_a_layer_reads(axis: Any) -> None:
    layer, x = AxialLayer(8, axis=axis, num_heads=2, span=3).double().eval(), checks.sample(2, 8, 4, 5)
    with torch.no_grad():
        layer.relative[4:] = 0
    # Without embeddings of values and with normalisations at rest, a layer sums the values.
    value = torch.unflatten(layer.project(x), 1, (2, 8))[:, :, 4:]  # (B, h, d, H, W)
    at_rest = (1 + 1e-5) ** 0.5
    path = "bwhij,bhdjw->bhdiw" if axis == "height" else "bihwv,bhdiv->bhdiw"
    expected = torch.einsum(path, layer.weights(x), value / at_rest).flatten(1, 2) / at_rest
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("axis", ["height", "width"])
def test_a_layer_reads_its_line_alone(axis: Any) -> None:
    layer, x = AxialLayer(8, axis=axis, num_heads=2, span=3).double().eval(), checks.sample(1, 8, 4, 5)
    moved = x.clone()
    moved[:, :, 1, 2] += checks.sample(8, seed=2)
    changed = (layer(moved) - layer(x)).abs().amax((0, 1)).gt(1e-12)
    expected = torch.zeros(4, 5, dtype=torch.bool)
    if axis == "height":
        expected[:, 2] = True
    else:
        expected[1] = True
    assert torch.equal(changed, expected)


def test_layers_are_each_others_transpose() -> None:
    height = AxialLayer(8, axis="height", num_heads=2, span=3).eval()
    width = AxialLayer(8, axis="width", num_heads=2, span=3).eval()
    width.load_state_dict(height.state_dict())
    x = checks.sample(2, 8, 4, 5, dtype=torch.float32)
    torch.testing.assert_close(width(x.transpose(2, 3)), height(x).transpose(2, 3))


def test_offsets_beyond_the_span_are_those_of_its_end() -> None:
    short = AxialLayer(8, axis="width", num_heads=2, span=3).double().eval()
    long = AxialLayer(8, axis="width", num_heads=2, span=7).double().eval()
    state = short.state_dict()
    relative = state["relative"]
    ends = [relative[:, :1].expand(-1, 4), relative, relative[:, -1:].expand(-1, 4)]
    long.load_state_dict({**state, "relative": torch.cat(ends, dim=1)})
    x = checks.sample(2, 8, 3, 7)
    torch.testing.assert_close(short(x), long(x))


@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 4), slice(4, 8)], ids=["query", "key", "value"])
def test_each_embedding_makes_a_layer_sense_positions(part: slice) -> None:
    layer, x = AxialLayer(8, axis="width", num_heads=2, span=5).double().eval(), checks.sample(1, 8, 1, 5)
    kept = layer.relative.detach().clone()
    with torch.no_grad():
        layer.relative.zero_()
    torch.testing.assert_close(layer(x.flip(3)).flip(3), layer(x))
    with torch.no_grad():
        layer.relative[part] = kept[part]
    assert not torch.allclose(layer(x.flip(3)).flip(3), layer(x), atol=1e-3)


def test_block_starts_as_the_rectified_map() -> None:
    x = checks.sample(2, 64, 5, 7, dtype=torch.float32)
    torch.testing.assert_close(AxialAttention(64)(x), x.relu())


def test_batch_statistics_normalise_each_logit_of_each_head() -> None:
    layer, x = AxialLayer(8, axis="width", num_heads=2, span=3).train(), checks.sample(2, 8, 4, 5, dtype=torch.float32)
    captured: list[torch.Tensor] = []
    layer.logit_norm.register_forward_hook(lambda module, inputs, output: captured.append(output))
    layer(x)
    assert captured[0].shape == (2 * 4, 6, 5, 5)
    torch.testing.assert_close(captured[0].mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)


def test_published_widths() -> None:
    layer = AxialAttention(512).width_layer
    assert layer.relative.shape == (2 * 32, 2 * 56 - 1)
    assert (layer.num_heads, layer.parts) == (8, [16, 16, 32])
    assert isinstance(layer.logit_norm, nn.BatchNorm2d) and layer.logit_norm.num_features == 24


@pytest.mark.parametrize("settings", [{"span": 2}, {"width": 16, "num_heads": 2}, {"num_heads": 1}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    results = checks.run_checks(
        AxialAttention, only=("shapes", "macs", "attention", "core", "parameter_gradients"), settings=settings
    )
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 4}, "AxialLayer: expected a width divisible by 2 \\* num_heads, got 4 and 4"),
        ({"num_heads": 0}, "AxialLayer: expected a width divisible by 2 \\* num_heads, got 4 and 0"),
        ({"num_heads": 2, "span": 0}, "AxialLayer: expected span >= 1, got 0"),
        ({"width": 0}, "AxialAttention: expected width >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AxialAttention(8, **settings)


def test_axis_and_odd_channels_are_refused() -> None:
    axis: Any = "depth"
    with pytest.raises(ValueError, match=r"AxialLayer: expected axis in .*, got 'depth'"):
        AxialLayer(8, axis=axis, num_heads=2)
    with pytest.raises(ValueError, match="AxialAttention: expected channels divisible by 2, or a width, got 7"):
        AxialAttention(7)
    assert AxialAttention(7, width=16).eval()(torch.ones(1, 7, 2, 3)).shape == (1, 7, 2, 3)
