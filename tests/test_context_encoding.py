"""The context encoding module against its equations and mmsegmentation."""

from __future__ import annotations

from functools import partial
from typing import Any

import against_oracle
import golden
import oracle_context_encoding as oracle
import pytest
import torch
import torch.nn.functional as F

from operators import checks
from operators.context_encoding import ContextEncoding, Encoding


def block(channels: int = 8, **settings: Any) -> ContextEncoding:
    settings = {"num_classes": None, "num_codes": 3, **settings}
    operator: ContextEncoding = checks.construct(ContextEncoding, channels, **settings).double()
    return operator


@pytest.mark.parametrize("settings", [{}, {"aggregation": "sum"}, {"residual": False}])
def test_block_is_the_equation(settings: dict[str, Any]) -> None:
    against_oracle.assert_oracle(block(4, **settings), partial(oracle.block, **settings), checks.sample(2, 4, 3, 5))


def test_encoding_is_the_sum_of_residuals_without_building_them() -> None:
    torch.manual_seed(0)
    encoding = Encoding(5, 4).double()
    x = checks.sample(2, 5, 7)
    codewords, scale = encoding.codewords, encoding.scale
    for image, encoded, weights in zip(x, encoding(x), encoding.assign(x), strict=True):
        pixels = list(image.unbind(1))
        expected = oracle.assignment(pixels, codewords, scale)
        torch.testing.assert_close(weights, torch.stack([torch.stack(row) for row in expected], 1))
        torch.testing.assert_close(encoded, torch.stack(oracle.encoders(pixels, codewords, scale)))


def test_pixels_go_to_the_nearest_codeword_when_factors_are_steep() -> None:
    torch.manual_seed(0)
    encoding = Encoding(5, 4).double()
    with torch.no_grad():
        encoding.codewords.copy_(checks.sample(4, 5, seed=2))
        encoding.scale.fill_(-1e3)
    x = checks.sample(1, 5, 20)
    nearest = torch.cdist(x[0].T, encoding.codewords).argmin(1)
    torch.testing.assert_close(encoding.assign(x)[0], F.one_hot(nearest, 4).T.double(), rtol=0, atol=1e-3)


def test_parameters_start_where_the_authors_start_them() -> None:
    encoding = Encoding(64, 32)
    assert encoding.codewords.abs().amax() <= 1 / (32 * 64) ** 0.5
    assert -1 <= encoding.scale.amin() < encoding.scale.amax() <= 0


def test_head_is_mmsegmentations() -> None:
    head = golden.load("enc")
    state, config = head["state_dict"], head["config"]
    operator = ContextEncoding(
        config["channels"], num_codes=config["num_codes"], num_classes=config["num_classes"]
    ).eval()
    names = {
        "enc_module.encoding_project": "project",
        "enc_module.encoding.0": "core",
        "enc_module.encoding.1": "norm",
        "enc_module.fc.0": "gate",
        "se_layer": "presence",
    }
    operator.load_state_dict(against_oracle.rename(state, names))
    features = golden.conv_bn_relu(head["inputs"][-1], state, "bottleneck")
    y, logits = operator.forward_with_auxiliary(features)
    for got, expected in zip((golden.classify(y, state), logits["presence"]), head["all_outputs"], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_presence_is_classified_from_the_encoding() -> None:
    operator = block(num_classes=5)
    x = checks.sample(2, 8, 3, 5)
    assert operator.presence is not None
    parameters = operator.state_dict()
    expected = operator.presence(torch.stack([oracle.encode(image, parameters) for image in x]))
    torch.testing.assert_close(operator.forward_with_auxiliary(x)[1]["presence"], expected)


def test_forward_does_not_classify_presence() -> None:
    operator = block(num_classes=5)
    assert operator.presence is not None
    operator.presence.register_forward_hook(lambda *_: pytest.fail("classifier ran"))
    operator(checks.sample(1, 8, 2, 3))
    assert block().forward_with_auxiliary(checks.sample(1, 8, 2, 3))[1] == {}


def test_training_normalises_codewords_over_images_and_channels() -> None:
    operator = block().train()
    captured: list[torch.Tensor] = []
    operator.norm.register_forward_hook(lambda module, inputs, output: captured.extend((*inputs, output)))
    operator(checks.sample(1, 8, 3, 5))
    encoders, normalised = captured
    deviation = (encoders.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = (encoders - encoders.mean(2, keepdim=True)) / deviation
    expected = expected * operator.norm.weight[:, None] + operator.norm.bias[:, None]
    torch.testing.assert_close(normalised, expected)


@pytest.mark.parametrize("settings", [{"aggregation": "sum"}, {"residual": False, "num_codes": 1}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    only = ("shapes", "macs", "responsibilities", "core", "auxiliary", "parameter_gradients", "compile")
    results = checks.run_checks(ContextEncoding, only=only, settings=settings)
    assert results == dict.fromkeys(only)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_codes": 0}, "num_codes >= 1, got 0"),
        ({"num_classes": 0}, "num_classes >= 1, got 0"),
        ({"aggregation": "max"}, "aggregation in .*, got 'max'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"ContextEncoding: expected {message}"):
        ContextEncoding(8, **settings)


def test_there_is_one_stage() -> None:
    with pytest.raises(IndexError, match="ContextEncoding: expected stage 0 or -1, got 1"):
        block().responsibilities(checks.sample(1, 8, 2, 2), 1)
