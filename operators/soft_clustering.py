"""Soft clustering of the pixels of each image, and the two matrix decompositions of Hamburger that rest on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.matrix_decomposition import EPSILON, Gradient, MatrixDecomposition


class VectorQuantization(MatrixDecomposition):
    """Rebuilds pixels as soft mixtures of the `K` means that soft k-means under the cosine finds in each image.

    Equation, for `T` steps::

        C <- softmax_K(inv_t cos(X, D))
        D <- X C / (1^T C + eps)

    then once more `C`, and `X~ = D C^T`.

    With `gradient="one_step"` the norms of the pixels in the last cosine are constants too.

    Args:
        inv_t: inverse temperature of the softmax; above zero.
        others: as of `MatrixDecomposition`.

    Shape, Raises:
        As of `MatrixDecomposition`.

    Cost:
        `(2T + 2) N C K` multiply-accumulates.

    Source:
        Geng et al., Is Attention Better Than Matrix Decomposition?, ICLR 2021, section 2.2 and appendix.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        inv_t: float = 100.0,
        gradient: Gradient = "one_step",
        random_bases: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            channels,
            num_bases=num_bases,
            train_steps=train_steps,
            eval_steps=eval_steps,
            gradient=gradient,
            random_bases=random_bases,
            seed=seed,
        )
        if not inv_t > 0:
            raise ValueError(f"{type(self).__name__}: expected inv_t > 0, got {inv_t!r}")
        self.inv_t = inv_t

    def factorise(self, pixels: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Bases after `steps` steps, and the codes that fit the pixels to them."""
        bases = self._fit(pixels, steps)
        return bases, self.code(pixels, bases)

    def shares(self, pixels: Tensor, steps: int) -> Tensor:
        """Soft assignment of the pixels to the bases."""
        return self.assign(pixels, self._fit(pixels, steps))

    def macs(self, pixels: int) -> int:
        """`T` steps, last codes and the rebuilt map."""
        return (2 * self.eval_steps + 2) * pixels * self.channels * self.num_bases

    def _fit(self, pixels: Tensor, steps: int) -> Tensor:
        seen, bases = self.seen(pixels), self.initial(pixels)
        for _ in range(steps):
            bases = self.move(seen, self.assign(seen, bases))
        return bases

    def assign(self, pixels: Tensor, bases: Tensor) -> Tensor:
        """`softmax_K(inv_t cos(X, D))` in single precision or better: `(B, N, K)`."""
        # Half precision leaves a cosine two digits, of which inv_t = 100 makes noise.
        with torch.autocast(pixels.device.type, enabled=False):
            pixels, bases = _single(pixels), _single(bases)
            norms = pixels.norm(dim=1, keepdim=True).clamp_min(EPSILON)
            directions = pixels / (norms.detach() if self.gradient == "one_step" else norms)
            cosines = torch.bmm(directions.transpose(1, 2), F.normalize(bases, dim=1, eps=EPSILON))
            return torch.softmax(self.inv_t * cosines, dim=-1)

    def move(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """Means `(B, C, K)` of the pixels under the weights `(B, N, K)`."""
        means = weights / (weights.sum(dim=1, keepdim=True) + EPSILON)
        return torch.bmm(pixels, means.to(pixels.dtype))

    def code(self, pixels: Tensor, bases: Tensor) -> Tensor:
        """Codes `(B, N, K)` of the pixels: their soft assignment."""
        return self.assign(pixels, bases).to(pixels.dtype)


class ConceptDecomposition(VectorQuantization):
    """Rebuilds pixels by regularised least squares from the `K` concepts that spherical soft k-means finds.

    Equation, for `T` steps::

        C <- softmax_K(inv_t cos(X, D))
        D <- normalise(X C / (1^T C + eps))

    then `C = X^T D (D^T D + beta I)^-1`, and `X~ = D C^T`.

    Args:
        beta: weight of the squared codes in the least squares; above zero, for `D^T D` may be singular.
        others: as of `VectorQuantization`.

    Shape, Raises:
        As of `MatrixDecomposition`.

    Cost:
        `(2T + 2) N C K + (N + C) K^2 + K^3` multiply-accumulates.

    Source:
        Geng et al., Is Attention Better Than Matrix Decomposition?, ICLR 2021, section 2.2 and appendix.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        inv_t: float = 100.0,
        beta: float = 0.1,
        gradient: Gradient = "one_step",
        random_bases: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            channels,
            num_bases=num_bases,
            train_steps=train_steps,
            eval_steps=eval_steps,
            inv_t=inv_t,
            gradient=gradient,
            random_bases=random_bases,
            seed=seed,
        )
        if not beta > 0:
            raise ValueError(f"{type(self).__name__}: expected beta > 0, got {beta!r}")
        self.beta = beta

    def move(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """Directions `(B, C, K)` of the means of the pixels under the weights `(B, N, K)`."""
        return F.normalize(super().move(pixels, weights), dim=1, eps=EPSILON)

    def code(self, pixels: Tensor, bases: Tensor) -> Tensor:
        """Codes `(B, N, K)` of the least squares."""
        fit = torch.bmm(pixels.transpose(1, 2), bases)  # (B, N, K)
        # Inverses have no kernel for half precision, whose rounding of D^T D would also exceed beta.
        with torch.autocast(bases.device.type, enabled=False):
            single = _single(bases)
            gram = torch.bmm(single.transpose(1, 2), single)
            identity = torch.eye(self.num_bases, dtype=gram.dtype, device=gram.device)
            inverse = torch.linalg.inv(gram + self.beta * identity)  # (B, K, K)
        return torch.bmm(fit, inverse.to(fit.dtype))

    def macs(self, pixels: int) -> int:
        """Those of the clustering, `D^T D`, its inverse, and the product with it."""
        return super().macs(pixels) + (pixels + self.channels + self.num_bases) * self.num_bases**2


def _single(x: Tensor) -> Tensor:
    """`x` in single precision, or in its own if that is better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
