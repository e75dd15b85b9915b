"""Parameters, MACs and peak memory of what is built, without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from attnbench.measuring.cost import count_params
from attnbench.measuring.prediction import predict_macs, predict_peak_bytes, pretending
from attnbench.published import Computed, Figure, Outcome
from attnbench.reproducing.build import Built, modules
from attnbench.workload import Workload, settle_batch_norms


def compute(build: Callable[[], Built]) -> Computed:
    """What `build` makes, counted as its source counts.

    Batch norms that see one value per channel use their running statistics in training, as in a cost trial.
    """
    with pretending():
        built = build()
        macs = predict_macs(built.module, built.inputs)
        forward = Workload(built.module.eval(), built.inputs, "forward")
        peak_forward = predict_peak_bytes(forward.step)
        inputs = tuple(tensor.detach().requires_grad_() for tensor in built.inputs)
        training = Workload(built.module.train(), inputs, "training")
        settle_batch_norms(training)
        return Computed(
            params=count_params(built.module) + built.more_params,
            macs=macs - built.left_out_macs,
            peak_forward=peak_forward,
            peak_training=predict_peak_bytes(training.step, release=training.release),
        )


def reproduce(figures: Iterable[Figure]) -> list[Outcome]:
    """Every row beside what is computed for it; a module that several rows share is built once."""
    once = cache(lambda name: compute(modules()[name]))
    return [Outcome(figure, once(figure.module) if figure.module else None) for figure in figures]
