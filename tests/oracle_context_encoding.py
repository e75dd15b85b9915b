"""The context encoding module, written out residual by residual."""

from __future__ import annotations

import torch
from torch import Tensor


def assignment(pixels: list[Tensor], codewords: Tensor, scale: Tensor) -> list[list[Tensor]]:
    """`a_ik = exp(s_k ||x_i - d_k||^2) / sum_j exp(s_j ||x_i - d_j||^2)`."""
    weights = []
    for pixel in pixels:
        kernels = [torch.exp(s * (pixel - d).square().sum()) for s, d in zip(scale, codewords, strict=True)]
        weights.append([kernel / sum(kernels) for kernel in kernels])
    return weights


def encoders(pixels: list[Tensor], codewords: Tensor, scale: Tensor) -> list[Tensor]:
    """`e_k = sum_i a_ik (x_i - d_k)`."""
    weights = assignment(pixels, codewords, scale)
    return [
        torch.stack([row[k] * (pixel - codeword) for row, pixel in zip(weights, pixels, strict=True)]).sum(0)
        for k, codeword in enumerate(codewords)
    ]


def encode(x: Tensor, parameters: dict[str, Tensor], aggregation: str = "mean") -> Tensor:
    """The encoded semantics `(C,)` of `(C, H, W)`."""
    weight = parameters["project.conv.weight"][:, :, 0, 0]
    projected = [_normalise(weight @ pixel, parameters, "project.norm").relu() for pixel in x.flatten(1).unbind(1)]
    parts = encoders(projected, parameters["core.codewords"], parameters["core.scale"])
    normalised = [_normalise(part, parameters, "norm", k).relu() for k, part in enumerate(parts)]
    total = torch.stack(normalised).sum(0)
    return total / len(parts) if aggregation == "mean" else total


def block(x: Tensor, parameters: dict[str, Tensor], *, aggregation: str = "mean", residual: bool = True) -> Tensor:
    """The block in evaluation on `(B, C, H, W)`."""
    images = []
    for image in x:
        encoded = encode(image, parameters, aggregation)
        gate = 1 / (1 + torch.exp(-(parameters["gate.weight"] @ encoded + parameters["gate.bias"])))
        gated = [pixel * gate for pixel in image.flatten(1).unbind(1)]
        if residual:
            gated = [(pixel + part).clamp(min=0) for pixel, part in zip(image.flatten(1).unbind(1), gated, strict=True)]
        images.append(torch.stack(gated, 1).reshape(image.shape))
    return torch.stack(images)


def _normalise(x: Tensor, parameters: dict[str, Tensor], name: str, channel: int | slice = slice(None)) -> Tensor:
    mean, variance, gain, shift = (
        parameters[f"{name}.{key}"][channel] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return gain * (x - mean) / (variance + 1e-5).sqrt() + shift
