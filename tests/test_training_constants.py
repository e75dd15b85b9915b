"""What operators start from and are trained with. Oracles run in evaluation, on weights that both sides share: draws of
weights, weights of losses and constants of normalisation show here alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from operators import get, names
from operators.atrous_pyramid import AtrousSpatialPyramidPooling, SeparableAtrousSpatialPyramidPooling
from operators.axial_attention import AxialLayer
from operators.cbam import ConvolutionalBlockAttention
from operators.dual import DualAttention
from operators.ema import EMAUnit
from operators.hamburger import NonNegativeFactorization
from operators.layers import conv_norm_relu
from operators.non_local import NonLocal
from operators.object_context_pooling import BaseObjectContext
from operators.selective_scan import SelectiveScan2D
from operators.soft_clustering import ConceptDecomposition, VectorQuantization

AUXILIARY = {
    "attentional_class_feature": {"classes": ("pixel", pytest.approx(0.6 / 0.7))},
    "context_encoding": {"presence": ("presence", 0.2)},
    "dual": {"position": ("pixel", 1.0), "channel": ("pixel", 1.0)},
    "object_contextual": {"regions": ("pixel", 0.4)},
}


def spread(weight: torch.Tensor) -> float:
    return float(weight.detach().std())


def test_losses_of_operators_weigh_what_their_authors_say() -> None:
    declared = {name: get(name).spec.auxiliary for name in names()}
    assert {
        name: {key: (loss.target, loss.weight) for key, loss in losses.items()}
        for name, losses in declared.items()
        if losses
    } == AUXILIARY


@pytest.mark.parametrize("operator", [AtrousSpatialPyramidPooling, SeparableAtrousSpatialPyramidPooling])
def test_pyramids_are_dilated_as_at_stride_8(operator: Any) -> None:
    assert operator(8).dilations == (1, 12, 24, 36)


def test_bases_of_ema_average_over_the_batch() -> None:
    assert EMAUnit(8).core.update == "batch_mean"


@pytest.mark.parametrize("core", [NonNegativeFactorization, VectorQuantization, ConceptDecomposition])
def test_bases_that_training_draws_are_of_each_image_and_of_length_one(core: Any) -> None:
    bases = core(8, num_bases=64).train().initial(torch.zeros(2, 8, 5))
    torch.testing.assert_close(bases.norm(dim=1), torch.ones(2, 64))
    assert not torch.allclose(bases[0], bases[1])
    assert bool((bases < 0).any()) != core.non_negative


def test_non_local_starts_narrow_and_as_the_identity() -> None:
    block = NonLocal(256)
    for layer in (block.g, block.theta, block.phi):
        assert spread(layer.weight) == pytest.approx(0.01, rel=0.05)
        assert not layer.bias.any()
    assert not block.norm.weight.any()


def test_steps_of_the_scan_are_drawn_evenly_on_a_logarithmic_scale() -> None:
    delta = SelectiveScan2D(512).core.steps(torch.zeros(1, 4, 512, 1)).detach().log()
    for share in (0.25, 0.5, 0.75):
        expected = math.log(1e-3) + share * math.log(100)
        assert float(delta.quantile(share)) == pytest.approx(expected, abs=0.3)


def test_axial_attention_draws_as_its_authors() -> None:
    layer = AxialLayer(256, axis="width", num_heads=4)
    assert spread(layer.relative) == pytest.approx(64**-0.5, rel=0.05)
    assert spread(layer.project.weight) == pytest.approx(256**-0.5, rel=0.05)


def test_object_context_draws_keys_as_pytorch_does() -> None:
    (pooling,) = (module for module in BaseObjectContext(256).modules() if hasattr(module, "key"))
    key = next(layer for layer in pooling.key.modules() if isinstance(layer, nn.Conv2d))
    assert float(key.weight.detach().abs().max()) <= 256**-0.5
    assert spread(key.weight) == pytest.approx((3 * 256) ** -0.5, rel=0.05)


def test_convolutions_before_a_rectifier_keep_the_variance_of_gradients() -> None:
    assert spread(conv_norm_relu(64, 128, 3).conv.weight) == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.05)


def test_normalisation_of_the_spatial_gate_moves_slowly() -> None:
    (norm,) = (layer for layer in ConvolutionalBlockAttention(32).modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.momentum == 0.01


def test_branches_of_dual_drop_a_tenth_of_their_channels() -> None:
    for branch in DualAttention(16, num_classes=3).auxiliary.values():
        assert branch[0].p == 0.1
