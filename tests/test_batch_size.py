"""Batches of 1 and of 8 agree: logits within 1e-5, and all but 1e-5 of the pixels, for every operator there is."""

from __future__ import annotations

import pytest
import torch

from attnbench.config import WHOLE, Inference, Network
from attnbench.evaluation import segment
from attnbench.models.build import build_segmentor
from operators import registry

SIZE = (48, 64)
WINDOWS = Inference("slide", (32, 32), (21, 21), scales=(0.75, 1.0), flip=True)


def expect_agreement(model, images, inference=WHOLE):
    with torch.inference_mode():
        together = segment(model, images, inference)
        alone = torch.cat([segment(model, image[None], inference) for image in images])
    assert torch.isfinite(together).all() and together.std() > 0
    assert (together - alone).abs().max() <= 1e-5
    assert (together.argmax(1) != alone.argmax(1)).double().mean() <= 1e-5


def lively(operator, network):
    """The network with weights and statistics that hide no branch, in evaluation mode."""
    torch.manual_seed(0)
    model = build_segmentor(operator, network, 5)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    for parameter in model.decode_head.parameters():
        if parameter.ndim < 2:
            torch.nn.init.uniform_(parameter, 0.1, 0.5)
    return model.eval()


@pytest.mark.parametrize("operator", registry.names())
def test_one_and_eight_agree_for_every_operator(operator):
    images = torch.randn(8, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    expect_agreement(lively(operator, Network()), images)


@pytest.mark.parametrize("inference", [WHOLE, WINDOWS], ids=["whole", "windows"])
def test_one_and_eight_agree_on_a_resnet(inference):
    network = Network(backbone="resnet18", output_stride=8)
    images = torch.randn(8, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    expect_agreement(lively("ema", network), images, inference)
