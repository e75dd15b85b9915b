from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attnbench.errors import UsageError
from attnbench.models.backbone import ResNet
from attnbench.models.emanet import EMAHead, emanet
from operators.ema import EMAUnit

ROOT = Path(__file__).parents[1]
PARITY = Path(os.environ.get("ATTNBENCH_PARITY", ROOT.parent / "shared" / "parity"))
NARROW = {"base_channels": 8, "channels": 16, "ema_channels": 24, "num_bases": 8}


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        network = emanet(21)
        head = EMAHead(2048, 21)
    for built in (network.decode_head, head):
        assert isinstance(built, EMAHead)
        unit = built.operator
        assert isinstance(unit, EMAUnit)
        assert (unit.channels, unit.core.num_bases, unit.core.stages) == (512, 64, 3)
        assert unit.core.momentum == 0.1
        assert built.reduction.conv.weight.shape == (512, 2048, 3, 3)
        assert built.bottleneck.conv.weight.shape == (256, 512, 3, 3)
        assert built.classifier.weight.shape == (21, 256, 1, 1)
        assert built.fusion is None
        assert built.dropout.p == 0.1
    assert network.auxiliary_head is None
    backbone = network.backbone
    assert isinstance(backbone, ResNet)
    assert len(backbone.layer3) == 23
    assert backbone.conv1[6].weight.shape == (128, 64, 3, 3)
    assert [block.conv2.dilation[0] for block in backbone.layer4] == [2, 8, 16]
    assert [block.conv2.dilation[0] for block in backbone.layer3] == [1] + [2] * 22


def test_the_head_costs_what_the_authors_report():
    """43.1 G multiply-accumulates for an image of 513 x 513, 39.9 of them in the first convolution."""
    with torch.device("meta"):
        head = EMAHead(2048, 21)
    first = 65 * 65 * head.reduction.conv.weight.numel()
    assert first / 1e9 == pytest.approx(39.9, abs=0.05)
    assert (first + head.operator.macs(65, 65)) / 1e9 == pytest.approx(43.1, abs=0.05)


@pytest.mark.parametrize("size", [(65, 97), (64, 40)])
def test_logits_have_the_images_size_and_features_stride_8(size):
    network = emanet(5, depth=50, **NARROW).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert tuple(network(images).shape) == (1, 5, *size)
        coarse = network.decode_head(network.backbone(images)[1])
    assert network.backbone.output_stride == 8
    assert tuple(coarse.shape) == (1, 5, -(-size[0] // 8), -(-size[1] // 8))


def test_every_argument_arrives():
    network = emanet(
        5,
        depth=18,
        stem="7x7",
        multi_grid=(1, 2),
        output_stride=16,
        stages=2,
        momentum=0.3,
        update="unnormalized",
        concat_input=True,
        dropout=0.4,
        **NARROW,
    )
    head = network.decode_head
    unit = head.operator
    assert isinstance(unit, EMAUnit)
    assert (unit.channels, unit.core.num_bases, unit.core.stages) == (24, 8, 2)
    assert (unit.core.momentum, unit.core.update) == (0.3, "unnormalized")
    assert (head.classifier.in_channels, head.dropout.p) == (16, 0.4)
    assert head.fusion.conv.in_channels == 64 + 16
    assert network.backbone.output_stride == 16
    assert network.backbone.conv1.kernel_size == (7, 7)
    assert [block.conv1.dilation[0] for block in network.backbone.layer4] == [1, 4]


def test_a_grid_that_does_not_fit_the_depth_is_refused():
    with pytest.raises(UsageError, match=r"expected multi_grid with 2 positive .* ResNet-18, got \(1, 2, 4\)"):
        emanet(5, depth=18)


def test_a_training_step_moves_the_bases_and_every_parameter_that_asks_for_it():
    torch.manual_seed(0)
    network = emanet(5, depth=18, multi_grid=(1, 2), **NARROW)
    before = network.decode_head.operator.core.bases.clone()
    network(torch.randn(2, 3, 65, 65)).square().mean().backward()
    assert not torch.equal(network.decode_head.operator.core.bases, before)
    silent = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert silent == []
    assert not network.decode_head.operator.conv_in.weight.requires_grad


def ours(name: str) -> str:
    """Our name of a parameter of mmsegmentation's EMANet."""
    for theirs, own in (
        ("backbone.stem.7.", "backbone.bn1."),
        ("backbone.stem.", "backbone.conv1."),
        ("decode_head.ema_in_conv.", "decode_head.reduction."),
        ("decode_head.ema_mid_conv.conv.", "decode_head.operator.conv_in."),
        ("decode_head.ema_out_conv.conv.", "decode_head.operator.conv_out."),
        ("decode_head.ema_out_conv.bn.", "decode_head.operator.norm."),
        ("decode_head.ema_module.", "decode_head.operator.core."),
        ("decode_head.conv_cat.", "decode_head.fusion."),
        ("decode_head.conv_seg.", "decode_head.classifier."),
    ):
        if name.startswith(theirs):
            name = own + name.removeprefix(theirs)
            break
    return name.replace(".bn.", ".norm.") if name.startswith("decode_head.") else name


def load_golden(network: nn.Module, golden: dict[str, Tensor]) -> None:
    kept = {name: tensor for name, tensor in golden.items() if not name.startswith("auxiliary_head.")}
    network.load_state_dict({ours(name): tensor for name, tensor in kept.items()})


@pytest.mark.parametrize("wrong", [{}, {"dilate_both": True}, {"contract_dilation": False}])
def test_the_network_computes_what_mmsegmentations_computes(wrong):
    path = PARITY / "segmentors" / "emanet_r18.pt"
    if not path.is_file():
        pytest.skip("mmsegmentation's golden EMANet is not here; set ATTNBENCH_PARITY")
    golden = torch.load(path, weights_only=True)
    network = emanet(5, depth=18, stem="32-32-64", multi_grid=(1, 1), concat_input=True, **NARROW)
    if wrong:
        network.backbone = ResNet(18, stem="32-32-64", base_channels=8, **wrong)
    load_golden(network, golden["state_dict"])
    with torch.no_grad():
        logits = network.eval()(golden["inputs"])
    error = (logits - golden["logits"]).abs().max() / golden["logits"].abs().max()
    assert (error < 1e-4) == (not wrong), error
