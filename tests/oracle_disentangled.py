"""The disentangled non-local block, written out pair by pair."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def block(
    x: Tensor,
    parameters: dict[str, Tensor],
    *,
    pairwise: str = "embedded_gaussian",
    scale: bool = True,
    temperature: float = 0.05,
    output: str = "conv",
) -> Tensor:
    """The block in evaluation on `(B, C, H, W)`."""
    return torch.stack([_image(image, parameters, pairwise, scale, temperature, output) for image in x])


def _image(
    x: Tensor, parameters: dict[str, Tensor], pairwise: str, scale: bool, temperature: float, output: str
) -> Tensor:
    pixels = list(x.flatten(1).unbind(1))

    def project(name: str) -> list[Tensor]:
        weight, bias = parameters[f"{name}.weight"][:, :, 0, 0], parameters.get(f"{name}.bias", 0.0)
        return [weight @ pixel + bias for pixel in pixels]

    queries, keys, masks, values = (project(name) for name in ("query", "key", "mask", "value"))
    mean_query, mean_key = torch.stack(queries).mean(0), torch.stack(keys).mean(0)
    exponents = [torch.exp(mask) for mask in masks]
    unary = sum(e / sum(exponents) * value for e, value in zip(exponents, values, strict=True))
    outputs = []
    for pixel, query in zip(pixels, queries, strict=True):
        products = [((query - mean_query) * (key - mean_key)).sum() for key in keys]
        if pairwise == "dot_product":
            weights = [product / len(keys) for product in products]
        else:
            divisor = temperature * (math.sqrt(len(query)) if scale else 1.0)
            kernels = [torch.exp(product / divisor) for product in products]
            weights = [kernel / sum(kernels) for kernel in kernels]
        read = sum(weight * value for weight, value in zip(weights, values, strict=True))
        if output == "gamma":
            outputs.append(pixel + parameters["gamma"] * read + unary)
            continue
        mapped = parameters["conv_out.weight"][:, :, 0, 0] @ (read + unary)
        deviation = (parameters["norm.running_var"] + 1e-5).sqrt()
        normalised = (mapped - parameters["norm.running_mean"]) / deviation
        outputs.append(pixel + parameters["norm.weight"] * normalised + parameters["norm.bias"])
    return torch.stack(outputs, 1).reshape(x.shape)
