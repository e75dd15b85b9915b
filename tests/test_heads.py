from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from attnbench.config import Network
from attnbench.errors import UsageError
from attnbench.models.build import build_head, build_operator
from attnbench.models.heads import DecodeHead, FCNHead, LinearHead
from operators import registry
from operators.controls import Conv1x1, Conv3x3, Identity
from operators.interface import AttentionOperator, OperatorSpec, Source

NETWORK = Network(slot_channels=16, head_channels=8)


class Probe(AttentionOperator):
    """An operator that takes every argument that the harness may hand on, and keeps it."""

    spec = OperatorSpec(
        name="probe_for_heads",
        title="Probe",
        source=Source("None", "None", 2024, "https://example.org"),
        reach="pixel",
        growth=0.0,
        implementations=("reference", "fused"),
    )

    def __init__(self, channels, *, num_classes, num_bases=4, implementation="reference"):
        super().__init__(channels)
        if channels % num_bases:
            raise ValueError(f"Probe: expected channels divisible by {num_bases}, got {channels}")
        self.given = (num_classes, num_bases, implementation)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def macs(self, height: int, width: int) -> int:
        return 0

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self(x), {"extra": x.mean((2, 3))}


class Unfused(AttentionOperator):
    """An operator whose spec promises more than its constructor takes."""

    spec = dataclasses.replace(Probe.spec, name="unfused_for_heads")

    def forward(self, x: Tensor) -> Tensor:
        return x

    def macs(self, height: int, width: int) -> int:
        return 0


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for operator in (Probe, Unfused):
        monkeypatch.setitem(registry._registered, operator.spec.name, operator)


@pytest.mark.parametrize("concat_input", [False, True])
@pytest.mark.parametrize("operator", [Identity, Conv1x1, Conv3x3])
def test_decode_head_gives_logits_at_the_features_size_and_every_parameter_learns(operator, concat_input):
    torch.manual_seed(0)
    head = DecodeHead(12, 5, operator(16), channels=8, concat_input=concat_input)
    features = torch.randn(2, 12, 7, 11)
    logits = head(features)
    assert tuple(logits.shape) == (2, 5, 7, 11)
    logits.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("concat_input", [False, True])
def test_decode_head_is_the_composition_that_it_states(concat_input):
    torch.manual_seed(0)
    operator = Conv3x3(16)
    head = DecodeHead(12, 5, operator, channels=8, concat_input=concat_input).double().eval()
    features = torch.randn(2, 12, 7, 11, dtype=torch.float64)
    out = head.bottleneck(operator(head.reduction(features)))
    if concat_input:
        assert head.fusion is not None
        out = head.fusion(torch.cat([features, out], dim=1))
    torch.testing.assert_close(head(features), head.classifier(out), rtol=0, atol=0)


def test_decode_head_has_the_parameters_of_its_cost():
    def weights(head: nn.Module) -> int:
        return sum(layer.weight.numel() for layer in head.modules() if isinstance(layer, nn.Conv2d))

    plain = 9 * 12 * 16 + 9 * 16 * 8 + 8 * 5
    assert weights(DecodeHead(12, 5, Identity(16), channels=8)) == plain
    assert weights(DecodeHead(12, 5, Identity(16), channels=8, concat_input=True)) == plain + 9 * 20 * 8
    assert weights(FCNHead(12, 5, 8)) == 9 * 12 * 8 + 8 * 5
    assert weights(LinearHead(12, 5)) == 12 * 5


def test_dropout_stands_in_front_of_the_classifier_and_drops_whole_channels():
    torch.manual_seed(0)
    for head in (DecodeHead(12, 5, Identity(16), dropout=0.5), FCNHead(12, 5, 16, dropout=0.5)):
        seen: list[Tensor] = []
        head.classifier.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        features = torch.rand(4, 12, 6, 6)
        head(features)
        dropped = (seen[0] == 0).all(dim=3).all(dim=2)
        assert 0.3 < dropped.float().mean().item() < 0.75
        head.eval()
        assert torch.equal(head(features), head(features))


def test_decode_head_hands_on_the_operators_auxiliary_logits():
    head = DecodeHead(12, 5, Probe(16, num_classes=5), channels=8).eval()
    features = torch.randn(2, 12, 7, 11)
    logits, extra = head.forward_with_auxiliary(features)
    assert torch.equal(logits, head(features))
    assert list(extra) == ["extra"]
    assert torch.equal(extra["extra"], head.reduction(features).mean((2, 3)))


