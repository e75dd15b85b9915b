"""The two-dimensional selective scan, written out pixel by pixel in the order of each scan."""

from __future__ import annotations

import torch
from oracle_convolutional_attention import convolve_each
from oracle_layers import Map, Parameters, each
from oracle_local_attention import layer_norm
from torch import Tensor


def orders(height: int, width: int) -> list[list[tuple[int, int]]]:
    """Positions along rows, along columns, and both backwards."""
    rows = [(row, column) for row in range(height) for column in range(width)]
    columns = [(row, column) for column in range(width) for row in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]]


def recur(sequence: list[Tensor], parameters: Parameters, direction: int) -> list[Tensor]:
    """Outputs `(E,)` of one direction, one after the other."""
    select, rate = parameters["select"][direction], parameters["rate"][direction]
    rank = rate.shape[1]
    states = (len(select) - rank) // 2
    decay = -torch.exp(parameters["core.log_decay"][direction])
    state = torch.zeros_like(decay)
    outputs = []
    for u in sequence:
        low, enter, leave = (select @ u).split((rank, states, states))
        delta = torch.log(1 + torch.exp(rate @ low + parameters["core.bias"][direction]))
        rows = []
        for channel in range(len(u)):
            entries = [
                torch.exp(delta[channel] * decay[channel, n]) * state[channel, n]
                + delta[channel] * enter[n] * u[channel]
                for n in range(states)
            ]
            rows.append(torch.stack(entries))
        state = torch.stack(rows)
        outputs.append((state * leave).sum(1) + parameters["core.skip"][direction] * u)
    return outputs


def block(x: Map, parameters: Parameters) -> Map:
    """Normalisation, projection, convolution, SiLU, four scans, their sum normalised and projected, residual."""
    height, width = len(x), len(x[0])
    entered = each(lambda pixel: parameters["enter.weight"] @ pixel, layer_norm(x, parameters, "norm"))
    unbiased = {**parameters, "conv.bias": torch.zeros_like(entered[0][0])}
    features = each(lambda pixel: pixel / (1 + torch.exp(-pixel)), convolve_each(entered, unbiased, "conv"))
    total = each(torch.zeros_like, features)
    for direction, order in enumerate(orders(height, width)):
        outputs = recur([features[row][column] for row, column in order], parameters, direction)
        for (row, column), output in zip(order, outputs, strict=True):
            total[row][column] = total[row][column] + output
    merged = layer_norm(total, parameters, "out_norm")
    return each(lambda pixel, read: pixel + parameters["leave.weight"] @ read, x, merged)
