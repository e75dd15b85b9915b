"""Base-OC and ASP-OC of OCNet against their equations and the figures printed for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_object_context_pooling as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import nn

from operators import checks
from operators.atrous_object_context import AtrousObjectContext
from operators.object_context_pooling import BaseObjectContext, ObjectContextPooling

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "fused"])
BOTH = pytest.mark.parametrize("operator", [BaseObjectContext, AtrousObjectContext])


@IMPLEMENTATIONS
@pytest.mark.parametrize("size", [(3, 5), (4, 2)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"share": False},
        {"share": False, "key_layers": 2},
        {"subsample": 2},
        {"inner_channels": 2, "out_channels": 3, "width": 3},
    ],
)
def test_base_is_the_papers(settings: dict[str, Any], size: tuple[int, int], implementation: str) -> None:
    operator = checks.construct(BaseObjectContext, 4, implementation=implementation, **settings)
    known = {key: settings[key] for key in ("share", "subsample") if key in settings}
    assert_same(operator, partial(oracle.base, **known), checks.sample(2, 4, *size))


@IMPLEMENTATIONS
@pytest.mark.parametrize("size", [(3, 5), (1, 4)])
@pytest.mark.parametrize(
    "settings", [{}, {"share": True, "key_layers": 1}, {"subsample": 1, "key_width": 3, "out_channels": 2}]
)
def test_pyramid_is_the_papers(settings: dict[str, Any], size: tuple[int, int], implementation: str) -> None:
    operator = checks.construct(AtrousObjectContext, 4, dilations=(2, 3), implementation=implementation, **settings)
    known = {key: settings[key] for key in ("share", "subsample") if key in settings}
    assert_same(operator, partial(oracle.pyramid, dilations=(2, 3), **known), checks.sample(2, 4, *size))


def weights(operator: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in operator.modules() if isinstance(layer, nn.Conv2d))


def test_self_attention_of_ocrs_comparison() -> None:
    with torch.device("meta"):
        operator = BaseObjectContext(2048, inner_channels=512, out_channels=512, share=False)
    assert weights(operator) == 10_485_760
    assert round(2 * operator.macs(128, 128) / 1e9, 1) == 618.5


def test_authors_later_settings() -> None:
    with torch.device("meta"):
        operator = BaseObjectContext(512, share=False, key_layers=2)
        pyramid = AtrousObjectContext(512)
    assert weights(operator) == 2 * (512 * 256 + 256**2) + 2 * 512 * 256 + 1024 * 512
    context = 2 * (256 * 128 + 128**2) + 2 * 256 * 128
    assert weights(pyramid) == 512 * 256 * (9 + 1 + 27) + context + 1280 * 512
    assert pyramid.dilations == (12, 24, 36)


@BOTH
def test_nothing_is_read_at_initialisation(operator: Any) -> None:
    built = operator(8)
    assert not built.context(torch.randn(2, built.context.out.out_channels, 5, 7)).any()


def test_queries_of_their_own_are_used() -> None:
    operator = checks.construct(BaseObjectContext, 8, share=False)
    x = checks.sample(1, 8, 5, 7, dtype=torch.float32)
    before = operator(x)
    with torch.no_grad():
        operator.context.query.conv.weight.neg_()  # type: ignore[union-attr]
    assert (operator(x) - before).abs().amax() > 1e-4
    assert BaseObjectContext(8).context.query is None


@pytest.mark.parametrize("subsample", [1, 2, 3])
@pytest.mark.parametrize("position", [(0, 0), (3, 2), (4, 6)])
def test_attention_is_what_the_output_reads(subsample: int, position: tuple[int, int]) -> None:
    pooling = checks.construct(
        partial(ObjectContextPooling, width=4, key_layers=1, share=True, implementation="reference"),
        6,
        subsample=subsample,
    ).double()
    # Constant cells, so that their maxima and their averages are equal.
    coarse = checks.sample(2, 6, -(-5 // subsample), -(-7 // subsample))
    x = coarse.repeat_interleave(subsample, 2).repeat_interleave(subsample, 3)[:, :, :5, :7]
    weights = pooling.pixel_weights(x, position)
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2).double())
    read = pooling.out((weights * pooling.value(x)).sum((2, 3), keepdim=True))
    torch.testing.assert_close(read[:, :, 0, 0], pooling(x)[:, :, position[0], position[1]])


@BOTH
@pytest.mark.parametrize("settings", [{"key_layers": 1, "share": True}, {"key_layers": 2, "share": False}])
@pytest.mark.parametrize("subsample", [1, 3])
def test_conformance_of_settings(operator: Any, settings: dict[str, Any], subsample: int) -> None:
    for implementation in ("reference", "fused"):
        results = checks.run_checks(
            operator,
            only=("shapes", "macs", "attention", "core", "parameter_gradients"),
            settings={**settings, "subsample": subsample, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


@BOTH
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key_layers": 3}, "ObjectContextPooling: expected key_layers 1 or 2, got 3"),
        ({"subsample": 0}, "ObjectContextPooling: expected subsample >= 1, got 0"),
        ({"width": 0}, "expected width >= 1, got 0"),
        ({"out_channels": 0}, "expected out_channels >= 1, got 0"),
        ({"channels": 7}, "expected channels divisible by 2, or a width, got 7"),
        ({"implementation": "fast"}, "ScaledAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(operator: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator(**{"channels": 8, **settings})


def test_arguments_of_one_out_of_range() -> None:
    with pytest.raises(ValueError, match="BaseObjectContext: expected inner_channels >= 1, got 0"):
        BaseObjectContext(8, inner_channels=0)
    for dilations in ((), (0, 1)):
        with pytest.raises(ValueError, match=r"AtrousObjectContext: expected dilations >= 1, got \("):
            AtrousObjectContext(8, dilations=dilations)
    with pytest.raises(ValueError, match="AtrousObjectContext: expected width >= 1, got 0"):
        AtrousObjectContext(8, key_width=0)
