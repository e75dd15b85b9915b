"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from attnbench.config import Recipe
from attnbench.data.base import SegmentationDataset
from attnbench.data.loading import training_batches
from attnbench.errors import UsageError
from attnbench.training.balance import pixel_weights
from attnbench.training.checkpoint import Checkpoints, Snapshot
from attnbench.training.context import autocast, repeatable, training_mode
from attnbench.training.distributed import Processes, check_processes, share_norms
from attnbench.training.optimization import set_batch_norm_momentum
from attnbench.training.random_states import random_states, set_random_states
from attnbench.training.step import Trainer
from attnbench.training.watching import Step, Watcher, timed


def fit(
    model: nn.Module,
    dataset: SegmentationDataset,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str,
    freeze_backbone: bool = False,
    progress: Watcher | None = None,
    num_workers: int = 0,
    processes: Processes | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[float]:
    """Trains `model` in place.

    Two runs with equal weights, data, recipe and seed end with equal weights, bit for bit, on one machine and CPU, be
    they interrupted or not; on CUDA operations without a deterministic algorithm warn.

    Args:
        model: a segmentor: `forward_with_auxiliary(images) -> (logits, {name: (logits, Auxiliary)})`, and `backbone`.
        dataset: images and targets.
        recipe: the training recipe.
        seed: seed of order, augmentation and of what the model draws, such as dropout.
        device: where to train.
        freeze_backbone: whether the backbone keeps its weights and statistics.
        progress: called after each iteration with what it was like, in every process.
        num_workers: processes that load; the result does not depend on it.
        processes: this process among those that train together, each with its part of every batch; none trains alone.
        checkpoints: where the run goes on from and leaves its checkpoints; none writes none.
        stop: asked after each iteration whether to stop.

    Returns:
        The loss of each iteration.

    Raises:
        UsageError: if dataset, recipe, device, processes or the checkpoint do not fit one another.
        FloatingPointError: if a loss is not finite; the message names the iteration.
        KeyboardInterrupt: if `stop` said so, behind a checkpoint.
    """
    processes = processes or Processes(device=torch.device(device))
    check_processes(recipe, processes)
    autocast(processes.device, recipe.amp)
    share_norms(model, recipe, processes)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model.to(processes.device, memory_format=layout)  # type: ignore[call-overload]
    weights = pixel_weights(dataset, recipe, processes.device)
    with (
        # inductor of torch 2.13 computes wrong gradients where deterministic algorithms are asked for
        repeatable(processes.seed(seed), processes.device, deterministic=not recipe.compile),
        training_mode(model, freeze_backbone=freeze_backbone, freeze_norms=recipe.batch_norm == "frozen"),
    ):
        set_batch_norm_momentum(model, recipe.batch_norm_momentum)
        trainer = Trainer(model, recipe, weights, processes)
        losses = _go_on(trainer, checkpoints) if checkpoints is not None else []
        batches = training_batches(
            dataset,
            recipe,
            seed=seed,
            num_workers=num_workers,
            pin_memory=processes.device.type == "cuda",
            slots=processes.slots(recipe.batch_size),
            start=len(losses),
        )
        began = time.perf_counter()
        for iteration, ((images, target), waited) in enumerate(timed(batches), start=len(losses)):
            losses.append(trainer.step(iteration, images, target))
            if progress is not None:
                seconds = time.perf_counter() - began
                told = (losses[-1], trainer.learning_rate, recipe.batch_size, waited, seconds)
                progress(Step(iteration + 1, recipe.iterations, *told))
            stopped = stop is not None and _any(stop(), processes)
            if checkpoints is not None and (stopped or checkpoints.due(iteration + 1, recipe.iterations)):
                _save(trainer, checkpoints, losses)
            if stopped:
                raise KeyboardInterrupt
            began = time.perf_counter()
    return losses


def _any(asked: bool, processes: Processes) -> bool:
    """Whether any process was asked: all of them then stop behind the same iteration."""
    return bool(processes.total(torch.tensor(int(asked))))


def _save(trainer: Trainer, checkpoints: Checkpoints, losses: list[float]) -> None:
    states = trainer.processes.gathered(random_states(trainer.device))
    if trainer.processes.rank == 0:
        checkpoints.save(
            Snapshot(
                iteration=len(losses),
                model=trainer.model.state_dict(),
                optimizer=trainer.optimizer.state_dict(),
                scaler=trainer.scaler.state_dict(),
                random=states,
                losses=losses,
            )
        )


def _go_on(trainer: Trainer, checkpoints: Checkpoints) -> list[float]:
    """Sets everything as the latest checkpoint has it; returns the losses up to it."""
    snapshot = checkpoints.latest()
    where = f"checkpoints in {str(checkpoints.folder)!r}"
    seen = trainer.processes.gathered(snapshot.iteration if snapshot else 0)
    if len(set(seen)) > 1:
        raise UsageError(f"{where}: expected all processes to see the same, got iterations {seen}")
    if snapshot is None:
        return []
    try:
        trainer.model.load_state_dict(snapshot.model)
        trainer.optimizer.load_state_dict(dict(snapshot.optimizer))
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{where}: expected weights of this architecture, got {error}") from error
    trainer.scaler.load_state_dict(dict(snapshot.scaler))
    set_random_states(snapshot.random[trainer.processes.rank], trainer.device)
    return list(snapshot.losses)
