from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from attnbench.config import Network
from attnbench.errors import UsageError
from attnbench.models.backbone import (
    BasicBlock,
    Bottleneck,
    ResNet,
    SmallBackbone,
    build_backbone,
)

DEPTHS = (18, 34, 50, 101)
STEMS = {"7x7": 64, "32-32-64": 64, "64-64-128": 128}
TRUNK_PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def randomised(module: nn.Module) -> nn.Module:
    """Noise in every norm, so that a block that loses a term shows."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_(std=0.1)
    return module.eval()


def dilations(backbone: ResNet, stage: int) -> list[int]:
    """Dilation, and padding, of each block's 3x3 convolution that carries the stride."""
    found = []
    for block in getattr(backbone, f"layer{stage}"):
        conv = block.conv2 if isinstance(block, Bottleneck) else block.conv1
        assert conv.kernel_size == (3, 3)
        assert conv.padding == conv.dilation
        found.append(conv.dilation[0])
    return found


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("depth", DEPTHS)
def test_features_have_the_declared_channels_and_stride_at_odd_sizes(depth, output_stride, stem):
    backbone = ResNet(depth, output_stride=output_stride, stem=stem, base_channels=4).eval()
    expansion = 1 if depth < 50 else 4
    assert (backbone.auxiliary_channels, backbone.channels) == (16 * expansion, 32 * expansion)
    assert backbone.output_stride == output_stride
    for height, width in [(65, 97), (33, 50), (1, 7)]:
        with torch.no_grad():
            auxiliary, features = backbone(torch.randn(1, 3, height, width))
        size = (math.ceil(height / output_stride), math.ceil(width / output_stride))
        assert tuple(auxiliary.shape) == (1, backbone.auxiliary_channels, *size)
        assert tuple(features.shape) == (1, backbone.channels, *size)


@pytest.mark.parametrize("depth", DEPTHS)
def test_trunk_has_as_many_parameters_as_torchvisions_without_fc(depth):
    with torch.device("meta"):
        backbone = ResNet(depth)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == TRUNK_PARAMETERS[depth]


def test_resnet18_has_torchvisions_keys():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", *(f"bn1.{name}" for name in norm)}
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            prefix = f"layer{stage}.{block}"
            expected |= {f"{prefix}.conv{index}.weight" for index in (1, 2)}
            expected |= {f"{prefix}.bn{index}.{name}" for index in (1, 2) for name in norm}
        if stage > 1:
            expected.add(f"layer{stage}.0.downsample.0.weight")
            expected |= {f"layer{stage}.0.downsample.1.{name}" for name in norm}
    with torch.device("meta"):
        assert set(ResNet(18).state_dict()) == expected


def test_bottleneck_carries_the_stride_in_its_3x3_convolution():
    block = ResNet(50, base_channels=4).layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))
    assert block.downsample[0].stride == (2, 2)


@pytest.mark.parametrize("depth", DEPTHS)
def test_dilations_follow_torchvisions_convention(depth):
    stages = BLOCKS[depth]
    dense = ResNet(depth, base_channels=2)
    assert dilations(dense, 2) == [1] * stages[1]
    assert dilations(dense, 3) == [1] + [2] * (stages[2] - 1)
    assert dilations(dense, 4) == [2] + [4] * (stages[3] - 1)
    coarse = ResNet(depth, output_stride=16, base_channels=2)
    assert dilations(coarse, 3) == [1] * stages[2]
    assert dilations(coarse, 4) == [1] + [2] * (stages[3] - 1)


def test_dilation_is_not_contracted_where_the_flag_is_off():
    backbone = ResNet(50, base_channels=2, contract_dilation=False)
    assert dilations(backbone, 3) == [2] * 6
    assert dilations(backbone, 4) == [4] * 3


def test_multi_grid_multiplies_the_last_stage():
    assert dilations(ResNet(101, base_channels=2, multi_grid=(1, 2, 4)), 4) == [2, 8, 16]
    assert dilations(ResNet(101, base_channels=2, multi_grid=(1, 2, 4)), 3) == [1] + [2] * 22
    deeplab = ResNet(50, base_channels=2, multi_grid=(1, 2, 4), contract_dilation=False)
    assert dilations(deeplab, 4) == [4, 8, 16]
    assert dilations(ResNet(18, base_channels=2, multi_grid=(1, 2), output_stride=16), 4) == [1, 4]


@pytest.mark.parametrize(("depth", "settings"), [(18, {"dilate_both": True}), (34, {"dilate_both": True}), (50, {})])
def test_smaller_output_stride_computes_the_same_features_more_densely(depth, settings):
    torch.manual_seed(0)
    dense = randomised(ResNet(depth, base_channels=4, **settings).double())
    coarse = randomised(ResNet(depth, base_channels=4, output_stride=16, **settings).double())
    coarse.load_state_dict(dense.state_dict())
    images = torch.randn(1, 3, 73, 90, dtype=torch.float64)
    with torch.no_grad():
        for fine, rough in zip(dense(images), coarse(images), strict=True):
            torch.testing.assert_close(fine[..., ::2, ::2], rough, rtol=1e-9, atol=1e-9)


