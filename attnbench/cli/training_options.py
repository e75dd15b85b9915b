"""Options on what a network is trained on and what of it, shared by the commands that train."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from attnbench.cli.arguments import size
from attnbench.cli.reading_options import add_reading, asked_reading
from attnbench.config import Inference

TRAINING = ("dataset", "data_root", "split", "image_size", "backbone", "backbone_weights", "freeze_backbone", "amp")
"""Names of the options of training, as `argparse` knows them."""

SCORING = ("whole", "slide", "stride", "scales", "flip", "boundary")
"""Names of the options of scoring, as `argparse` knows them."""


def add_training(group: argparse._ArgumentGroup) -> None:
    """Adds the options named in `TRAINING`."""
    group.add_argument("--dataset", help="context (embedded, no download) or a name of docs/datasets.md")
    group.add_argument("--data-root", metavar="DIR", help="folder of the dataset (default: $ATTNBENCH_DATA)")
    group.add_argument("--split", metavar="NAME", help="part of the dataset that is scored (default: the preset's)")
    group.add_argument("--image-size", type=size, metavar="HxW", help="size that images are loaded at")
    group.add_argument("--backbone", help="small, resnet18, resnet34, resnet50, resnet101")
    group.add_argument("--backbone-weights", metavar="FILE", help="weights under torchvision's names")
    group.add_argument(
        "--freeze-backbone",
        nargs="?",
        const="cached",
        choices=["cached", "images"],
        help="train what stands behind the backbone alone: on features that are computed once (cached, meant where "
        "nothing is said), or on images, as recipes that resize or distort them want",
    )
    group.add_argument("--amp", help="precision of the training: off (float32), bfloat16, float16 (CUDA)")


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Adds how images are read when they are scored, and `--boundary`."""
    group = add_reading(parser, "how images are read when they are scored (default: as the preset says, usually whole)")
    group.add_argument("--boundary", action="store_true", help="compute the boundary F-score, too")


def accuracy_asked(parsed: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_training` change of an `Accuracy`."""
    options = vars(parsed)

    def given(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if options[name] is not None}

    accuracy = given("dataset", "data_root", "image_size")
    if options["split"] is not None:
        accuracy["eval_split"] = options["split"]
    if options["freeze_backbone"]:
        accuracy |= {"freeze_backbone": True, "cache_features": options["freeze_backbone"] == "cached"}
    network = given("backbone", "backbone_weights")
    if "backbone" in network:
        network["output_stride"] = 4 if network["backbone"] == "small" else 8
    recipe = given("amp")
    return accuracy | ({"network": network} if network else {}) | ({"recipe": recipe} if recipe else {})


def scoring_asked(parsed: argparse.Namespace, default: Inference) -> dict[str, Any]:
    """What `--boundary` and the others of `add_scoring` change of an `Accuracy`."""
    inference = asked_reading(parsed, default)
    changes: dict[str, Any] = {"boundary": True} if parsed.boundary else {}
    return changes | ({"inference": dataclasses.asdict(inference)} if inference != default else {})
