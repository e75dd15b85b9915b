"""CCNet's criss-cross attention, written out pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(x: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One pass on `(C, H, W)`: its output, and its attention matrix `(N, N)`."""
    channels, height, width = x.shape

    def project(name: str, row: int, column: int) -> Tensor:
        return parameters[f"{name}.weight"][:, :, 0, 0] @ x[:, row, column] + parameters[f"{name}.bias"]

    out = torch.empty(channels, 0, dtype=x.dtype)
    matrix = torch.zeros(height * width, height * width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            query = project("query", i, j)
            path = [(i, w) for w in range(width)] + [(h, j) for h in range(height) if h != i]
            kernels = torch.stack([torch.exp(query @ project("key", *position)) for position in path])
            weights = kernels / kernels.sum()
            read = torch.stack([w * project("value", *p) for w, p in zip(weights, path, strict=True)]).sum(0)
            out = torch.cat((out, (x[:, i, j] + parameters["gamma"] * read)[:, None]), 1)
            for weight, (h, w) in zip(weights.detach(), path, strict=True):
                matrix[i * width + j, h * width + w] = weight
    return out.reshape(x.shape), matrix


def operator(x: Tensor, parameters: dict[str, Tensor], recurrence: int) -> tuple[Tensor, Tensor]:
    """All passes on `(B, C, H, W)`: the output, and the product `(B, N, N)` of the attention matrices."""
    outputs, products = [], []
    for image in x:
        product = torch.eye(image[0].numel(), dtype=x.dtype)
        for _ in range(recurrence):
            image, matrix = attend(image, parameters)
            product = matrix @ product
        outputs.append(image)
        products.append(product)
    return torch.stack(outputs), torch.stack(products)
