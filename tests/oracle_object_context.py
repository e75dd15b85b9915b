"""Object-contextual representations, written out pixel by pixel and region by region."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def block(x: Tensor, parameters: dict[str, Tensor], *, scale: bool = True) -> Tensor:
    """The block in evaluation on `(B, C, H, W)`, with regions from its own classifier."""
    weight, bias = parameters["regions.weight"][:, :, 0, 0], parameters["regions.bias"]
    logits = torch.stack(
        [torch.stack([weight @ pixel + bias for pixel in image.flatten(1).unbind(1)], 1) for image in x]
    )
    return with_prior(x, logits.reshape(len(x), -1, *x.shape[2:]), parameters, scale=scale)


def with_prior(x: Tensor, logits: Tensor, parameters: dict[str, Tensor], *, scale: bool = True) -> Tensor:
    """The block in evaluation on `(B, C, H, W)` and region logits `(B, K, H, W)`."""
    images = zip(x, logits, strict=True)
    return torch.stack([_image(image, prior, parameters, scale) for image, prior in images])


def _image(x: Tensor, logits: Tensor, parameters: dict[str, Tensor], scale: bool) -> Tensor:
    pixels = list(x.flatten(1).unbind(1))
    regions = []
    for scores in logits.flatten(1):
        shares = [torch.exp(score) for score in scores]
        regions.append(sum(share / sum(shares) * pixel for share, pixel in zip(shares, pixels, strict=True)))
    keys = [_twice(region, parameters, "core.key") for region in regions]
    values = [_project(region, parameters, "core.value") for region in regions]
    outputs = []
    for pixel in pixels:
        query = _twice(pixel, parameters, "query")
        divisor = math.sqrt(len(query)) if scale else 1.0
        kernels = [torch.exp((query * key).sum() / divisor) for key in keys]
        read = sum(kernel / sum(kernels) * value for kernel, value in zip(kernels, values, strict=True))
        outputs.append(_project(torch.cat((_project(read, parameters, "up"), pixel)), parameters, "fuse"))
    return torch.stack(outputs, 1).reshape(x.shape)


def _twice(pixel: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    return _project(_project(pixel, parameters, f"{name}.0"), parameters, f"{name}.1")


def _project(pixel: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    mapped = parameters[f"{name}.conv.weight"][:, :, 0, 0] @ pixel
    mean, variance, gain, shift = (
        parameters[f"{name}.norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (gain * (mapped - mean) / (variance + 1e-5).sqrt() + shift).clamp(min=0)
