"""Equations 1-6 of Non-local Neural Networks, written out pair by pair."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def max_pool(x: Tensor) -> Tensor:
    """Maxima `(C, H // 2, W // 2)` of the 2x2 cells of `(C, H, W)`."""
    rows = [
        torch.stack([x[:, i : i + 2, j : j + 2].amax((1, 2)) for j in range(0, x.shape[2] - 1, 2)], 1)
        for i in range(0, x.shape[1] - 1, 2)
    ]
    return torch.stack(rows, 1)


def block(
    x: Tensor, parameters: dict[str, Tensor], pairwise: str, *, scale: bool = True, subsample: bool = False
) -> Tensor:
    """The block in evaluation on `(B, C, H, W)`."""
    return torch.stack([_image(image, parameters, pairwise, scale, subsample) for image in x])


def _image(x: Tensor, parameters: dict[str, Tensor], pairwise: str, scale: bool, subsample: bool) -> Tensor:
    channels, height, width = x.shape
    pool = max_pool if subsample else torch.nn.Identity()

    def project(name: str) -> Tensor:
        weight, bias = parameters[f"{name}.weight"][:, :, 0, 0], parameters[f"{name}.bias"]
        return (weight @ x.reshape(channels, -1) + bias[:, None]).reshape(-1, height, width)

    def columns(values: Tensor) -> list[Tensor]:
        return list(values.reshape(values.shape[0], -1).unbind(1))

    gaussian = pairwise == "gaussian"
    theta = columns(x if gaussian else project("theta"))
    phi = columns(pool(x if gaussian else project("phi")))
    g = columns(pool(project("g")))
    outputs = []
    for i, query in enumerate(theta):
        weights = torch.stack([_pair(query, key, parameters, pairwise, scale) for key in phi])
        normaliser = weights.sum() if "gaussian" in pairwise else len(phi)
        y = torch.stack([weight * value for weight, value in zip(weights, g, strict=True)]).sum(0) / normaliser
        mapped = parameters["conv_out.weight"][:, :, 0, 0] @ y
        normalised = (mapped - parameters["norm.running_mean"]) / (parameters["norm.running_var"] + 1e-5).sqrt()
        affine = parameters["norm.weight"] * normalised + parameters["norm.bias"]
        outputs.append(x[:, i // width, i % width] + affine)
    return torch.stack(outputs, 1).reshape(channels, height, width)


def _pair(theta: Tensor, phi: Tensor, parameters: dict[str, Tensor], pairwise: str, scale: bool) -> Tensor:
    if pairwise == "concatenation":
        return (parameters["core.concat.weight"].flatten() * torch.cat((theta, phi))).sum().clamp(min=0)
    similarity = (theta * phi).sum()
    if pairwise == "dot_product":
        return similarity
    scaled = scale and pairwise == "embedded_gaussian"
    return torch.exp(similarity / math.sqrt(len(theta)) if scaled else similarity)
