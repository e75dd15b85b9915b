"""EMANet as its paper describes it: a dilated ResNet and the EMA unit between 3x3 convolutions."""

from __future__ import annotations

from attnbench.config import Stem
from attnbench.models.backbone import ResNet
from attnbench.models.heads import DecodeHead
from attnbench.models.segmentor import Segmentor
from operators.ema import EMAUnit, Update


class EMAHead(DecodeHead):
    """The decode head of EMANet: a `DecodeHead` whose operator is the EMA unit.

    Equation: `logits = W Dropout2d(ConvNormReLU(EMAU(ConvNormReLU(features)))) + b`, both convolutions 3x3.

    Args:
        in_channels: channels of the features, 2048 for ResNet-50 and deeper.
        num_classes: classes of the logits.
        channels: channels in front of the classifier.
        ema_channels: channels of the unit.
        num_bases: bases `K` of the unit.
        stages: iterations `T` of the unit.
        momentum: weight of the batch in the moving average of the bases.
        update: what the moving average scales to length 1; see `EMAUnit`.
        concat_input: whether the features are concatenated in front of a further convolution.
        dropout: rate at which whole channels are dropped in front of the classifier.

    Shape:
        `(B, in_channels, H, W) -> (B, num_classes, H, W)`.

    Cost:
        That of `DecodeHead` with `C = ema_channels`, and the unit's.

    Raises:
        UsageError: see `DecodeHead`.
        ValueError: see `EMAUnit`.

    Source:
        Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV 2019, section
        4.

    Deviations:
        mmsegmentation concatenates the input and trains with an auxiliary head, the authors do neither; the
        default is the authors'.

    Example:
        >>> import torch
        >>> head = EMAHead(64, 5, channels=8, ema_channels=16, num_bases=4)
        >>> tuple(head(torch.zeros(2, 64, 7, 9)).shape)
        (2, 5, 7, 9)
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 256,
        ema_channels: int = 512,
        num_bases: int = 64,
        stages: int = 3,
        momentum: float = 0.1,
        update: Update = "batch_mean",
        concat_input: bool = False,
        dropout: float = 0.1,
    ) -> None:
        unit = EMAUnit(ema_channels, num_bases=num_bases, stages=stages, momentum=momentum, update=update)
        super().__init__(in_channels, num_classes, unit, channels=channels, concat_input=concat_input, dropout=dropout)


def emanet(
    num_classes: int,
    *,
    depth: int = 101,
    stem: Stem = "64-64-128",
    multi_grid: tuple[int, ...] = (1, 2, 4),
    output_stride: int = 8,
    base_channels: int = 64,
    channels: int = 256,
    ema_channels: int = 512,
    num_bases: int = 64,
    stages: int = 3,
    momentum: float = 0.1,
    update: Update = "batch_mean",
    concat_input: bool = False,
    dropout: float = 0.1,
) -> Segmentor:
    """EMANet: a ResNet at output stride 8, `EMAHead`, and bilinear upsampling by 8 to the image's size.

    Args:
        num_classes: classes of the logits.
        depth: 18, 34, 50 or 101.
        stem: first layers of the ResNet.
        multi_grid: dilation multipliers of the last stage's blocks; a ResNet-18 has two.
        output_stride: 8 or 16.
        base_channels: width of the ResNet's first stage.
        channels: channels in front of the classifier.
        ema_channels: channels of the EMA unit.
        num_bases: bases of the EMA unit.
        stages: iterations of the EMA unit.
        momentum: weight of the batch in the moving average of the bases.
        update: what the moving average scales to length 1; see `EMAUnit`.
        concat_input: whether the features are concatenated in front of a further convolution.
        dropout: rate at which whole channels are dropped in front of the classifier.

    Shape:
        `(B, 3, H, W) -> (B, num_classes, H, W)`.

    Raises:
        UsageError: see `ResNet` and `DecodeHead`.
        ValueError: see `EMAUnit`.

    Source:
        Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV 2019, figure
        2 and section 4.

    Deviations:
        The output stride is 8, as the paper has it. A widespread listing asks torchvision for
        `replace_stride_with_dilation=[1, 2, 4]`: these are read as three truths, which dilates the second
        stage too and leaves stride 4, so that upsampling by 8 doubles the image. Logits are resized with
        `align_corners=False`, where the authors align corners.

    Example:
        >>> import torch
        >>> network = emanet(21, depth=18, multi_grid=(1, 2), base_channels=8, ema_channels=16).eval()
        >>> tuple(network(torch.zeros(1, 3, 65, 97)).shape)
        (1, 21, 65, 97)
    """
    backbone = ResNet(depth, output_stride=output_stride, stem=stem, multi_grid=multi_grid, base_channels=base_channels)
    head = EMAHead(
        backbone.channels,
        num_classes,
        channels=channels,
        ema_channels=ema_channels,
        num_bases=num_bases,
        stages=stages,
        momentum=momentum,
        update=update,
        concat_input=concat_input,
        dropout=dropout,
    )
    return Segmentor(backbone, head)
