"""One iteration: forward and backward passes over the micro-batches of every process, and a step of the optimiser."""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attnbench.config import Recipe
from attnbench.training.context import autocast
from attnbench.training.distributed import Processes
from attnbench.training.losses import BatchCount, PixelWeights, batch_count, total_loss
from attnbench.training.optimization import build_optimizer, optimizer_step, set_learning_rates

Extra = dict[str, Any]


class _Outputs(nn.Module):
    """`forward_with_auxiliary` as the forward pass, which is what DDP and `torch.compile` wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Extra]:
        outputs: tuple[Tensor, Extra] = self.model.forward_with_auxiliary(images)  # type: ignore[operator]
        return outputs


class Trainer:
    """A model with its optimiser, taking one iteration after the other.

    Where the batch is cut, over processes or micro-batches, every part's loss is divided by the count of the whole
    batch, so that the parts' losses and gradients add up to those of the whole.

    Args:
        model: a segmentor in training mode, on its device.
        recipe: the training recipe.
        weights: how much each pixel counts.
        processes: this process among those that train together.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, weights: PixelWeights, processes: Processes) -> None:
        self.model, self.recipe, self.weights, self.processes = model, recipe, weights, processes
        self.device = processes.device
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.optimizer = build_optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "float16")
        self._forward: nn.Module = _Outputs(model)
        self._ddp: DistributedDataParallel | None = None
        if recipe.compile:
            self._forward.compile()
        if processes.count > 1:
            # Buffers are equal already (EMA's bases, shared norms), or each process's own until they are shared.
            places = [self.device.index] if self.device.type == "cuda" else None
            self._ddp = DistributedDataParallel(self._forward, device_ids=places, broadcast_buffers=False)
            self._forward = self._ddp

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, iteration: int, images: Tensor, target: Tensor) -> float:
        """Trains on this process's images of a batch; returns the loss of the whole batch.

        Args:
            iteration: which one, from 0.
            images: float32 `(B, 3, H, W)`.
            target: int64 `(B, H, W)`.

        Raises:
            FloatingPointError: if the loss is not finite; the optimiser does not step.
        """
        set_learning_rates(self.optimizer, iteration, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        images = images.to(self.device, memory_format=self.layout, non_blocking=True)
        target = target.to(self.device, non_blocking=True)
        value = float(self.processes.total(self._backward(images, target)))
        if not math.isfinite(value):
            raise FloatingPointError(
                f"fit: expected a finite loss, got {value} in iteration {iteration}; a lower learning_rate, "
                "warmup_iterations or clip_gradient_norm may keep it finite"
            )
        optimizer_step(self.model, self.optimizer, self.scaler, self.recipe.clip_gradient_norm)
        return value

    def _backward(self, images: Tensor, target: Tensor) -> Tensor:
        parts = list(zip(images.chunk(self.recipe.accumulate), target.chunk(self.recipe.accumulate), strict=True))
        whole = self._count(target)
        losses: list[Tensor] = []
        for number, (part, labels) in enumerate(parts, start=1):
            with self._reducing(number == len(parts)):
                with autocast(self.device, self.recipe.amp):
                    logits, auxiliary = self._forward(part)
                    loss = total_loss(logits, auxiliary, labels, self.weights, whole)
                # DDP divides by the number of processes what is to be added up
                self.scaler.scale(loss * self.processes.count).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _count(self, target: Tensor) -> BatchCount | None:
        """What the parts' losses are divided by; none where the batch is in one piece."""
        if self.processes.count == 1 and self.recipe.accumulate == 1:
            return None
        own = batch_count(target, self.weights)
        return BatchCount(self.processes.total(own.pixels), self.processes.total(own.images))

    def _reducing(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over processes once, behind the last micro-batch."""
        return contextlib.nullcontext() if last or self._ddp is None else self._ddp.no_sync()
