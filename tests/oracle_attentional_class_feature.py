"""Attentional class feature, written out pixel by pixel and class by class."""

from __future__ import annotations

import torch
from oracle_layers import Map, Parameters, affine, concatenate, conv_norm_relu, each, normalise, relu
from torch import Tensor


def probabilities(x: Map, parameters: Parameters) -> Map:
    """Of the coarse segmentation, over the classes of each pixel."""

    def share(logits: Tensor) -> Tensor:
        kernels = [torch.exp(logit) for logit in logits]
        return torch.stack([kernel / sum(kernels) for kernel in kernels])

    return each(share, affine(x, parameters, "classes"))


def centres(x: Map, shares: Map) -> list[Tensor]:
    """`c_k = sum_j p_kj x_j / sum_j p_kj`."""
    pixels = [pixel for row in x for pixel in row]
    weights = [share for row in shares for share in row]
    found = []
    for k in range(len(weights[0])):
        total = sum(weight[k] for weight in weights)
        terms = [weight[k] * pixel for weight, pixel in zip(weights, pixels, strict=True)]
        found.append(torch.stack(terms).sum(0) / total)
    return found


def block(x: Map, parameters: Parameters) -> Map:
    """The block in evaluation."""
    shares = probabilities(x, parameters)
    means = centres(conv_norm_relu(x, parameters, "reduce"), shares)
    weight = parameters["core.refine.weight"][:, :, 0]

    def read(share: Tensor) -> Tensor:
        return weight @ torch.stack([p * centre for p, centre in zip(share, means, strict=True)]).sum(0)

    feature = relu(normalise(each(read, shares), parameters, "norm"))
    return conv_norm_relu(concatenate(feature, x), parameters, "fuse")