def test_linear_head_is_one_matrix():
    head = LinearHead(12, 5).eval()
    features = torch.randn(2, 12, 7, 11)
    expected = torch.einsum("oc,bchw->bohw", head.classifier.weight[:, :, 0, 0], features)
    torch.testing.assert_close(head(features), expected)
    logits, extra = head.forward_with_auxiliary(features)
    assert torch.equal(logits, head(features))
    assert extra == {}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DecodeHead(4, 0, Identity(4)), "DecodeHead: expected num_classes >= 1, got 0"),
        (
            lambda: DecodeHead(4, 2, Identity(4), dropout=1.0),
            r"DecodeHead: expected dropout in \[0, 1\), got 1.0",
        ),
        (lambda: FCNHead(4, 2, 4, dropout=-0.1), r"FCNHead: expected dropout in \[0, 1\), got -0.1"),
        (lambda: LinearHead(4, 0), "LinearHead: expected num_classes >= 1, got 0"),
    ],
)
def test_heads_refuse_what_makes_no_sense(build, message):
    with pytest.raises(UsageError, match=message):
        build()


def test_build_operator_hands_on_what_the_constructor_declares():
    assert build_operator("probe_for_heads", 16, num_classes=7).given == (7, 4, "reference")
    built = build_operator("probe_for_heads", 16, num_classes=7, implementation="fused", settings={"num_bases": 2})
    assert built.given == (7, 2, "fused")
    assert isinstance(build_operator("conv1x1", 16, num_classes=7), Conv1x1)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("conv3x4", {}, "unknown operator 'conv3x4'; did you mean 'conv3x3'"),
        (
            "probe_for_heads",
            {"settings": {"num_base": 2}},
            "unknown setting 'num_base'; did you mean 'num_bases'",
        ),
        (
            "probe_for_heads",
            {"settings": {"num_classes": 2}},
            "'probe_for_heads': unknown setting 'num_classes'",
        ),
        (
            "probe_for_heads",
            {"settings": {"num_bases": 5}},
            "on 16 channels: Probe: expected channels divisible",
        ),
        ("conv3x3", {"settings": {"stages": 2}}, "operator 'conv3x3': unknown setting 'stages'; it has none"),
        ("conv3x3", {"implementation": "fused"}, r"expected implementation in \('reference',\), got 'fused'"),
        (
            "unfused_for_heads",
            {"implementation": "fused"},
            r"expected implementation in \('reference',\), got 'fus",
        ),
        (
            "probe_for_heads",
            {"implementation": "fast"},
            r"implementation in \('reference', 'fused'\), got 'fast'",
        ),
    ],
)
def test_build_operator_refuses_in_one_line(name, settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        build_operator(name, 16, num_classes=5, **settings)
    assert "\n" not in str(caught.value)


def test_channels_that_do_not_fit_are_a_usage_error():
    with pytest.raises(UsageError, match="operator 'conv3x3' on 0 channels: Conv3x3: expected channels >= 1, got 0"):
        build_operator("conv3x3", 0, num_classes=5)


def test_a_fault_inside_an_operator_is_not_disguised(monkeypatch):
    class Faulty(Probe):
        spec = dataclasses.replace(Probe.spec, name="faulty_for_heads")

        def __init__(self, channels):
            raise TypeError("a fault of its own")

    monkeypatch.setitem(registry._registered, "faulty_for_heads", Faulty)
    with pytest.raises(TypeError, match="a fault of its own"):
        build_operator("faulty_for_heads", 16, num_classes=5)


def test_build_head_follows_the_network():
    head = build_head("conv3x3", 12, dataclasses.replace(NETWORK, concat_input=True, dropout=0.3), 5)
    assert isinstance(head, DecodeHead)
    assert (head.operator.channels, head.classifier.in_channels, head.dropout.p) == (16, 8, 0.3)
    assert head.fusion is not None
    assert isinstance(build_head("identity", 12, NETWORK, 5), DecodeHead)
    linear = build_head("identity", 12, dataclasses.replace(NETWORK, head="linear", dropout=0.2), 5)
    assert isinstance(linear, LinearHead)
    assert (linear.classifier.in_channels, linear.dropout.p) == (12, 0.2)


def test_build_head_refuses_an_operator_without_a_slot_and_an_unknown_head():
    with pytest.raises(UsageError, match=r"head 'linear': expected operator 'identity' .* got 'conv3x3'"):
        build_head("conv3x3", 12, dataclasses.replace(NETWORK, head="linear"), 5)
    with pytest.raises(UsageError, match="unknown head 'liner'; did you mean 'linear'"):
        build_head("identity", 12, dataclasses.replace(NETWORK, head="liner"), 5)
