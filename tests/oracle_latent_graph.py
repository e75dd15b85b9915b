"""LatentGNN, written out pixel by pixel and node by node."""

from __future__ import annotations

import torch
from oracle_layers import Map, Parameters, conv_norm_relu, convolve, each, normalise
from torch import Tensor


def unit(values: Tensor) -> Tensor:
    """A vector over its Euclidean norm; nothing stays nothing."""
    square = (values * values).sum()
    return values / square.sqrt() if square > 0 else torch.zeros_like(values)


def block(x: Map, parameters: Parameters, *, groups: int, symmetric: bool) -> Map:
    """The block in evaluation."""
    u = each(unit, _conv_norm(x, parameters, "down"))
    received = []
    for group in range(groups):
        raw = conv_norm_relu(u, parameters, f"to_latent.{group}")
        if symmetric:
            to_latent = from_latent = each(unit, raw)
        else:
            w = each(unit, _conv_norm(x, parameters, "down_from"))
            to_latent = over_pixels(raw)
            from_latent = each(unit, conv_norm_relu(w, parameters, f"from_latent.{group}"))
        received.append(propagate(u, to_latent, from_latent))
    up = _conv_norm(each(lambda *parts: torch.cat(parts), *received), parameters, "up")
    return each(lambda pixel, message: pixel + parameters["gamma"] * message, x, up)


def over_pixels(weights: Map) -> Map:
    """Each node's weights over their norm on the whole map."""
    pixels = torch.stack([pixel for row in weights for pixel in row], 1)  # (K, N)
    scaled = torch.stack([unit(node) for node in pixels]).unbind(1)
    return [list(scaled[row * len(weights[0]) :][: len(weights[0])]) for row in range(len(weights))]


def propagate(x: Map, to_latent: Map, from_latent: Map) -> Map:
    """`y_i = sum_k b_ki sum_m softmax_m(cos(z_k, z_m)) z_m`, `z_m = sum_j a_mj x_j`."""
    pixels = [pixel for row in x for pixel in row]
    weights = [weight for row in to_latent for weight in row]
    nodes = [
        torch.stack([weight[k] * pixel for weight, pixel in zip(weights, pixels, strict=True)]).sum(0)
        for k in range(len(weights[0]))
    ]
    mixed = []
    for node in nodes:
        kernels = [torch.exp((unit(node) * unit(other)).sum()) for other in nodes]
        mixed.append(torch.stack([k / sum(kernels) * other for k, other in zip(kernels, nodes, strict=True)]).sum(0))
    return each(lambda weight: torch.stack([b * z for b, z in zip(weight, mixed, strict=True)]).sum(0), from_latent)


def _conv_norm(x: Map, parameters: Parameters, prefix: str) -> Map:
    return normalise(convolve(x, parameters[f"{prefix}.conv.weight"]), parameters, f"{prefix}.norm")
