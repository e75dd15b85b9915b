"""Training: one recipe for every operator, bit for bit repeatable on one machine."""

from attnbench.training.balance import pixel_weights
from attnbench.training.checkpoint import Checkpoints
from attnbench.training.context import autocast, repeatable
from attnbench.training.distributed import Part, Processes, joined
from attnbench.training.interruption import Interruption
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
from attnbench.training.optimization import (
    build_optimizer,
    learning_rate,
    poly_factor,
    set_batch_norm_momentum,
    set_learning_rates,
)
from attnbench.training.watching import Step, Watch, Watcher

__all__ = [
    "BatchCount",
    "Checkpoints",
    "Interruption",
    "Part",
    "PixelWeights",
    "Processes",
    "Step",
    "Watch",
    "Watcher",
    "autocast",
    "batch_count",
    "build_optimizer",
    "fit",
    "joined",
    "learning_rate",
    "pixel_loss",
    "pixel_loss_sum",
    "pixel_weights",
    "poly_factor",
    "presence_loss",
    "repeatable",
    "set_batch_norm_momentum",
    "set_learning_rates",
    "total_loss",
]
