"""`pictures.py`: what trained networks predict, where their operators look, and what their bases hold."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from attnbench.atomic import expect_writable
from attnbench.cli.arguments import Parser, console_of_width, positive, words
from attnbench.cli.checkpoint_options import register
from attnbench.cli.training_options import accuracy_asked, add_training
from attnbench.config import Experiment, load_preset, preset_names, updated
from attnbench.errors import UsageError

if TYPE_CHECKING:
    from attnbench.data.base import SegmentationDataset
    from attnbench.models.saved import Saved
    from attnbench.pictures import Sheet, Trained
    from attnbench.records import Trial

PROG = "pictures.py"
DEFAULT_OUTPUT = Path("results/local/pictures")
DEFAULT_OPERATORS = ("conv3x3", "pyramid_pooling", "non_local", "criss_cross", "dual", "ema")
KINDS = ("predictions", "attention", "bases")
_FORMATS = ("png", "pdf", "svg")
_EPILOG = """\
examples:
  python scripts/pictures.py                                   the embedded task, six operators, a minute
  python scripts/pictures.py --operators ema,object_contextual --images 0,3,5 --pixel 12,20 --format pdf
  python scripts/pictures.py --preset camvid --data-root DIR --backbone-weights FILE --operators ema,non_local
  python scripts/pictures.py --checkpoint own.pth --dataset camvid --data-root DIR --split test

