"""Global reasoning unit, written out pixel by pixel and node by node."""

from __future__ import annotations

import torch
from oracle_layers import Map, Parameters, affine, each
from torch import Tensor


def block(x: Map, parameters: Parameters, *, normalize: bool = True, rectify: bool = True) -> Map:
    """The unit in evaluation."""
    weights = affine(x, parameters, "projection")
    nodes = project(x, weights, parameters, normalize=normalize)
    reasoned = reason(nodes, parameters, rectify=rectify)
    extend = parameters["core.extend.weight"][:, :, 0]
    mean, variance, gain, shift = (
        parameters[f"norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )

    def broadcast(pixel: Tensor, weight: Tensor) -> Tensor:
        back = torch.stack([share * node for share, node in zip(weight, reasoned, strict=True)]).sum(0)
        return pixel + gain * (extend @ back - mean) / (variance + 1e-4).sqrt() + shift

    return each(broadcast, x, weights)


def project(x: Map, weights: Map, parameters: Parameters, *, normalize: bool) -> list[Tensor]:
    """`v_k = sum_j b_kj (W_s x_j + b_s)`, or the mean."""
    weight, bias = parameters["core.state.weight"][:, :, 0], parameters["core.state.bias"]
    states = [weight @ pixel + bias for row in x for pixel in row]
    shares = [share for row in weights for share in row]
    nodes = []
    for k in range(len(shares[0])):
        total = torch.stack([share[k] * state for share, state in zip(shares, states, strict=True)]).sum(0)
        nodes.append(total / len(states) if normalize else total)
    return nodes


def reason(nodes: list[Tensor], parameters: Parameters, *, rectify: bool) -> list[Tensor]:
    """`z_k = W_g ReLU(v_k - sum_m A_km v_m - a_k)`."""
    adjacency, bias = parameters["core.adjacency.weight"][:, :, 0], parameters["core.adjacency.bias"]
    update = parameters["core.update.weight"][:, :, 0]
    reasoned = []
    for k, node in enumerate(nodes):
        neighbours = torch.stack([adjacency[k, m] * other for m, other in enumerate(nodes)]).sum(0)
        difference = node - neighbours - bias[k]
        reasoned.append(update @ (difference.clamp(min=0) if rectify else difference))
    return reasoned
