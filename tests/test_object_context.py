"""Object-contextual representations against their equations and mmsegmentation."""

from __future__ import annotations

from functools import partial
from typing import Any

import against_oracle
import golden
import oracle_object_context as oracle
import pytest
import torch

from operators import checks
from operators.object_context import ObjectContextual, SpatialGather

IMPLEMENTATIONS = ["reference", "fused"]


def block(channels: int = 8, **settings: Any) -> ObjectContextual:
    operator: ObjectContextual = checks.construct(ObjectContextual, channels, **settings).double()
    return operator


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [True, False])
def test_block_is_the_equation(scale: bool, implementation: str) -> None:
    operator = block(4, num_classes=3, scale=scale, implementation=implementation)
    against_oracle.assert_oracle(operator, partial(oracle.block, scale=scale), checks.sample(2, 4, 3, 5))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_block_on_prior_logits_is_the_equation(implementation: str) -> None:
    operator = block(4, num_classes=None, implementation=implementation)
    assert operator.regions is None
    against_oracle.assert_oracle(
        operator, oracle.with_prior, checks.sample(2, 4, 3, 5), checks.sample(2, 6, 3, 5, seed=2)
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_head_is_mmsegmentations(implementation: Any) -> None:
    head = golden.load("ocr")
    state, config = head["state_dict"], head["config"]
    operator = ObjectContextual(
        config["channels"], num_classes=None, width=config["ocr_channels"], implementation=implementation
    ).eval()
    layers = {
        "key_project.0": "core.key.0",
        "key_project.1": "core.key.1",
        "query_project.0": "query.0",
        "query_project.1": "query.1",
        "value_project": "core.value",
        "out_project": "up",
        "bottleneck": "fuse",
    }
    names = {f"object_context_block.{theirs}": ours for theirs, ours in layers.items()}
    operator.load_state_dict(against_oracle.rename(state, names))
    features = golden.conv_bn_relu(head["inputs"][0], state, "bottleneck")
    y = operator(features, head["prior_logits"])
    torch.testing.assert_close(golden.classify(y, state), head["logits"], rtol=0, atol=1e-4)


def test_gathered_regions_are_means_of_pixels() -> None:
    x = checks.sample(2, 8, 35)
    hard = torch.full((2, 3, 35), -1e4).double()
    hard[:, 0, :5], hard[:, 1, 5:], hard[:, 2] = 0, 0, 0
    regions = SpatialGather()(x, hard)
    expected = torch.stack([x[:, :, :5].mean(2), x[:, :, 5:].mean(2), x.mean(2)], 2)
    torch.testing.assert_close(regions, expected)


def test_auxiliary_loss_and_block_both_reach_the_classifier() -> None:
    operator = block(num_classes=3).train()
    x = checks.sample(2, 8, 5, 7)
    y, logits = operator.forward_with_auxiliary(x)
    assert operator.regions is not None
    torch.testing.assert_close(logits["regions"], operator.regions(x))
    for output in (y, logits["regions"]):
        (gradient,) = torch.autograd.grad(output.square().sum(), operator.regions.weight, retain_graph=True)
        assert gradient.abs().amax() > 1e-6


def test_attention_is_the_relation_over_the_gathered_regions() -> None:
    operator = block(num_classes=3)
    x = checks.sample(2, 8, 5, 7)
    assert operator.regions is not None
    weights = operator.attention(x, (3, 2))
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2).double())
    relation = operator.responsibilities(x)[:, :, 3, 2]
    shares = torch.softmax(operator.regions(x).flatten(2), dim=2)
    torch.testing.assert_close(weights.flatten(1), (relation.unsqueeze(2) * shares).sum(1))
    read: list[torch.Tensor] = []
    operator.core.value.register_forward_hook(lambda module, inputs, output: read.append(output.flatten(2)))
    operator.core.register_forward_hook(lambda module, inputs, output: read.append(output))
    operator(x)
    values, out = read
    torch.testing.assert_close((relation.unsqueeze(1) * values).sum(2), out[:, :, 3 * 7 + 2])


@pytest.mark.parametrize("settings", [{"scale": False}, {"width": 12, "num_classes": 1}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    for implementation in IMPLEMENTATIONS:
        results = checks.run_checks(
            ObjectContextual,
            only=("shapes", "macs", "attention", "responsibilities", "core", "auxiliary", "small_batch"),
            settings={**settings, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


def test_without_classes_there_is_nothing_to_read_from() -> None:
    operator = ObjectContextual(8, num_classes=None)
    for call in (operator, operator.forward_with_auxiliary, operator.responsibilities):
        with pytest.raises(ValueError, match="ObjectContextual: expected prior_logits or a block with num_classes"):
            call(torch.ones(1, 8, 5, 7))
    with pytest.raises(ValueError, match="ObjectContextual: expected a block with num_classes to count"):
        operator.macs(5, 7)


@pytest.mark.parametrize("shape", [(1, 3, 5, 8), (2, 3, 5, 7), (1, 3, 35)])
def test_prior_logits_have_to_fit_the_map(shape: tuple[int, ...]) -> None:
    message = r"ObjectContextual: expected prior_logits \(1, K, 5, 7\), got "
    with pytest.raises(ValueError, match=message):
        ObjectContextual(8, num_classes=None)(torch.ones(1, 8, 5, 7), torch.ones(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "ObjectContextual: expected num_classes >= 1, got 0"),
        ({"width": 0}, "ObjectContextual: expected width >= 1, got 0"),
        ({"implementation": "fast"}, "ScaledAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectContextual(8, **{"num_classes": 3, **settings})


def test_there_is_one_stage() -> None:
    with pytest.raises(IndexError, match="ObjectContextual: expected stage 0 or -1, got 1"):
        block(num_classes=3).responsibilities(checks.sample(1, 8, 2, 2), 1)
