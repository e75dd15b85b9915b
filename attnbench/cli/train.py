"""`train.py`: train one network, in one process or in many, and score it."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from attnbench.cli.arguments import Parser, console_of_width, count, positive
from attnbench.cli.training_options import accuracy_asked, add_scoring, add_training, scoring_asked
from attnbench.config import WHOLE, Accuracy, Experiment, load_preset, preset_names, updated

PROG = "train.py"
DEFAULT_OUTPUT = Path("results/local")

_EPILOG = """\
examples:
  python scripts/train.py --operator ema                         the embedded task, within seconds, without data
  python scripts/train.py --operator ema --resume                go on after Ctrl-C, a crash or a power cut
  python scripts/train.py --preset camvid --data-root DIR --operator criss_cross --seed 1 --workers 2 --eval-every 100
  torchrun --nproc-per-node 8 scripts/train.py --preset voc --operator ema --data-root DIR --workers 4 --output DIR
  torchrun --nproc-per-node 2 scripts/train.py --operator ema --batch-norm process --device cpu
  python scripts/report.py DIR                                   the table, with every run in DIR

Leaves in the output folder: records/ (read by compare.py, report.py), and in runs/OPERATOR-DATASET-seedN/ the file
model.safetensors (read by evaluate.py, predict.py) and the last two checkpoints. A batch is that of all processes.
exit codes: 0 done, 2 something to mend (arguments, data, a checkpoint of another run, a loss not finite), 130
interrupted (Ctrl-C, SIGTERM) behind a checkpoint; torchrun itself ends with 1 whenever a process of its does not
end with 0.
"""


def _parser() -> Parser:
    presets = "presets:\n" + "".join(f"  {name:<14} {load_preset(name).about}\n" for name in preset_names())
    parser = Parser(PROG, "Train one network with an operator in its slot, and score it.", f"{presets}\n{_EPILOG}")
    what = parser.add_argument_group("what to train")
    what.add_argument("--operator", required=True, metavar="NAME|FILE.py:CLASS", help="operator in the slot")
    what.add_argument("--preset", default="default", metavar="NAME|FILE.toml", help="recipe, network and data set")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights, order, augmentation (0)")
    add_training(what)

    recipe = parser.add_argument_group("recipe, where it differs from the preset's")
    recipe.add_argument("--iterations", type=positive, metavar="N", help="steps of the optimiser")
    recipe.add_argument("--batch-size", type=positive, metavar="N", help="images of a step, of all processes together")
    recipe.add_argument("--accumulate", type=positive, metavar="N", help="micro-batches of a process's part of it")
    recipe.add_argument("--compile", action="store_true", default=None, help="torch.compile")
    recipe.add_argument(
        "--batch-norm",
        help="statistics over the images of all processes (shared; CUDA), of each (process), or kept (frozen)",
    )

    add_scoring(parser)

    how = parser.add_argument_group("how")
    how.add_argument("--device", help="auto, cpu or cuda; torchrun's processes take one GPU each")
    how.add_argument(
        "--threads", type=positive, metavar="N", help="threads of each process on CPU (default: its share)"
    )
    how.add_argument("--workers", type=count, metavar="N", help="processes that load data, for each (the preset's)")
    how.add_argument("--resume", action="store_true", help="go on from the latest checkpoint, if there is one")
    how.add_argument("--checkpoint-every", type=positive, metavar="N", help="iterations (default: a tenth of them)")
    how.add_argument("--eval-every", type=positive, metavar="N", help="iterations (default: score at the end alone)")
    how.add_argument("--tensorboard", action="store_true", help="write events to OUTPUT/tensorboard")
    how.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help=f"results folder (default: {DEFAULT_OUTPUT})"
    )
    return parser


def _experiment(arguments: argparse.Namespace, processes: int) -> tuple[Experiment, Accuracy]:
    """The preset's accuracy half with the command line's changes, for one operator and one seed."""
    options = vars(arguments)

    def given(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if options[name] is not None}

    preset = load_preset(options["preset"])
    accuracy = accuracy_asked(arguments) | given("workers")
    accuracy |= {
        "recipe": accuracy.get("recipe", {}) | given("iterations", "batch_size", "accumulate", "compile", "batch_norm"),
        "seeds": [options["seed"]],
        "jobs": processes,
    }
    accuracy |= scoring_asked(arguments, preset.accuracy.inference if preset.accuracy else WHOLE)
    third_party = ":" in options["operator"]
    changes = {
        "operators": [] if third_party else [options["operator"]],
        "operator_files": [options["operator"]] if third_party else [],
        "cost": None,
        "accuracy": accuracy,
        **given("device"),
    }
    experiment = updated(preset, changes, "options")
    assert experiment.accuracy is not None
    return experiment, experiment.accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what the command line asks for; returns the exit code."""
    parsed = _parser().parse(arguments)
    logging.basicConfig(level=logging.WARNING, format=f"{PROG}: %(message)s")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    experiment, accuracy = _experiment(parsed, world)

    from attnbench import planning
    from attnbench.cli.training_run import Options, TrainingRun
    from attnbench.training import joined

    (trial,) = planning.plan(experiment)
    trial = dataclasses.replace(
        trial,
        processes=world if world > 1 else None,
        threads=parsed.threads if parsed.threads and trial.device == "cpu" else trial.threads,
    )
    options = Options(
        output=parsed.output,
        resume=parsed.resume,
        checkpoint_every=parsed.checkpoint_every,
        eval_every=parsed.eval_every,
        workers=accuracy.workers,
        tensorboard=parsed.tensorboard,
    )
    with joined(trial.device) as processes:
        console = console_of_width() if processes.rank == 0 else Console(quiet=True)
        run = TrainingRun(trial, accuracy, options, processes, console)
        return _train(run, console)


def _train(run: Any, console: Console) -> int:
    present = run.present()
    if present is not None:
        console.print(
            f"{run}: trained already, mIoU {100 * present['miou']:.2f}; {run.weights}", highlight=False, markup=False
        )
        return 0
    console.print(str(run), highlight=False, markup=False)
    from attnbench.faults import one_line

    try:
        with one_line(str(run)):
            record = run.run()
    except KeyboardInterrupt:
        console.print(
            f"interrupted; the same command with --resume goes on from {run.folder}", highlight=False, markup=False
        )
        return 130
    if record is not None:
        text = f"mIoU {100 * record['miou']:.2f} on {record['eval_images']} images; {run.weights}"
        console.print(text, highlight=False, markup=False)
    return 0
