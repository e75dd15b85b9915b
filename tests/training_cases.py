"""What tests of distributed training and of checkpoints train: a tiny network, in processes of its own."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attnbench.config import Network, Recipe
from attnbench.evaluation import evaluate
from attnbench.metrics import ConfusionMatrix
from attnbench.models.build import build_segmentor
from attnbench.training import Checkpoints, Interruption, Part, Processes, fit, joined

NETWORK = Network(slot_channels=8, head_channels=8, dropout=0.0)
RECIPE = Recipe(
    iterations=3,
    batch_size=4,
    crop_size=(16, 24),
    learning_rate=0.3,
    optimizer="sgd",
    auxiliary_weight=0.4,
    batch_norm="frozen",
)


@dataclass
class Stripes:
    """Noisy images, left of a column dark and labelled 0, right of it light and labelled 1.

    Args:
        length: number of images.
        gap: image i has i times as many unlabelled rows, so that parts of a batch have unequal numbers of labelled
            pixels, and a mean of means is not their mean.
        labelled: whether anything is.
    """

    length: int = 7
    gap: int = 2
    labelled: bool = True
    size: tuple[int, int] = (20, 32)
    name: str = "stripes"
    classes: tuple[str, ...] = ("dark", "light")
    palette: tuple[tuple[int, int, int], ...] = ((0, 0, 0), (255, 255, 255))
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        edge = int(torch.randint(8, 24, (), generator=generator))
        target = (torch.arange(self.size[1]) >= edge).to(torch.uint8).repeat(self.size[0], 1)
        image = 60 + 100 * target + torch.randint(0, 60, (3, *self.size), generator=generator)
        target[: self.gap * index if self.labelled else None] = 255
        return image.to(torch.uint8), target


def segmentor(operator="conv3x3", network=NETWORK, seed=0):
    torch.manual_seed(seed)
    return build_segmentor(operator, network, 2, auxiliary_weight=0.4)


def train_in_this_process(name, folder):
    """Several trainings in one process of torchrun's: what each ends with goes to a file of the first process."""
    torch.set_num_threads(1)
    found = {}
    with joined("cpu") as processes:
        for operator in ("conv3x3", "ema", "context_encoding"):
            found[operator] = _trained(processes, operator, RECIPE)
        found["accumulated"] = _trained(processes, "conv3x3", replace(RECIPE, accumulate=2))
        found["class weights"] = _trained(processes, "conv3x3", replace(RECIPE, class_weights=(0.3, 1.7)))
        norms = segmentor()
        fit(
            norms,
            Stripes(),
            replace(RECIPE, batch_norm="process"),
            seed=processes.rank,
            device="cpu",
            processes=processes,
        )
        processes.share_buffers(norms)
        found["norms"] = processes.gathered(norms.state_dict()["decode_head.bottleneck.norm.running_mean"])
        scores = evaluate(norms, Part(Stripes(), processes), device="cpu", boundary=True, add_up=processes.total)
        found["scores"] = [scores.miou, scores.macc, scores.aacc, *scores.iou]
        found["boundary"] = scores.boundary_f
        found["counts"] = _counts(norms, processes)
        found["norms_state"] = norms.state_dict()
        found["counted"] = len(Part(Stripes(), processes))
        found["drawn"] = processes.gathered(processes.seed(3))
        places = (Path(folder) / f"{processes.count}-{stops}" for stops in (0, 1))
        found["sittings"] = [_sittings(processes, place, stops) for stops, place in enumerate(places)]
        found["refused"] = _refused(processes)
    if processes.rank == 0:
        torch.save(found, Path(folder) / name)


def _trained(processes: Processes, operator: str, recipe: Recipe):
    model = segmentor(operator)
    told = []
    losses = fit(
        model, Stripes(), recipe, seed=3, device="cpu", processes=processes, progress=lambda step: told.append(step)
    )
    return {"losses": losses, "weights": model.state_dict(), "images": {step.images for step in told}}


def _sittings(processes: Processes, folder: Path, stops: int):
    """A run with dropout that the last process alone is asked to stop behind its second iteration, and that goes on."""
    recipe = replace(RECIPE, iterations=5, optimizer="adamw", learning_rate=0.01)
    stopped = []
    for sitting in range(stops + 1):
        model = segmentor("ema", LONG_NETWORK)
        asked = iter([False, processes.rank == processes.count - 1 and sitting < stops, False, False, False])
        try:
            losses = fit(
                model,
                Stripes(),
                recipe,
                seed=3,
                device="cpu",
                processes=processes,
                checkpoints=Checkpoints(folder, {"recipe": "sittings"}, every=100),
                stop=lambda asked=asked: next(asked),
            )
        except KeyboardInterrupt:
            stopped.append(sorted(path.name[:8] for path in folder.iterdir()) if processes.rank == 0 else [])
    return {"losses": losses, "weights": model.state_dict(), "stopped": stopped}


def _counts(model, processes: Processes) -> Tensor:
    matrix = ConfusionMatrix(2)
    part = Part(Stripes(), processes)
    with torch.no_grad():
        for index in range(len(part)):
            image, target = part[index]
            matrix.update(model.eval()(image[None].float() / 64 - 2), target[None])
    return processes.total(matrix.counts)


def _refused(processes: Processes) -> list[str]:
    cases = {
        "norms": replace(RECIPE, batch_norm="shared"),
        "batch": replace(RECIPE, batch_size=5),
        "accumulate": replace(RECIPE, batch_size=2 * processes.count, accumulate=4),
    }
    found = []
    for recipe in cases.values():
        try:
            fit(segmentor(), Stripes(), recipe, seed=0, device="cpu", processes=processes)
            found.append("")
        except ValueError as error:
            found.append(str(error))
    try:
        Part(Stripes(1), processes)
        found.append("")
    except ValueError as error:
        found.append(str(error))
    return found


LONG = replace(RECIPE, iterations=40, batch_norm="shared", batch_size=2)
LONG_NETWORK = replace(NETWORK, dropout=0.3)


class Drawing(torch.nn.Module):
    """An operator-like layer that draws from every global generator, as a third party's might."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.01 * random.random() + 0.01 * float(np.random.rand()))


def train_with_checkpoints(folder, every="1"):
    """A training run that may be killed anywhere; leaves its weights and losses in `folder/end.pt`."""
    torch.set_num_threads(1)
    model = segmentor("ema", LONG_NETWORK)
    model.decode_head.bottleneck.add_module("drawing", Drawing())
    checkpoints = Checkpoints(Path(folder) / "checkpoints", {"recipe": "long"}, every=int(every))
    with Interruption() as interruption:
        losses = fit(
            model,
            Stripes(),
            LONG,
            seed=5,
            device="cpu",
            checkpoints=checkpoints,
            stop=interruption.asked,
            progress=lambda step: print(step.iteration, flush=True),
        )
    torch.save({"weights": model.state_dict(), "losses": torch.tensor(losses, dtype=torch.float64)}, f"{folder}/end.pt")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    task, *arguments = sys.argv[1:]
    try:
        {"together": train_in_this_process, "checkpoints": train_with_checkpoints}[task](*arguments)
    except KeyboardInterrupt:
        sys.exit(130)
