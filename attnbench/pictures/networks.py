"""The networks that pictures are made of: trained on the spot, or read from a file; and what they say of an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attnbench.accuracy import learning, segmentor_of
from attnbench.config import Amp
from attnbench.data.base import SegmentationDataset
from attnbench.data.transforms import normalise
from attnbench.errors import UsageError
from attnbench.evaluation import evaluate
from attnbench.metrics import ConfusionMatrix, classes_of
from attnbench.models.saved import load_any
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
        operator: registry name of the operator in its slot.
        title: name in figures.
        model: from images to logits at their size.
        miou: of the whole split that images are taken from.
    """

    operator: str
    title: str
    model: nn.Module
    miou: float


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
    return _scored(trial.operator, model, scored, trial.device, trial.recipe.amp)


def load_trained(path: Path, scored: SegmentationDataset, device: str) -> Trained:
    """Reads and scores the network in a checkpoint file.

    Raises:
        UsageError: if the file cannot be read, or its classes are not as many as the dataset's.
    """
    saved = load_any(path)
    if saved.num_classes != len(scored.classes):
        raise UsageError(
            f"checkpoint {str(path)!r}: expected the {len(scored.classes)} classes of dataset {scored.name!r}, "
            f"got {saved.num_classes}"
        )
    return _scored(saved.operator, saved.model, scored, device)


def _scored(operator: str, model: nn.Module, scored: SegmentationDataset, device: str, amp: Amp = "off") -> Trained:
    scores = evaluate(model, scored, device=device, amp=amp)
    return Trained(operator, registry.get(operator).spec.title, model.eval(), scores.miou)


def slot(model: nn.Module) -> AttentionOperator | None:
    """The operator in the network; none where there is none."""
    return next((module for module in model.modules() if isinstance(module, AttentionOperator)), None)


@torch.no_grad()
def look(network: Trained, dataset: SegmentationDataset, scene: Scene) -> Answer:
    """What `network` predicts for `scene`, and what reaches its operator on the way."""
    device = next(network.model.parameters()).device
    images = normalise(scene.image[None], dataset.mean, dataset.std).to(device)
    given: list[Tensor] = []
    operator = slot(network.model)
    hooks = []
    if operator is not None:
        hooks.append(operator.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])))
    try:
        logits = network.model(images)
    finally:
        for hook in hooks:
            hook.remove()
    labels = classes_of(logits)[0].cpu()  # (H, W)
    matrix = ConfusionMatrix(len(dataset.classes))
    matrix.update(labels, scene.target)
    miou = matrix.scores().miou if bool(matrix.counts.any()) else None
    return Answer(labels, given[0] if given else None, miou)
