"""The global context block against equation (5) and mmsegmentation."""

from __future__ import annotations

import golden
import oracle_global_context as oracle
import pytest
import torch
from torch import Tensor, nn

from operators import checks
from operators.global_context import Fusion, GlobalContext, Pooling


def affine(conv: nn.Conv2d) -> tuple[list[list[float]], list[float]]:
    return conv.weight.flatten(1).tolist(), conv.bias.tolist()


def transformed(context: list[float], transform: nn.Sequential | None) -> list[float] | None:
    if transform is None:
        return None
    first, norm, _, last = transform
    gains = norm.weight.flatten().tolist(), norm.bias.flatten().tolist()
    return oracle.transform(context, affine(first), gains, affine(last))


@pytest.mark.parametrize("fusion", ["add", "mul", "both"])
@pytest.mark.parametrize("pooling", ["attention", "average"])
def test_is_equation_5(fusion: Fusion, pooling: Pooling) -> None:
    operator = checks.construct(GlobalContext, 16, reduction=4, fusion=fusion, pooling=pooling).double()
    x = checks.sample(1, 16, 3, 5)
    pixels = x[0].flatten(1).t().tolist()
    if operator.mask is None:
        weights = [1 / len(pixels)] * len(pixels)
    else:
        mask, bias = affine(operator.mask)
        weights = oracle.attention_weights(pixels, mask[0], bias[0])
    context = oracle.pool(pixels, weights)
    expected = oracle.fuse(pixels, transformed(context, operator.add), transformed(context, operator.multiply))
    torch.testing.assert_close(operator(x)[0].flatten(1).t().tolist(), expected, rtol=1e-10, atol=1e-10)
    shown = operator.attention(x, (1, 1)).flatten().tolist()
    torch.testing.assert_close(shown, weights, rtol=1e-10, atol=1e-10)


def test_attention_is_the_same_for_every_position() -> None:
    operator = checks.construct(GlobalContext, 32)
    x = checks.sample(2, 32, 3, 5, dtype=torch.float32)
    assert torch.equal(operator.attention(x, (0, 0)), operator.attention(x, (2, 4)))


@pytest.mark.parametrize(("fusion", "factor"), [("add", 1.0), ("mul", 0.5), ("both", 0.5)])
def test_last_convolution_starts_at_zero(fusion: Fusion, factor: float) -> None:
    x = checks.sample(2, 32, 3, 5, dtype=torch.float32)
    torch.testing.assert_close(GlobalContext(32, fusion=fusion)(x), factor * x)


def test_parameters_of_the_published_block() -> None:
    block = GlobalContext(512, reduction=16)
    mask, first, norm, last = 512 + 1, 512 * 32 + 32, 2 * 32, 32 * 512 + 512
    assert sum(p.numel() for p in block.parameters()) == mask + first + norm + last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "sum"}, "expected fusion in .* got 'sum'"),
        ({"pooling": "max"}, "expected pooling in .* got 'max'"),
        ({"reduction": 5}, "divisible by the reduction 5, got 32"),
        ({"reduction": 32}, "expected channels >= 64 at reduction 32, got 32"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"GlobalContext: {message}" if "expected" in message else message):
        GlobalContext(32, **settings)


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"conv_mask": "mask", "channel_add_conv": "add", "channel_mul_conv": "multiply"}
    block = {key.removeprefix("gc_block."): value for key, value in state.items() if key.startswith("gc_block.")}
    return {f"{names[key.split('.')[0]]}.{key.split('.', 1)[1]}": value for key, value in block.items()}


@pytest.mark.parametrize(("name", "fusion"), [("gc", "add"), ("gc_mul", "both")])
def test_parity_with_mmsegmentation(name: str, fusion: Fusion) -> None:
    head = golden.load(name)
    state, x = head["state_dict"], head["inputs"][0]
    operator = GlobalContext(32, reduction=4, fusion=fusion).eval()
    operator.load_state_dict(_renamed(state), strict=True)
    with torch.no_grad():
        out = golden.conv_bn_relu(operator(golden.conv_bn_relu(x, state, "convs.0")), state, "convs.1")
        out = golden.conv_bn_relu(torch.cat((x, out), dim=1), state, "conv_cat")
        torch.testing.assert_close(golden.classify(out, state), head["logits"], rtol=1e-4, atol=1e-5)
