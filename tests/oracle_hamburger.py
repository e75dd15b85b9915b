"""Hamburger's decompositions from their updates, pixel by pixel and basis by basis."""

from __future__ import annotations

import torch
from oracle_layers import Map, Parameters, affine, each, normalise, relu
from torch import Tensor

EPSILON = 1e-6


def initial_codes(pixels: list[Tensor], bases: list[Tensor]) -> list[list[Tensor]]:
    """`c_nk = exp(x_n . d_k) / sum_j exp(x_n . d_j)`."""
    codes = []
    for x in pixels:
        powers = [torch.exp(x @ d) for d in bases]
        codes.append([power / torch.stack(powers).sum() for power in powers])
    return codes


def update_codes(pixels: list[Tensor], bases: list[Tensor], codes: list[list[Tensor]]) -> list[list[Tensor]]:
    """`c_nk <- c_nk (x_n . d_k) / ((sum_j c_nj d_j) . d_k + eps)`."""
    updated = []
    for x, row in zip(pixels, codes, strict=True):
        rebuilt = torch.stack([c * d for c, d in zip(row, bases, strict=True)]).sum(0)
        updated.append([c * (x @ d) / (rebuilt @ d + EPSILON) for c, d in zip(row, bases, strict=True)])
    return updated


def update_bases(pixels: list[Tensor], bases: list[Tensor], codes: list[list[Tensor]]) -> list[Tensor]:
    """`d_k <- d_k (sum_n c_nk x_n) / (sum_n c_nk sum_j c_nj d_j + eps)`, each channel by itself."""
    rebuilt = [torch.stack([c * d for c, d in zip(row, bases, strict=True)]).sum(0) for row in codes]
    updated = []
    for k, basis in enumerate(bases):
        fit = torch.stack([row[k] * x for row, x in zip(codes, pixels, strict=True)]).sum(0)
        present = torch.stack([row[k] * r for row, r in zip(codes, rebuilt, strict=True)]).sum(0)
        updated.append(basis * fit / (present + EPSILON))
    return updated


def factorise(
    pixels: list[Tensor], bases: list[Tensor], steps: int, *, one_step: bool
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Bases after `steps` steps and the codes fitted to them; one step is differentiated, or all."""
    seen = [x.detach() for x in pixels] if one_step else pixels
    codes = initial_codes(seen, bases)
    for _ in range(steps):
        codes = update_codes(seen, bases, codes)
        bases = update_bases(seen, bases, codes)
    return bases, update_codes(pixels, bases, codes)


def block(x: Map, parameters: Parameters, *, steps: int, one_step: bool) -> Map:
    """The Hamburger in evaluation."""
    lower = relu(affine(x, parameters, "lower"))
    stored = parameters["core.bases"][0]
    pixels = [pixel for row in lower for pixel in row]
    bases, codes = factorise(pixels, list(stored.unbind(1)), steps, one_step=one_step)
    flat = [torch.stack([c * d for c, d in zip(row, bases, strict=True)]).sum(0) for row in codes]
    width = len(x[0])
    rebuilt = [flat[start : start + width] for start in range(0, len(flat), width)]
    upper = normalise(affine(rebuilt, parameters, "upper"), parameters, "norm")
    return relu(each(torch.add, x, upper))


def soft_assignment(
    pixels: list[Tensor], bases: list[Tensor], inv_t: float, *, constant_norms: bool
) -> list[list[Tensor]]:
    """`c_nk = exp(t cos(x_n, d_k)) / sum_j exp(t cos(x_n, d_j))`."""
    rows = []
    for x in pixels:
        norm = torch.sqrt((x * x).sum())
        norm = norm.detach() if constant_norms else norm
        powers = [torch.exp(inv_t * (x @ d) / (norm * torch.sqrt((d * d).sum()))) for d in bases]
        rows.append([power / torch.stack(powers).sum() for power in powers])
    return rows


def means(pixels: list[Tensor], codes: list[list[Tensor]], count: int) -> list[Tensor]:
    """`d_k = sum_n c_nk x_n / (sum_n c_nk + eps)`."""
    moved = []
    for k in range(count):
        total = torch.stack([row[k] for row in codes]).sum() + EPSILON
        moved.append(torch.stack([row[k] / total * x for row, x in zip(codes, pixels, strict=True)]).sum(0))
    return moved


def cluster(
    pixels: list[Tensor], bases: list[Tensor], steps: int, inv_t: float, *, spherical: bool, one_step: bool
) -> list[Tensor]:
    """Bases after `steps` steps of soft k-means under the cosine, on the sphere for concepts."""
    seen = [x.detach() for x in pixels] if one_step else pixels
    for _ in range(steps):
        bases = means(seen, soft_assignment(seen, bases, inv_t, constant_norms=one_step), len(bases))
        bases = [d / torch.sqrt((d * d).sum()) for d in bases] if spherical else bases
    return bases


def least_squares(pixels: list[Tensor], bases: list[Tensor], beta: float) -> list[list[Tensor]]:
    """`argmin_c |x - sum_k c_k d_k|^2 + beta |c|^2` of each pixel, as a stacked system without normal equations."""
    count = len(bases)
    system = torch.cat((torch.stack(bases, 1), beta**0.5 * torch.eye(count, dtype=bases[0].dtype)))
    empty = torch.zeros(count, dtype=bases[0].dtype)
    return [list(torch.linalg.lstsq(system, torch.cat((x, empty))[:, None]).solution[:, 0].unbind()) for x in pixels]


def clustering_block(
    x: Map, parameters: Parameters, *, steps: int, inv_t: float, beta: float | None, one_step: bool
) -> Map:
    """The Hamburger by vector quantisation in evaluation, or by concept decomposition where there is a `beta`."""
    pixels = [pixel for row in affine(x, parameters, "lower") for pixel in row]
    stored = list(parameters["core.bases"][0].unbind(1))
    bases = cluster(pixels, stored, steps, inv_t, spherical=beta is not None, one_step=one_step)
    if beta is None:
        codes = soft_assignment(pixels, bases, inv_t, constant_norms=one_step)
    else:
        codes = least_squares(pixels, bases, beta)
    flat = [torch.stack([c * d for c, d in zip(row, bases, strict=True)]).sum(0) for row in codes]
    width = len(x[0])
    rebuilt = [flat[start : start + width] for start in range(0, len(flat), width)]
    upper = normalise(affine(rebuilt, parameters, "upper"), parameters, "norm")
    return relu(each(torch.add, x, upper))
