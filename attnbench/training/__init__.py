"""Training: one recipe for every operator, bit for bit repeatable on one machine."""

from attnbench.training.context import autocast, repeatable
from attnbench.training.loop import fit
from attnbench.training.losses import (
    BatchCount,
    PixelWeights,
    batch_count,
    pixel_loss,
    pixel_loss_sum,
    presence_loss,
    total_loss,
)
from attnbench.training.optimization import build_optimizer, poly_factor

__all__ = [
    "BatchCount",
    "PixelWeights",
    "autocast",
    "batch_count",
    "build_optimizer",
    "fit",
    "pixel_loss",
    "pixel_loss_sum",
    "poly_factor",
    "presence_loss",
    "repeatable",
    "total_loss",
]
