"""The networks that pictures are made of: trained on the spot, or read from a file; and what they say of an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attnbench.accuracy import learning, segmentor_of
from attnbench.config import WHOLE, Amp, Inference
from attnbench.data.base import SegmentationDataset
from attnbench.data.transforms import normalise
from attnbench.evaluation import evaluate, segment
from attnbench.evaluation.as_trained import as_trained
from attnbench.metrics import ConfusionMatrix, classes_of
from attnbench.models.saved import Saved
from attnbench.pictures.scenes import Scene
from attnbench.records import Trial
from attnbench.training import fit
from attnbench.training.features import Progress
from attnbench.training.watching import Watcher
from operators import registry
from operators.interface import AttentionOperator


@dataclass(frozen=True, eq=False)
class Trained:
    """A network that has been trained, in evaluation mode.

    Args:
        name: name in the names of sheets: that of the operator, and of the file where several have one operator.
        title: name in figures.
        model: from images to logits at their size.
        miou: of the whole split that images are taken from.
        mean: mean of each colour channel that images are normalised by, as a fraction of 255; none takes the dataset's.
        std: standard deviation of each colour channel, likewise.
        inference: how it reads images that it predicts.
    """

    name: str
    title: str
    model: nn.Module
    miou: float
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    inference: Inference = WHOLE


@dataclass(frozen=True, eq=False)
class Answer:
    """What a network says of one image.

    Args:
        labels: predicted labels `(H, W)`.
        features: what the operator in the slot is given `(1, C, h, w)`; none in a network without a slot.
        miou: of this image alone, over the classes in it or predicted; none where no pixel counts.
    """

    labels: Tensor
    features: Tensor | None
    miou: float | None


def train(
    trial: Trial,
    training: SegmentationDataset,
    scored: SegmentationDataset,
    progress: Watcher | None = None,
    features: Progress | None = None,
) -> Trained:
    """Trains and scores the network of an accuracy trial, as a comparison does.

    Args:
        trial: operator, network, recipe and seed.
        training: what is trained on.
        scored: what is scored.
        progress: called after each iteration.
        features: told of the images whose features are computed, where they are cached.
    """
    assert trial.network and trial.recipe and trial.seed is not None
    model = segmentor_of(trial, len(training.classes))
    learns = learning(model, trial, training, scored, features)
    fit(
        learns.model,
        learns.train,
        trial.recipe,
        seed=trial.seed,
        device=trial.device,
        freeze_backbone=learns.freeze_backbone,
        progress=progress,
    )
    return _scored(trial.operator, model, scored, trial.device, trial.inference or WHOLE, trial.recipe.amp)


def score_saved(saved: Saved, path: Path, scored: SegmentationDataset, device: str) -> Trained:
    """Scores the network of a checkpoint file, which reads images as it was trained to.

    Args:
        saved: the network.
        path: its file, for errors.
        scored: what is scored, loaded at the size that the network was trained on.
        device: where it runs.

    Raises:
        UsageError: if its classes are not the dataset's.
    """
    return _scored(saved.operator, saved.model, as_trained(scored, saved, path), device, saved.inference)


def _scored(
    operator: str,
    model: nn.Module,
    scored: SegmentationDataset,
    device: str,
    inference: Inference,
    amp: Amp = "off",
) -> Trained:
    scores = evaluate(model, scored, device=device, inference=inference, amp=amp)
    title = registry.get(operator).spec.title
    return Trained(operator, title, model.eval(), scores.miou, scored.mean, scored.std, inference)


def slot(model: nn.Module) -> AttentionOperator | None:
    """The operator in the network; none where there is none."""
    return next((module for module in model.modules() if isinstance(module, AttentionOperator)), None)


@torch.no_grad()
def look(network: Trained, dataset: SegmentationDataset, scene: Scene) -> Answer:
    """What `network` predicts for `scene`, and what reaches its operator on the way."""
    device = next(network.model.parameters()).device
    images = normalise(scene.image[None], network.mean or dataset.mean, network.std or dataset.std).to(device)
    given: list[Tensor] = []
    operator = slot(network.model)
    hooks = []
    if operator is not None:
        hooks.append(operator.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])))
    try:
        network.model(images)
    finally:
        for hook in hooks:
            hook.remove()
    labels = classes_of(segment(network.model, images, network.inference))[0].cpu()  # (H, W)
    matrix = ConfusionMatrix(len(dataset.classes))
    matrix.update(labels, scene.target)
    miou = matrix.scores().miou if bool(matrix.counts.any()) else None
    return Answer(labels, given[0] if given else None, miou)
