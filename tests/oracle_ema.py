"""EMANet's equations, written out pixel by pixel and basis by basis."""

from __future__ import annotations

import torch
from torch import Tensor


def expect(pixels: list[Tensor], mu: list[Tensor], inverse_temperature: float = 1.0) -> list[list[Tensor]]:
    """`z_nk = exp(lambda x_n . mu_k) / sum_j exp(lambda x_n . mu_j)`."""
    z = []
    for x in pixels:
        kernels = [torch.exp(inverse_temperature * (x * basis).sum()) for basis in mu]
        z.append([kernel / torch.stack(kernels).sum() for kernel in kernels])
    return z


def maximise(pixels: list[Tensor], z: list[list[Tensor]]) -> list[Tensor]:
    """`mu_k = sum_n z_nk x_n / sum_n z_nk`, scaled to length 1."""
    mu = []
    for k in range(len(z[0])):
        total = torch.stack([row[k] for row in z]).sum()
        mean = torch.stack([row[k] * x for row, x in zip(z, pixels, strict=True)]).sum(0) / total
        mu.append(mean / mean.square().sum().sqrt())
    return mu


def iterate(
    pixels: list[Tensor], bases: list[Tensor], stages: int, inverse_temperature: float = 1.0
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """`Z` and `mu` of the last of `stages` iterations."""
    mu, z = bases, []
    for _ in range(stages):
        z = expect(pixels, mu, inverse_temperature)
        mu = maximise(pixels, z)
    return z, mu


def rebuild(z: list[list[Tensor]], mu: list[Tensor]) -> list[Tensor]:
    """`x~_n = sum_k z_nk mu_k`."""
    return [torch.stack([weight * basis for weight, basis in zip(row, mu, strict=True)]).sum(0) for row in z]


def spherical_k_means(pixels: list[Tensor], bases: list[Tensor], stages: int) -> list[Tensor]:
    """Each pixel goes to its most similar centre; a centre is the mean of its pixels, scaled to length 1."""
    centres = bases
    for _ in range(stages):
        nearest = [max(range(len(centres)), key=lambda k: float(x @ centres[k])) for x in pixels]
        updated = []
        for k in range(len(centres)):
            members = [x for x, owner in zip(pixels, nearest, strict=True) if owner == k]
            mean = torch.stack(members).mean(0) if members else torch.zeros_like(pixels[0])
            updated.append(mean / mean.norm() if members else mean)
        centres = updated
    return centres


def unit(x: Tensor, parameters: dict[str, Tensor], stages: int) -> Tensor:
    """The EMA unit in evaluation on `(B, C, H, W)`, the gradient cut where the authors cut it."""
    batch, channels, height, width = x.shape
    bases = [parameters["core.bases"][0, :, k] for k in range(parameters["core.bases"].shape[2])]
    images = []
    for image in x:
        inputs = [image[:, n // width, n % width] for n in range(height * width)]
        weight, bias = parameters["conv_in.weight"][:, :, 0, 0], parameters["conv_in.bias"]
        pixels = [(weight @ pixel + bias).detach() for pixel in inputs]
        rebuilt = rebuild(*iterate(pixels, bases, stages))
        outputs = []
        for pixel, low_rank in zip(inputs, rebuilt, strict=True):
            mapped = parameters["conv_out.weight"][:, :, 0, 0] @ low_rank.detach().clamp(min=0)
            deviation = (parameters["norm.running_var"] + 1e-5).sqrt()
            normalised = (mapped - parameters["norm.running_mean"]) / deviation
            affine = parameters["norm.weight"] * normalised + parameters["norm.bias"]
            outputs.append((pixel + affine).clamp(min=0))
        images.append(torch.stack(outputs, 1))
    return torch.stack(images).reshape(batch, channels, height, width)
