from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnbench.config import Network
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.models.heads import DecodeHead, FCNHead, LinearHead
from attnbench.models.segmentor import Segmentor
from attnbench.models.small import SmallBackbone
from operators.controls import Identity
from operators.interface import AttentionOperator, Auxiliary, OperatorSpec, Source

NETWORK = Network(slot_channels=16, head_channels=8)
SPEC = OperatorSpec(
    name="two_losses",
    title="Two losses",
    source=Source("None", "None", 2024, "https://example.org"),
    reach="pixel",
    growth=0.0,
    auxiliary={"regions": Auxiliary("pixel", 0.7), "classes": Auxiliary("presence", 0.2)},
)


class TwoLosses(AttentionOperator):
    spec = SPEC

    def forward(self, x: Tensor) -> Tensor:
        return x

    def macs(self, height: int, width: int) -> int:
        return 0

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {"regions": x[:, :5], "classes": x[:, :5].mean((2, 3))}


class Forgetful(TwoLosses):
    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {"regions": x[:, :5]}


class Clashing(TwoLosses):
    spec = dataclasses.replace(SPEC, auxiliary={"auxiliary_head": Auxiliary("pixel", 1.0)})


def segmentor_of(operator: AttentionOperator, auxiliary_head: FCNHead | None = None, **settings) -> Segmentor:
    return Segmentor(SmallBackbone(), DecodeHead(64, 5, operator, channels=8), auxiliary_head, **settings).eval()


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 9)])
def test_logits_have_the_images_size(size):
    segmentor = segmentor_of(Identity(16))
    images = torch.randn(2, 3, *size)
    logits = segmentor(images)
    assert tuple(logits.shape) == (2, 5, *size)
    coarse = segmentor.decode_head(segmentor.backbone(images)[1])
    expected = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_without_extra_losses_there_are_none():
    segmentor = segmentor_of(Identity(16))
    images = torch.randn(2, 3, 33, 47)
    logits, losses = segmentor.forward_with_auxiliary(images)
    assert torch.equal(logits, segmentor(images))
    assert losses == {}


def test_every_extra_loss_comes_with_its_target_and_weight():
    torch.manual_seed(0)
    segmentor = segmentor_of(TwoLosses(16), FCNHead(32, 5, 4), auxiliary_weight=0.4)
    images = torch.randn(2, 3, 33, 47)
    logits, losses = segmentor.forward_with_auxiliary(images)
    assert torch.equal(logits, segmentor(images))
    assert {name: auxiliary for name, (_, auxiliary) in losses.items()} == {
        "regions": Auxiliary("pixel", 0.7),
        "classes": Auxiliary("presence", 0.2),
        "auxiliary_head": Auxiliary("pixel", 0.4),
    }
    auxiliary_features, features = segmentor.backbone(images)
    slot = segmentor.decode_head.reduction(features)
    torch.testing.assert_close(losses["classes"][0], slot[:, :5].mean((2, 3)), rtol=0, atol=0)
    for name, coarse in (
        ("regions", slot[:, :5]),
        ("auxiliary_head", segmentor.auxiliary_head(auxiliary_features)),
    ):
        expected = F.interpolate(coarse, (33, 47), mode="bilinear", align_corners=False)
        torch.testing.assert_close(losses[name][0], expected, rtol=0, atol=0)


def test_the_auxiliary_head_does_not_run_in_forward():
    segmentor = segmentor_of(Identity(16), FCNHead(32, 5, 4))
    calls: list[int] = []
    segmentor.auxiliary_head.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(1, 3, 16, 16)
    segmentor(images)
    assert calls == []
    segmentor.forward_with_auxiliary(images)
    assert calls == [1]


def test_losses_that_do_not_match_the_spec_are_refused():
    with pytest.raises(ValueError, match=r"expected auxiliary logits \['classes', 'regions'\], got \['regions'\]"):
        segmentor_of(Forgetful(16)).forward_with_auxiliary(torch.randn(1, 3, 16, 16))
    with pytest.raises(ValueError, match="expected operator losses of other names, got 'auxiliary_head'"):
        segmentor_of(Clashing(16))


def test_build_segmentor_follows_the_network():
    network = Network(backbone="resnet18", output_stride=16, slot_channels=16, head_channels=8)
    segmentor = build_segmentor("conv1x1", network, 5, auxiliary_weight=0.4).eval()
    assert segmentor.auxiliary == {"auxiliary_head": Auxiliary("pixel", 0.4)}
    assert segmentor.auxiliary_head.classifier.in_channels == 256 // 4
    logits, losses = segmentor.forward_with_auxiliary(torch.randn(1, 3, 50, 33))
    assert tuple(logits.shape) == tuple(losses["auxiliary_head"][0].shape) == (1, 5, 50, 33)
    assert build_segmentor("conv1x1", NETWORK, 5).auxiliary_head is None


def test_build_segmentor_with_the_linear_head():
    segmentor = build_segmentor("identity", dataclasses.replace(NETWORK, head="linear"), 5).eval()
    assert isinstance(segmentor.decode_head, LinearHead)
    images = torch.randn(2, 3, 33, 47)
    logits, losses = segmentor.forward_with_auxiliary(images)
    assert tuple(logits.shape) == (2, 5, 33, 47)
    assert losses == {}


def test_construction_is_bitwise_determined_by_the_seed():
    def built(name: str, seed: int = 3) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build_segmentor(name, NETWORK, 5, auxiliary_weight=0.4).state_dict()

    first, again, other = built("conv3x3"), built("conv3x3"), built("conv3x3", seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decode_head.classifier.weight"], other["decode_head.classifier.weight"])
    identity = built("identity")
    shared = [name for name in identity if name.startswith(("backbone.", "auxiliary_head."))]
    assert len(shared) > 20
    assert all(torch.equal(first[name], identity[name]) for name in shared)


def test_a_negative_or_undefined_auxiliary_weight_is_refused():
    for weight in (-0.1, float("nan")):
        with pytest.raises(UsageError, match="segmentor: expected auxiliary_weight >= 0, got"):
            build_segmentor("conv3x3", NETWORK, 5, auxiliary_weight=weight)
