"""Training: one recipe for every operator, bit for bit repeatable on one machine."""

from attnbench.training.context import autocast, repeatable
from attnbench.training.loop import fit
from attnbench.training.losses import pixel_loss, presence_loss, total_loss
from attnbench.training.optimization import build_optimizer, poly_factor

__all__ = [
    "autocast",
    "build_optimizer",
    "fit",
    "pixel_loss",
    "poly_factor",
    "presence_loss",
    "repeatable",
    "total_loss",
]