def test_mmsegmentations_basic_block_dilates_the_first_convolution_alone():
    backbone = ResNet(18, base_channels=2)
    assert [block.conv2.dilation for block in backbone.layer4] == [(1, 1), (1, 1)]
    both = ResNet(18, base_channels=2, dilate_both=True)
    assert [block.conv2.dilation for block in both.layer4] == [(4, 4), (4, 4)]
    assert [block.conv2.dilation for block in both.layer2] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_features_of_several_stages_are_their_outputs_at_the_size_of_the_last(output_stride):
    backbone = ResNet(18, output_stride=output_stride, base_channels=2, feature_stages=(1, 2, 3, 4)).eval()
    images = torch.randn(2, 3, 73, 90)
    outputs = backbone.stages(images)
    auxiliary, features = backbone(images)
    assert torch.equal(auxiliary, outputs[2])
    assert features.shape[1] == backbone.channels == 2 + 4 + 8 + 16
    for output, part in zip(outputs, features.split([2, 4, 8, 16], dim=1), strict=True):
        expected = nn.functional.interpolate(output, features.shape[2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-6)
    alone = ResNet(18, output_stride=output_stride, base_channels=2).eval()
    alone.load_state_dict(backbone.state_dict())
    assert torch.equal(alone(images)[1], features[:, -16:])


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_block_adds_its_input_before_the_last_relu(block):
    layer = block(8 * block.expansion, 8).eval()
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 8 * block.expansion, 5, 3)
    assert layer.downsample is None
    torch.testing.assert_close(layer(x), x.relu(), rtol=0, atol=0)


def test_construction_is_bitwise_determined_by_the_seed():
    def built(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return ResNet(18, base_channels=4, stem="64-64-128").state_dict()

    first, again, other = built(1), built(1), built(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layer4.1.conv2.weight"], other["layer4.1.conv2.weight"])


def test_convolutions_are_drawn_from_kaimings_distribution():
    torch.manual_seed(0)
    weight = ResNet(18).layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)
    assert torch.equal(ResNet(18, base_channels=4).layer4[1].bn2.weight, torch.ones(32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 20}, r"ResNet: expected depth in \(18, 34, 50, 101\), got 20"),
        ({"output_stride": 4}, r"ResNet: expected output_stride in \(8, 16\), got 4"),
        ({"stem": "32-32-46"}, "ResNet: unknown stem '32-32-46'; did you mean '32-32-64'"),
        ({"multi_grid": (1, 2, 4)}, r"ResNet: expected multi_grid with 2 positive .* got \(1, 2, 4\)"),
        ({"multi_grid": (0, 2)}, r"ResNet: expected multi_grid with 2 positive .* got \(0, 2\)"),
        ({"base_channels": 0}, "ResNet: expected base_channels >= 1, got 0"),
        ({"depth": 50, "dilate_both": True}, "ResNet: expected dilate_both with depth 18 or 34"),
        ({"feature_stages": (2, 3)}, r"ResNet: expected feature_stages of 1 to 4 that rise to 4, got \(2, 3\)"),
        ({"feature_stages": (3, 2, 4)}, r"expected feature_stages of 1 to 4 that rise to 4, got \(3, 2, 4\)"),
        ({"feature_stages": (0, 4)}, r"expected feature_stages of 1 to 4 that rise to 4, got \(0, 4\)"),
        ({"feature_stages": ()}, r"expected feature_stages of 1 to 4 that rise to 4, got \(\)"),
    ],
)
def test_resnet_refuses_what_does_not_exist(settings, message):
    with pytest.raises(UsageError, match=message):
        ResNet(**{"depth": 18, **settings})


def test_small_backbone_sees_exactly_its_receptive_field():
    torch.manual_seed(0)
    backbone = SmallBackbone().double().eval()
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.abs_()
    images = torch.rand(1, 3, 48, 52, dtype=torch.float64, requires_grad=True)
    _, features = backbone(images)
    assert tuple(features.shape) == (1, 64, 12, 13)
    features[0, :, 6, 5].sum().backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    field = SmallBackbone.receptive_field
    assert field == 15
    assert (rows[0].item(), rows[-1].item()) == (24 - 7, 24 + 7)
    assert (columns[0].item(), columns[-1].item()) == (20 - 7, 20 + 7)
    assert seen.sum().item() == field**2


def test_small_backbone_answers_to_the_interface():
    backbone = SmallBackbone((4, 5, 6)).eval()
    auxiliary, features = backbone(torch.randn(2, 3, 21, 11))
    assert (backbone.auxiliary_channels, backbone.channels, backbone.output_stride) == (5, 6, 4)
    assert tuple(auxiliary.shape) == (2, 5, 6, 3)
    assert tuple(features.shape) == (2, 6, 6, 3)


def test_build_backbone_follows_the_network():
    network = Network(backbone="resnet18", output_stride=16, stem="32-32-64", multi_grid=(1, 2), feature_stages=(3, 4))
    backbone = build_backbone(network)
    assert isinstance(backbone, ResNet)
    assert backbone.output_stride == 16
    assert backbone.conv1[6].weight.shape == (64, 32, 3, 3)
    assert dilations(backbone, 4) == [1, 4]
    assert backbone.channels == 256 + 512
    assert isinstance(build_backbone(Network()), SmallBackbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet5"}, "unknown backbone 'resnet5'; did you mean 'resnet50'"),
        ({"output_stride": 16}, "backbone 'small': expected output_stride 4, got 16"),
        ({"stem": "64-64-128"}, "backbone 'small': expected stem '7x7', got '64-64-128'"),
        ({"feature_stages": (3, 4)}, r"backbone 'small': expected feature_stages \(4,\), got \(3, 4\)"),
        ({"multi_grid": (1, 2, 4)}, r"backbone 'small': expected multi_grid of ones, got \(1, 2, 4\)"),
        ({"backbone_weights": "absent.pth"}, "backbone weights: expected an existing file, got 'absent.pth'"),
    ],
)
def test_build_backbone_refuses_what_does_not_fit(changes, message):
    with pytest.raises(UsageError, match=message):
        build_backbone(dataclasses.replace(Network(), **changes))