Networks are trained on the spot as compare.py would, or read from --checkpoint; no code from a file runs.
"""


def _parser() -> Parser:
    parser = Parser(PROG, "Draw what networks predict, where they look, and what their bases hold.", _EPILOG)
    what = parser.add_argument_group("networks")
    what.add_argument(
        "--operators", type=words, metavar="A,B", help=f"names in the registry (default: {','.join(DEFAULT_OPERATORS)})"
    )
    what.add_argument(
        "--operator",
        action="append",
        metavar="FILE.py:CLASS",
        help="an operator of your own; beside --checkpoint, one that a file was trained with",
    )
    what.add_argument(
        "--checkpoint",
        action="append",
        type=Path,
        metavar="FILE",
        help="show this network in place of training; may be repeated",
    )
    what.add_argument(
        "--preset", default="default", metavar="NAME|FILE.toml", help=f"recipe: one of {', '.join(preset_names())}"
    )
    what.add_argument("--iterations", type=positive, metavar="N", help="training iterations")
    what.add_argument("--seed", type=_index, default=0, metavar="N", help="seed of the training (default: 0)")
    what.add_argument("--device", help="auto, cpu or cuda")
    add_training(parser.add_argument_group("network and data"))

    data = parser.add_argument_group("images")
    data.add_argument("--images", type=indices, default=[0, 1], metavar="I,J", help="images, from 0 (default: 0,1)")
    data.add_argument(
        "--pixel",
        type=pixel,
        action="append",
        metavar="ROW,COLUMN",
        help="pixel to look from; may be repeated (default: the one whose cue is farthest, or the middle)",
    )

    output = parser.add_argument_group("sheets")
    output.add_argument("--only", type=words, metavar="A,B", help=f"some of {', '.join(KINDS)} (default: all of them)")
    output.add_argument("--bases", type=positive, default=7, metavar="N", help="bases that are shown (default: 7)")
    output.add_argument("--heads", action="store_true", help="also a sheet for each operator with several heads")
    output.add_argument("--format", choices=_FORMATS, default="png", help="png, pdf or svg (default: png)")
    output.add_argument("--dpi", type=positive, default=200, metavar="N", help="dots per inch (default: 200)")
    output.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help=f"where to (default: {DEFAULT_OUTPUT})"
    )
    return parser


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def indices(text: str) -> list[int]:
    """Comma-separated whole numbers from zero on, each once.

    Example:
        >>> indices("0,3,5")
        [0, 3, 5]
    """
    return list(dict.fromkeys(_index(word) for word in words(text)))


def pixel(text: str) -> tuple[int, int]:
    """A row and a column.

    Example:
        >>> pixel("12,20")
        (12, 20)
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected ROW,COLUMN such as 12,20, got {text!r}")
    return int(parts[0]), int(parts[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the sheets that the command line asks for; returns the exit code."""
    parsed = _parser().parse(arguments)
    kinds = parsed.only or KINDS
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--only: expected some of {', '.join(KINDS)}, got {kind!r}")
    _expect_one_source(parsed)
    console = console_of_width()

    from attnbench import pictures

    experiment, files = _experiment(parsed), _files(parsed)
    if files and parsed.image_size is None:
        experiment = _at_the_size_of(files, experiment)
    trials, training, shown = _plan(experiment, train=not parsed.checkpoint)
    scenes = pictures.scenes_of(shown, parsed.images, parsed.pixel)
    expect_writable(parsed.output)
    if files:
        device = trials[0].device
        networks = [pictures.score_saved(saved, path, shown, device) for path, saved in files.items()]
        networks = _told_apart(networks, list(files))
    else:
        networks = _train(console, trials, training, shown)
    answers = {
        (network.title, scene.index): pictures.look(network, shown, scene) for network in networks for scene in scenes
    }
    for sheet in _sheets(kinds, parsed, networks, shown, scenes, answers):
        if isinstance(sheet, str):
            console.print(sheet, highlight=False, markup=False)
        else:
            path = sheet.write(parsed.output, parsed.format, parsed.dpi)
            console.print(f"{path}: {sheet.caption}", highlight=False, markup=False)
    return 0


def _files(parsed: argparse.Namespace) -> dict[Path, Saved]:
    """The networks of `--checkpoint`."""
    if not parsed.checkpoint:
        return {}
    from attnbench.models.saved import load_any

    register(parsed.operator)
    # a file that is named twice is one network
    return {path: load_any(path) for path in dict.fromkeys(path.resolve() for path in parsed.checkpoint)}


def _at_the_size_of(files: Mapping[Path, Saved], experiment: Experiment) -> Experiment:
    """The experiment with images of the size that the networks were trained on; the preset's where no file says."""
    # a file that says how its images are normalised is one of train.py, and says their size, or that they keep theirs
    sizes = {saved.image_size: path for path, saved in files.items() if saved.mean is not None}
    if len(sizes) > 1:
        found = " and ".join(f"{_words(image_size)} ({str(path)!r})" for image_size, path in sizes.items())
        raise UsageError(
            f"--checkpoint: expected networks trained on images of one size, got {found}; --image-size HxW takes one"
        )
    assert experiment.accuracy is not None
    for image_size in sizes:
        accuracy = dataclasses.replace(experiment.accuracy, image_size=image_size)
        experiment = dataclasses.replace(experiment, accuracy=accuracy)
    return experiment


def _words(image_size: tuple[int, int] | None) -> str:
    return "that of their files" if image_size is None else f"{image_size[0]}x{image_size[1]}"


def _expect_one_source(parsed: argparse.Namespace) -> None:
    training = ("operators", "iterations", "backbone", "backbone_weights", "freeze_backbone", "amp")
    given = [name for name in training if getattr(parsed, name) is not None]
    if parsed.checkpoint and given:
        flag = given[0].replace("_", "-")
        raise UsageError(f"--checkpoint: expected networks as their files have them, got --{flag} beside it")


def _experiment(parsed: argparse.Namespace) -> Experiment:
    """The accuracy half of the preset with the command line's changes."""
    options = vars(parsed)

    def given(**names: str) -> dict[str, Any]:
        return {key: options[name] for key, name in names.items() if options[name] is not None}

    accuracy = accuracy_asked(parsed)
    accuracy |= {"seeds": [parsed.seed], "recipe": accuracy.get("recipe", {}) | given(iterations="iterations")}
    own = parsed.operator or []
    named = parsed.operators or ([] if own else list(DEFAULT_OPERATORS))
    changes = {"operators": named, "operator_files": own, "cost": None, "accuracy": accuracy}
    return updated(load_preset(parsed.preset), changes | given(device="device"), "options")


def _plan(
    experiment: Experiment, *, train: bool
) -> tuple[list[Trial], SegmentationDataset | None, SegmentationDataset]:
    """Trials, what is trained on, and what is shown; what is wrong with the data is said here."""
    from attnbench import planning
    from attnbench.data import build_dataset, check_dataset

    trials = planning.plan(experiment)
    accuracy = experiment.accuracy
    assert accuracy is not None
    root = accuracy.data_root or (os.environ.get("ATTNBENCH_DATA") if accuracy.dataset != "context" else None)

    def checked(split: str) -> SegmentationDataset:
        dataset = build_dataset(accuracy.dataset, split=split, root=root, image_size=accuracy.image_size)
        check_dataset(dataset)
        return dataset

    return trials, checked(accuracy.train_split) if train else None, checked(accuracy.eval_split)


def _told_apart(networks: Sequence[Trained], paths: Sequence[Path]) -> list[Trained]:
    """Networks whose titles and names differ: where several have one operator, their files' names stand beside it.

    `train.py` gives all of its files one name, so that as many folders are named as it takes to tell them apart.
    """
    stems = [path.with_suffix("") for path in paths]
    parts = [path.parts[1:] for path in (stems if len(set(stems)) == len(stems) else paths)]
    told: list[Trained] = []
    for network, own in zip(networks, parts, strict=True):
        alike = [place for other, place in zip(networks, parts, strict=True) if other.title == network.title]
        if len(alike) > 1:
            needed = next(n for n in itertools.count(1) if len({place[-n:] for place in alike}) == len(alike))
            title = f"{network.title} ({'/'.join(own[-needed:])})"
            network = dataclasses.replace(network, title=title, name="-".join([network.name, *own[-needed:]]))
        told.append(network)
    return told


def _train(
    console: Console, trials: Sequence[Trial], training: SegmentationDataset | None, shown: SegmentationDataset
) -> list[Trained]:
    import torch

    from attnbench import pictures
    from attnbench.cli.progress import describe
    from attnbench.cli.training_lines import caching
    from attnbench.faults import one_line

    assert training is not None
    if trials[0].threads is not None:
        # the number of threads changes the last bits, and so which network comes out
        torch.set_num_threads(trials[0].threads)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} iterations"),
        TimeElapsedColumn(),
    )
    networks = []
    with Progress(*columns, console=console, transient=True) as progress:
        for trial in trials:
            bar = progress.add_task(trial.operator, total=trial.recipe.iterations if trial.recipe else 0)
            with one_line(describe(trial)):
                network = pictures.train(
                    trial,
                    training,
                    shown,
                    lambda step, bar=bar: progress.update(bar, completed=step.iteration),  # type: ignore[misc]
                    caching(progress.console),
                )
            progress.remove_task(bar)
            progress.console.print(f"{network.title}: mIoU {100 * network.miou:.1f}", highlight=False)
            networks.append(network)
    return networks


def _sheets(
    kinds: Sequence[str], parsed: argparse.Namespace, networks: Sequence[Trained], *rest: Any
) -> Iterator[Sheet | str]:
    """The sheets, and a sentence for each that there is nothing to draw for."""
    from attnbench import pictures

    dataset, scenes, answers = rest
    if "predictions" in kinds:
        yield pictures.predictions_sheet(networks, dataset, scenes, answers)
    if "attention" in kinds:
        yield pictures.attention_sheet(networks, dataset, scenes, answers)
        if parsed.heads:
            for network in networks:
                yield pictures.heads_sheet(network, dataset, scenes, answers)
    if "bases" in kinds:
        for network in networks:
            sheet = pictures.bases_sheet(network, dataset, scenes, answers, parsed.bases)
            yield sheet
            if not isinstance(sheet, str):
                yield pictures.stages_sheet(network, dataset, scenes, answers, parsed.bases)
