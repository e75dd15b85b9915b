"""The disentangled non-local block against its equations, mmsegmentation, and its own fused form."""

from __future__ import annotations

from functools import partial
from typing import Any

import against_oracle
import golden
import oracle_disentangled
import pytest
import torch
from torch import Tensor

from operators import checks
from operators.disentangled import DisentangledNonLocal

SETTINGS: list[dict[str, Any]] = [
    {},
    {"scale": False, "temperature": 1.0},
    {"pairwise": "dot_product"},
    {"output": "gamma"},
    {"output": "gamma", "pairwise": "dot_product"},
]


def block(channels: int = 8, **settings: Any) -> DisentangledNonLocal:
    operator: DisentangledNonLocal = checks.construct(DisentangledNonLocal, channels, **settings).double()
    return operator


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_block_is_the_equation(settings: dict[str, Any], implementation: str) -> None:
    against_oracle.assert_oracle(
        block(4, implementation=implementation, **settings),
        partial(oracle_disentangled.block, **settings),
        checks.sample(2, 4, 3, 5),
    )


@pytest.mark.parametrize("implementation", ["reference", "fused"])
def test_head_is_mmsegmentations(implementation: Any) -> None:
    head = golden.load("dnl")
    state, config, x = head["state_dict"], head["config"], head["inputs"][0]
    operator = DisentangledNonLocal(
        config["channels"],
        reduction=config["reduction"],
        pairwise=config["mode"],
        scale=config["use_scale"],
        implementation=implementation,
    ).eval()
    names = {
        "theta.conv": "query",
        "phi.conv": "key",
        "g.conv": "value",
        "conv_mask": "mask",
        "conv_out.conv": "conv_out",
        "conv_out.bn": "norm",
    }
    operator.load_state_dict(against_oracle.rename(state, {f"dnl_block.{key}": name for key, name in names.items()}))
    y = golden.conv_bn_relu(operator(golden.conv_bn_relu(x, state, "convs.0")), state, "convs.1")
    y = golden.conv_bn_relu(torch.cat((x, y), 1), state, "conv_cat")
    torch.testing.assert_close(golden.classify(y, state), head["logits"], rtol=0, atol=1e-4)


def test_initialisation_is_the_identity_or_the_unary_term() -> None:
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(DisentangledNonLocal(8)(x), x, rtol=0, atol=0)
    change = DisentangledNonLocal(8, output="gamma")(x) - x
    torch.testing.assert_close(change, change[:, :, :1, :1].expand_as(x))
    assert change.abs().amax() > 0


@pytest.mark.parametrize("settings", SETTINGS)
def test_attention_is_what_the_output_reads(settings: dict[str, Any]) -> None:
    operator = block(**settings)
    x = checks.sample(2, 8, 5, 7)
    captured: list[Tensor] = []
    operator.core.register_forward_hook(lambda module, inputs, output: captured.extend((inputs[3], *output)))
    operator(x)
    value, pairs, unary = captured
    gamma = 1.0 if operator.gamma is None else operator.gamma
    read = gamma * pairs[:, :, 3 * 7 + 2] + unary[:, :, 0]
    weights = operator.attention(x, (3, 2))
    torch.testing.assert_close((weights.flatten(2) * value).sum(2), read)


def test_pairwise_term_ignores_what_all_queries_and_all_keys_share() -> None:
    operator = block()
    x = checks.sample(2, 8, 5, 7)
    y = operator(x)
    with torch.no_grad():
        assert operator.query.bias is not None and operator.key.bias is not None
        operator.query.bias += 3
        operator.key.bias -= 5
    torch.testing.assert_close(operator(x), y)


@pytest.mark.parametrize("settings", SETTINGS)
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    for implementation in ("reference", "fused"):
        results = checks.run_checks(
            DisentangledNonLocal,
            only=("shapes", "macs", "attention", "core", "parameter_gradients"),
            settings={**settings, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


def test_only_the_fused_dot_product_multiplies_less() -> None:
    def macs(pairwise: Any, implementation: Any) -> int:
        return DisentangledNonLocal(8, pairwise=pairwise, implementation=implementation).macs(9, 11)

    assert macs("embedded_gaussian", "fused") == macs("embedded_gaussian", "reference")
    assert macs("dot_product", "fused") < macs("dot_product", "reference")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": 3}, "channels divisible by the reduction 3, got 8"),
        ({"pairwise": "gaussian"}, "pairwise in .*, got 'gaussian'"),
        ({"output": "none"}, "output in .*, got 'none'"),
        ({"implementation": "fast"}, "implementation in .*, got 'fast'"),
        ({"temperature": 0.0}, "a finite temperature > 0, got 0.0"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DisentangledNonLocal: expected .*{message}"):
        DisentangledNonLocal(8, **settings)
