"""How a network reads images: whole or in windows, at one scale or several, mirrored or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.config import WHOLE, Inference
from attnbench.ranges import check_inference


def segment(model: nn.Module, images: Tensor, inference: Inference = WHOLE) -> Tensor:
    """Scores of every pixel, whose largest is its class.

    Equation: read once at scale 1, the scores are the logits; otherwise `1/n sum_i softmax(resize(logits_i))` over the
    `n` readings, each resized to the image and mirrored back. In windows, a pixel's logits are the mean over the
    windows that it lies in.

    Args:
        model: images `(B, 3, H, W)` -> logits `(B, classes, H, W)`; its attribute `align_corners`, where it has one,
            is that of the resize.
        images: normalised images.
        inference: windows, scales and mirroring.

    Shape:
        `(B, 3, H, W) -> (B, classes, H, W)`.

    Cost:
        One pass of the network for each scale and direction, and in windows for each window: memory is that of one
        window and of the scores.

    Raises:
        UsageError: if the parts of `inference` do not fit one another.

    Deviations:
        mmsegmentation resizes the image in 8 bits, here it stays in floating point; neither smooths where it shrinks.

    Source:
        mmsegmentation, `EncoderDecoder.slide_inference` and `SegTTAModel`.

    Example:
        >>> import torch
        >>> images = torch.rand(1, 3, 5, 7)
        >>> windows = Inference("slide", crop_size=(4, 4), stride=(3, 3))
        >>> torch.allclose(segment(nn.Identity(), images, windows), images)
        True
    """
    check_inference(inference)
    readings = [(scale, mirrored) for scale in inference.scales for mirrored in (False, True)[: 1 + inference.flip]]
    if readings == [(1.0, False)]:
        return _read(model, images, inference)
    align = bool(getattr(model, "align_corners", False))
    size = (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    for scale, mirrored in readings:
        read = _resized(images, _scaled(size, scale), align_corners=False)
        logits = _read(model, read.flip(-1) if mirrored else read, inference).float()
        if mirrored:
            logits = logits.flip(-1)
        scores = _resized(logits, size, align_corners=align).softmax(1)
        total = scores if total is None else total.add_(scores)
    assert total is not None
    return total.div_(len(readings))


class Reading(nn.Module):
    """A network with the way in which it reads images: `segment` as a module, to be measured.

    Args:
        model: the network.
        inference: windows, scales and mirroring.

    Shape:
        `(B, 3, H, W) -> (B, classes, H, W)`.
    """

    def __init__(self, model: nn.Module, inference: Inference = WHOLE) -> None:
        super().__init__()
        self.model, self.inference = model, inference

    def forward(self, images: Tensor) -> Tensor:
        """Scores of every pixel."""
        return segment(self.model, images, self.inference)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in evaluation mode; afterwards every module has the training flag it had."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width times `scale`, halves rounded up, and at least one."""
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def _resized(values: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)


def _read(model: nn.Module, images: Tensor, inference: Inference) -> Tensor:
    """Logits of images at one scale."""
    if inference.mode == "slide":
        assert inference.crop_size is not None and inference.stride is not None
        rows, columns = (
            spans(length, window, stride)
            for length, window, stride in zip(images.shape[-2:], inference.crop_size, inference.stride, strict=True)
        )
        if len(rows) * len(columns) > 1:
            return _read_windows(model, images, rows, columns)
    logits: Tensor = model(images)
    return logits


def _read_windows(model: nn.Module, images: Tensor, rows: list[slice], columns: list[slice]) -> Tensor:
    total: Tensor | None = None
    count = images.new_zeros(images.shape[-2:])
    for row in rows:
        for column in columns:
            logits = model(images[..., row, column]).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *images.shape[-2:])
            total[..., row, column] += logits
            count[row, column] += 1
    assert total is not None
    return total.div_(count)


def spans(length: int, window: int, stride: int) -> list[slice]:
    """Where windows lie along one side: every `stride`, the last one moved back to end with the image.

    Args:
        length: pixels of the image.
        window: pixels of the window.
        stride: pixels from one window to the next.

    Example:
        >>> spans(10, 4, 3), spans(11, 4, 3)[-1], spans(3, 4, 3)
        ([slice(0, 4, None), slice(3, 7, None), slice(6, 10, None)], slice(7, 11, None), [slice(0, 3, None)])
    """
    count = -(-max(length - window, 0) // stride) + 1
    stops = (min(index * stride + window, length) for index in range(count))
    return [slice(max(stop - window, 0), stop) for stop in stops]
